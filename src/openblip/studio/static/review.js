// The room Review: one text after the other, one key a verdict, the next picture at once.
import { SCORES, count, el, empty, fill, get, noScores, note, notice, plural, post, probability, quoted, refresh, sheet, tell, tellError, waiting } from "./page.js";
import { Outbox, isRefusal, unique } from "./outbox.js";
import { Conclusions } from "./conclusions.js";

const VERDICTS = {
  right: { key: "r", title: "Right", about: "it says what the picture shows" },
  wrong: { key: "w", title: "Wrong", about: "it does not fit the picture" },
  partly: { key: "p", title: "Partly", about: "a detail is wrong" },
  unsure: { key: "u", title: "Unsure", about: "it cannot be told" },
};
const ACTS = { ...Object.fromEntries(Object.entries(VERDICTS).map(([name, { key }]) => [name, key])), undo: "z", edit: "e" };
const ACT_TITLES = { right: "Right", wrong: "Wrong", partly: "Partly", unsure: "Unsure", undo: "Undo", edit: "Correct the text" };
const BY = {
  threshold: "What decides about thresholds", accepted: "Surest acceptances", rejected: "Surest rejections",
  disagreement: "Matching and contrast disagree (ITM, ITC)", "given-synthetic": "Given against synthetic text", source: "Equally many of each source and data set",
};
const SOURCES = { web: "given on the web", synthetic: "written by the captioner" };
// Texts that are known before they are needed; more are asked for when a third of them is gone.
const AHEAD = 24;
// Of them so many have their pictures, which come two at a time: fetched and decoded all at once,
// they would keep the one back that is to be seen.
const PICTURES = 12;
const AT_ONCE = 2;
const WIDTH = 960;
const SWIPE = 90;
// Milliseconds from a verdict until what follows is asked for: it costs more than a verdict.
const SELDOM = 2500;

export async function show(main, state) {
  await sheet("charts.css");
  await sheet("review.css");
  if (!state.about.table) {
    fill(main, empty("Nothing to review", "Start the studio with a table that CapFilt has scored.", "openblip studio pairs.lance"));
    return null;
  }
  const choices = await get("/api/review/choices");
  if (choices.problem) {
    const { table } = state.about;
    fill(main, noScores(table, `openblip capfilt run ${quoted(table.place)} --captioner CAPTIONER --filter FILTER`));
    return null;
  }
  const room = new Room(main, state, choices);
  await room.start();
  return () => room.close();
}

class Room {
  constructor(main, state, choices) {
    Object.assign(this, { main, state, choices, queue: [], history: [], current: null, edited: null, isClosed: false });
    this.tab = kept(sessionStorage, "review.tab", null) ?? keep(sessionStorage, "review.tab", unique());
    this.keys = { ...ACTS, ...kept(localStorage, "review.keys", {}) };
    this.reviewer = state.params.get("name") ?? kept(localStorage, "review.name", "");
    this.settings = settingsOf(state.params);
    // Named, so that a page that stays open goes on by the same score after a fit.
    const [first] = choices.scores;
    if (first) this.settings.score ??= first;
    this.query = state.params.get("query") ?? "";
    this.outbox = new Outbox(this.tab, state.about.table.place, {
      acknowledged: () => this.#look(SELDOM),
      refused: (order, error) => this.#refused(order, error),
      changed: () => {
        this.#status();
        if (this.undoes && !this.outbox.waiting.length) { this.undoes -= 1; this.#undo(); }
      },
    });
    this.conclusions = new Conclusions(state.params, () => { this.#note(); this.#look(0); });
    this.onKey = (event) => this.#press(event);
    this.onLeave = () => this.#leave();
    this.onOnline = () => { this.outbox.hurry(); this.#refill(); };
    document.addEventListener("keydown", this.onKey);
    addEventListener("pagehide", this.onLeave);
    addEventListener("online", this.onOnline);
    this.beat = setInterval(() => this.#look(0), 20000);
  }

  async start() {
    this.#build();
    this.board.hidden = !this.reviewer;
    if (!this.reviewer) { this.#askName(); return; }
    keep(localStorage, "review.name", this.reviewer);
    this.#note();
    await this.#begin();
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.looking);
    clearTimeout(this.again);
    clearInterval(this.beat);
    document.removeEventListener("keydown", this.onKey);
    removeEventListener("pagehide", this.onLeave);
    removeEventListener("online", this.onOnline);
    this.#leave();
    this.outbox.close();
    this.conclusions.close();
  }

  #leave() {
    if (!this.reviewer) return;
    // A beacon has no header; this is sent even while the page is going.
    fetch("/api/review/leave", { method: "POST", keepalive: true, headers: { "X-Openblip": "1", "Content-Type": "application/json" }, body: JSON.stringify(this.#who()) }).catch(() => {});
  }

  #who() { return { settings: this.settings, reviewer: this.reviewer, tab: this.tab, ...this.conclusions.counted }; }

  /** What is reviewed stands in the address: a reload goes on with it. */
  #note() {
    const settings = Object.keys(this.settings).length ? { settings: JSON.stringify(this.settings) } : {};
    note({ ...(this.query ? { query: this.query } : {}), ...this.conclusions.asked, ...settings });
  }

  #build() {
    this.picture = el("div", { class: "stage" });
    this.words = el("div", { class: "statement", "aria-live": "polite" });
    this.about = el("p", { class: "soft small findings" });
    this.buttons = el("div", { class: "verdicts", role: "group", "aria-label": "Verdict" });
    this.undo = el("button", { type: "button", class: "quiet", onclick: () => this.#undo() });
    this.edit = el("button", { type: "button", class: "quiet", onclick: () => this.#startEdit() });
    this.recorded = el("span", { class: "small recorded", role: "status" });
    this.progress = el("div", { class: "progress" });
    this.others = el("div", {});
    this.notes = el("p", { class: "soft small" });
    this.name = el("button", { type: "button", class: "quiet", onclick: () => this.#askName() });
    this.board = el("section", { class: "board", "aria-label": "The text to judge" },
      this.picture, el("div", { class: "judge" }, this.words, this.about, this.buttons,
        el("div", { class: "acts" }, this.undo, this.edit, el("button", { type: "button", class: "quiet", text: "Keys", onclick: () => this.#showKeys() }), this.name),
        this.recorded, this.conclusions.certificate, this.others));
    this.panel = el("div", {});
    this.#swipes();
    fill(this.main, el("h1", { class: "unseen", text: "Review" }), this.panel, this.board, this.progress, this.notes, this.#chooser(), this.conclusions.node);
    this.#labels();
  }

  #labels() {
    fill(this.buttons, Object.entries(VERDICTS).map(([name, { title, about }]) => el("button", { type: "button", class: `verdict ${name}`, "data-verdict": name, title: about, "aria-keyshortcuts": this.keys[name], onclick: () => this.#judge(name) },
      el("span", { text: title }), el("kbd", { text: shownKey(this.keys[name]) }))));
    fill(this.undo, "Undo ", el("kbd", { text: shownKey(this.keys.undo) }));
    fill(this.edit, "Correct the text ", el("kbd", { text: shownKey(this.keys.edit) }));
    this.name.textContent = this.reviewer ? `as ${this.reviewer}` : "";
  }

  // --- who, with which keys, and what ---------------------------------------------------------

  #askName() {
    const input = el("input", { id: "reviewer", maxlength: "80", autocomplete: "name", required: true, value: this.reviewer });
    const form = el("form", { class: "who", onsubmit: async (event) => {
      event.preventDefault();
      const name = input.value.split(/\s+/).filter(Boolean).join(" ");
      if (!name) return;
      const isOther = name !== this.reviewer;
      this.#leave();
      this.reviewer = keep(localStorage, "review.name", name);
      fill(this.panel);
      this.board.hidden = false;
      this.#labels();
      if (isOther) await this.#begin();
    } }, el("div", { class: "field grow" }, el("label", { for: "reviewer", text: "Your name, which stands beside your verdicts" }), input), el("button", { type: "submit", class: "strong", text: "Begin" }));
    fill(this.panel, form);
    input.focus();
  }

  #showKeys() {
    if (this.panel.querySelector(".keys")) { fill(this.panel); return; }
    const rows = Object.keys(ACTS).map((act) => {
      const input = el("input", { id: `key-${act}`, class: "key", value: shownKey(this.keys[act]), readonly: true, onkeydown: (event) => {
        if (event.key === "Tab" || event.ctrlKey || event.metaKey || event.altKey || ["Shift", "CapsLock", "Dead"].includes(event.key)) return;
        event.preventDefault();
        event.stopPropagation();
        const other = Object.keys(this.keys).find((one) => one !== act && this.keys[one] === event.key.toLowerCase());
        if (other) { tell(`${shownKey(event.key)} is the key of “${ACT_TITLES[other]}”.`, true); return; }
        tell("");
        this.keys[act] = event.key.toLowerCase();
        keep(localStorage, "review.keys", this.keys);
        input.value = shownKey(this.keys[act]);
        this.#labels();
      } });
      return el("div", { class: "field" }, el("label", { for: `key-${act}`, text: ACT_TITLES[act] }), input);
    });
    fill(this.panel, el("section", { class: "keys", "aria-label": "Keys" }, el("p", { class: "small soft", text: "Go to a field and press the key that you want." }), el("div", { class: "fields" }, rows,
      el("button", { type: "button", text: "As at first", onclick: () => { this.keys = { ...ACTS }; keep(localStorage, "review.keys", {}); this.#labels(); fill(this.panel); this.#showKeys(); } }),
      el("button", { type: "button", class: "strong", text: "Done", onclick: () => fill(this.panel) }))));
    this.panel.querySelector("input").focus();
  }

  #chooser() {
    const { settings, choices } = this;
    const by = el("select", { id: "by" }, Object.entries(BY).map(([value, text]) => el("option", { value, text, selected: value === (settings.by ?? "threshold") })),
      (choices.searchable || settings.by === "search") && el("option", { value: "search", text: "What a search finds", selected: settings.by === "search" }));
    const score = el("select", { id: "score" }, choices.scores.map((name) => el("option", { value: name, text: SCORES[name] ?? name, selected: name === (settings.score ?? "itm") })));
    const query = el("input", { id: "query", value: this.query, placeholder: "two dogs on a beach" });
    const threshold = el("input", { id: "threshold", type: "number", min: "0", max: "1", step: "any", value: String(settings.threshold ?? choices.defaults.threshold) });
    const size = el("input", { id: "size", type: "number", min: "1", max: "100000", value: String(settings.size ?? choices.defaults.size) });
    const datasets = el("input", { id: "datasets", value: (settings.datasets ?? []).join(", "), placeholder: "all" });
    const boxes = choices.defaults.sources.map((source) => el("label", { class: "tick" }, el("input", { type: "checkbox", value: source, checked: (settings.sources ?? choices.defaults.sources).includes(source) }), `Texts ${SOURCES[source] ?? source}`));
    const ask = el("div", { class: "field grow" }, el("label", { for: "query", text: "Search for" }), query);
    const update = () => { ask.hidden = by.value !== "search"; };
    by.addEventListener("change", update);
    update();
    const form = el("form", { onsubmit: (event) => {
      event.preventDefault();
      const sources = boxes.map((box) => box.firstChild).filter((box) => box.checked).map((box) => box.value);
      this.#choose({ by: by.value, score: score.value, threshold: Number(threshold.value), size: Number(size.value), sources, datasets: datasets.value.split(",").map((one) => one.trim()).filter(Boolean) }, query.value.trim());
    } }, el("div", { class: "fields" },
      el("div", { class: "field grow" }, el("label", { for: "by", text: "Which come more often" }), by), ask,
      choices.scores.length > 1 && el("div", { class: "field" }, el("label", { for: "score", text: "Score" }), score),
      el("div", { class: "field" }, el("label", { for: "threshold", text: "Current threshold" }), threshold),
      el("div", { class: "field" }, el("label", { for: "size", text: "How many texts" }), size),
      el("div", { class: "field" }, el("label", { for: "datasets", text: "Data sets" }), datasets), boxes,
      el("button", { type: "submit", text: "Review these" })));
    return el("details", { class: "picker" }, el("summary", { text: "What is reviewed" }), form);
  }

  async #choose(chosen, query) {
    const settings = {};
    for (const [name, value] of Object.entries(chosen)) if (JSON.stringify(value) !== JSON.stringify(this.choices.defaults[name])) settings[name] = value;
    try {
      if (settings.by === "search") {
        if (!query) { tell("Write what to search for.", true); return; }
        const { hits } = await waiting("Searching …", () => post("/api/search", { texts: [query], k: 200 }));
        settings.rows = hits.map((hit) => hit.row).sort((a, b) => a - b);
        if (!settings.rows.length) { tell("The search found nothing: search for something else.", true); return; }
      }
      this.#leave();
      Object.assign(this, { settings, query: settings.by === "search" ? query : "" });
      this.#note();
      await this.#begin();
    } catch (error) {
      tellError(error);
    }
  }

  // --- what comes next ------------------------------------------------------------------------

  /** The review from where the reviewer left it. */
  async #begin() {
    this.queue = [];
    this.history = [];
    this.current = null;
    this.isDone = this.isAll = false;
    this.refusal = null;
    this.#show();
    try {
      await waiting("Drawing the texts …", () => this.#fetch());
      tell("");
    } catch (error) {
      this.#failed(error);
      return;
    }
    this.#advance();
    this.#look(0);
  }

  async #fetch() {
    if (this.fetching) return this.fetching;
    const settings = this.settings;
    this.fetching = (async () => {
      // What is on its way, or was sent and not answered, is not shown again.
      const skip = [...new Set([this.current, ...this.queue, ...this.outbox.waiting.filter((order) => !order.isUndo).map((order) => ({ key: order.values.item }))].filter(Boolean).map((item) => item.key))].slice(-50);
      const told = await post("/api/review/next", { ...this.#who(), skip, count: AHEAD - this.queue.length, all: this.isAll });
      if (this.isClosed || settings !== this.settings) return;
      if (told.mark !== this.state.about.table.mark) await refresh();
      this.elsewhere = told.elsewhere;
      this.tabs = told.tabs;
      const known = new Set([...skip, ...this.queue.map((item) => item.key)]);
      const fresh = told.items.filter((item) => !known.has(item.key));
      this.queue.push(...fresh.map((item) => prepared(item, told.mark)));
      this.#load();
      this.isDone = fresh.length === 0;
    })();
    try { await this.fetching; } finally { this.fetching = null; }
    return undefined;
  }

  /** Let pictures come, the nearest first; the one that is shown waits for no other. */
  #load() {
    const near = [this.current, ...this.queue.slice(0, PICTURES)].filter(Boolean);
    let coming = near.filter(({ image }) => image.hasAttribute("src") && !image.complete).length;
    for (const item of near) {
      if (item.image.hasAttribute("src")) continue;
      if (coming >= AT_ONCE && item !== this.current) return;
      coming += 1;
      for (const end of ["load", "error"]) item.image.addEventListener(end, () => this.#load(), { once: true });
      item.image.src = item.address;
      item.image.decode?.().catch(() => {});
    }
  }

  #refill() {
    if (this.queue.length >= AHEAD - 8 || this.isDone || this.refusal || !this.reviewer) return;
    this.#fetch().then(() => { if (!this.current) this.#advance(); else this.#status(); }, (error) => this.#failed(error));
  }

  /** What is asked for did not come. A studio that is away comes back; one that refuses would refuse again. */
  #failed(error) {
    if (isRefusal(error)) {
      this.refusal = error;
      tell("");
      this.#status();
      return;
    }
    if (!this.current) tellError(error);
    this.#retry();
  }

  #retry() {
    clearTimeout(this.again);
    if (!this.isClosed) this.again = setTimeout(() => { if (!this.current && !this.queue.length) this.#begin(); else this.#refill(); }, 1500);
  }

  #advance() {
    this.current = this.queue.shift() ?? null;
    this.edited = null;
    this.#show();
    // Decoded long ago, it may have been given up again.
    this.queue[0]?.image.decode?.().catch(() => {});
    this.#refill();
  }

  #show() {
    const item = this.current;
    this.board.classList.toggle("idle", !item);
    for (const button of this.buttons.children) button.disabled = !item;
    this.edit.disabled = !item;
    if (!item) {
      fill(this.picture);
      fill(this.words, this.#nothing());
      fill(this.about);
      fill(this.others);
      this.#status();
      return;
    }
    fill(this.picture, item.image);
    this.#load();
    this.#showText();
    fill(this.about, SOURCES[item.source] ?? item.source, item.before && ` · you had said: ${item.before.verdict}`);
    fill(this.others, el("details", {}, el("summary", { text: item.others.length ? `Scores and ${plural(item.others.length, "other text")}` : "Scores" }),
      el("p", { class: "small number" }, `${item.score_words} ${probability(item.itm)}${item.itc === null ? "" : ` · contrast (ITC) ${item.itc.toFixed(3)}`}`),
      el("ul", { class: "others small" }, item.others.map((other) => el("li", {}, el("span", { dir: "auto", text: other.text || "(empty)" }), el("span", { class: "soft", text: ` ${SOURCES[other.source] ?? other.source}${other.itm === null ? "" : ` · ${probability(other.itm)}`}` }))))));
    this.#status();
  }

  #showText() {
    const { text } = this.current;
    const shown = el("p", { class: "text", dir: "auto", text: text || "(empty)", onclick: () => this.#startEdit() });
    fill(this.words, shown, this.edited && el("p", { class: "small" }, el("span", { class: "soft", text: "Corrected: " }), el("span", { class: "corrected", dir: "auto", text: this.edited }), el("span", { class: "soft", text: ". Now judge the text above." })));
  }

  #nothing() {
    if (this.refusal) return [el("p", { class: "fault", text: this.refusal.message }), el("p", { class: "soft small", text: [401, 403].includes(this.refusal.status) ? "Open the address that the studio printed when it was started." : "Choose otherwise below, at “What is reviewed”." })];
    if (!this.reviewer) return [el("p", { class: "soft", text: "Verdicts have a name: say who you are." })];
    if (!this.isDone) return [el("p", { class: "soft", text: this.outbox.isAway ? "The studio does not answer. What you have said is kept here and sent when it is back." : "…" })];
    const parts = [el("h2", { text: this.elsewhere ? "The rest is open in another tab" : "All of these texts are judged by you" })];
    if (this.elsewhere) parts.push(el("p", { text: `${plural(this.elsewhere, "text")} ${this.elsewhere === 1 ? "is" : "are"} shown, or about to be, in another tab of yours.` }), el("button", { type: "button", text: "Show them here too", onclick: () => { this.isAll = true; this.isDone = false; this.#fetch().then(() => this.#advance(), tellError); } }));
    else parts.push(el("p", { text: "More can be drawn; those that are judged stay." }), el("button", { type: "button", class: "strong", text: "Draw 100 more", onclick: () => this.#choose({ ...this.choices.defaults, ...this.settings, size: (this.settings.size ?? this.choices.defaults.size) + 100 }, this.query) }));
    return parts;
  }

  // --- verdicts -------------------------------------------------------------------------------

  #judge(verdict) {
    const item = this.current;
    if (!item || !this.reviewer) return;
    const id = unique();
    const order = { id, path: "/api/review/verdict", values: { ...this.#who(), item: item.key, text: item.text, verdict, edited: this.edited ?? "" } };
    this.history.push({ item, verdict, edited: this.edited, id });
    this.#flash(verdict);
    // First into the outbox: what is asked for next leaves out what is on its way.
    this.outbox.add(order);
    this.#advance();
    this.#status();
  }

  async #undo() {
    const last = this.history.pop();
    if (last) {
      this.#bringBack(last.item, last.verdict, last.edited);
      if (!this.outbox.withdraw(last.id)) this.#takeBack(last.item.key);
      return;
    }
    // From before this page was opened: the studio knows what was last, once it knows of all.
    if (this.outbox.waiting.length) {
      this.undoes = (this.undoes ?? 0) + 1;
      tell("Taken back as soon as earlier verdicts are recorded …");
      return;
    }
    try {
      const told = await get("/api/review/state", { ...this.#who(), settings: JSON.stringify(this.settings) });
      if (!told.last) { tell("There is nothing to undo."); return; }
      const back = await post("/api/review/undo", { ...this.#who(), item: told.last });
      this.queue = this.queue.filter((item) => item.key !== told.last);
      this.#bringBack(prepared(back.item, told.mark), back.verdict, back.edited);
      this.#look(300);
    } catch (error) {
      tellError(error);
    }
  }

  #bringBack(item, verdict, edited) {
    if (this.current) this.queue.unshift(this.current);
    item.before = verdict ? { verdict } : null;
    this.current = item;
    this.edited = edited;
    this.#show();
    if (verdict) notice(`Taken back: ${verdict}.`);
    else tell("");
  }

  #takeBack(key) {
    this.outbox.add({ id: unique(), path: "/api/review/undo", isUndo: true, values: { ...this.#who(), item: key } });
    this.#status();
  }

  #startEdit() {
    const item = this.current;
    if (!item || this.words.querySelector("textarea")) return;
    const field = el("textarea", { id: "correction", rows: "3", dir: "auto", value: this.edited ?? item.text, "aria-describedby": "correction-help", onkeydown: (event) => {
      event.stopPropagation();
      if (event.key === "Escape") { event.preventDefault(); leave(); }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); save(); }
    } });
    const leave = () => { this.#showText(); this.edit.focus(); };
    const save = () => {
      const text = field.value.trim();
      if (!text) { tell("An empty text corrects nothing: judge it wrong instead.", true); return; }
      tell("");
      this.edited = text === item.text.trim() ? null : text;
      leave();
    };
    fill(this.words, el("label", { for: "correction", text: "The text as it should be" }), field,
      el("div", { class: "fields" }, el("button", { type: "button", class: "strong", text: "Save", onclick: save }), el("button", { type: "button", text: "Leave", onclick: leave }), el("span", { class: "small soft", id: "correction-help", text: "Enter saves, Esc leaves" })));
    field.focus();
    field.select();
  }

  #press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) {
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !isField(event.target)) { event.preventDefault(); this.#undo(); }
      return;
    }
    if (isField(event.target) || event.repeat) return;
    const act = Object.keys(this.keys).find((name) => this.keys[name] === event.key.toLowerCase());
    // A button that is in focus keeps Enter and Space for itself.
    if (!act || (event.target.closest?.("button, a, summary") && [" ", "enter"].includes(this.keys[act]))) return;
    event.preventDefault();
    if (act === "undo") this.#undo();
    else if (act === "edit") this.#startEdit();
    else this.#judge(act);
  }

  #swipes() {
    let from = null;
    const over = () => { from = null; this.picture.style.transform = ""; delete this.picture.dataset.swipe; };
    this.picture.addEventListener("pointerdown", (event) => { if (event.pointerType === "touch" && this.current) from = event; });
    this.picture.addEventListener("pointermove", (event) => {
      if (!from) return;
      const x = event.clientX - from.clientX;
      if (Math.abs(event.clientY - from.clientY) > Math.abs(x)) return;
      this.picture.style.transform = `translateX(${x}px)`;
      if (Math.abs(x) > SWIPE) this.picture.dataset.swipe = x > 0 ? "right" : "wrong";
      else delete this.picture.dataset.swipe;
    });
    this.picture.addEventListener("pointerup", () => { const verdict = this.picture.dataset.swipe; over(); if (verdict) this.#judge(verdict); });
    this.picture.addEventListener("pointercancel", over);
  }

  #flash(verdict) {
    const button = this.buttons.querySelector(`[data-verdict="${verdict}"]`);
    button.classList.add("pressed");
    setTimeout(() => button.classList.remove("pressed"), 180);
  }

  #refused(order, error) {
    const what = order.isUndo ? "Not taken back" : `Not recorded (${order.values.verdict}: “${order.values.text}”)`;
    tell(`${what}: ${error.message}`, true);
    this.history = this.history.filter((one) => one.id !== order.id);
    this.#look(300);
  }

  // --- how far it is --------------------------------------------------------------------------

  #status() {
    const waits = this.outbox.waiting.length;
    const isUnsent = waits > 0 && (this.outbox.isAway || waits > 2);
    this.recorded.classList.toggle("unsent", isUnsent);
    this.recorded.textContent = waits === 0 ? (this.history.length ? "All recorded." : "") : this.outbox.isAway ? `${plural(waits, "verdict")} not sent yet: the studio does not answer. They are kept in this browser.` : isUnsent ? `${plural(waits, "verdict")} on the way …` : "Recording …";
    const others = this.outbox.elsewhere;
    const notes = [];
    if (this.tabs) notes.push("You review in another tab too: it shows other texts than this one.");
    if (others.length) notes.push(`${plural(others.length, "verdict")} of yours for ${[...new Set(others.map((order) => order.place))].join(", ")} ${others.length === 1 ? "waits" : "wait"} until that is open.`);
    this.notes.textContent = notes.join(" ");
    if (!this.current) fill(this.words, this.#nothing());
  }

  /** Ask for what follows, after a while; what has been asked for is not put off by more verdicts. */
  #look(wait) {
    if (this.isClosed || !this.reviewer || this.refusal || (wait && this.looking)) return;
    clearTimeout(this.looking);
    this.looking = setTimeout(async () => {
      this.looking = null;
      try {
        const told = await get("/api/review/state", { ...this.#who(), settings: JSON.stringify(this.settings), ...this.conclusions.asked });
        if (this.isClosed) return;
        this.tabs = told.tabs;
        this.#showProgress(told);
        this.conclusions.show(told);
        this.#status();
      } catch (error) {
        if (error.status) tellError(error);
      }
    }, wait);
  }

  #showProgress({ progress, scope }) {
    const share = progress.in_sample ? progress.judged_by_me / progress.in_sample : 0;
    const told = Object.entries(VERDICTS).filter(([name]) => progress.verdicts[name]).map(([name]) => `${count(progress.verdicts[name])} ${name}`);
    fill(this.progress,
      el("div", { class: "gauge", role: "progressbar", "aria-label": "Texts judged by you", "aria-valuemin": "0", "aria-valuemax": String(progress.in_sample), "aria-valuenow": String(progress.judged_by_me), vars: { "--share": String(share) } }),
      el("p", { class: "small soft number", text: [`${count(progress.judged_by_me)} of ${count(progress.in_sample)} judged by you`,
        progress.reviewers > 1 && `${count(progress.judged)} by ${count(progress.reviewers)} reviewers`, told.join(", "), scope,
        progress.stale > 0 && `${plural(progress.stale, "verdict")} on texts that have changed since, which do not count`].filter(Boolean).join(" · ") }));
  }
}

/** An item with its picture, which comes when it is near, and where from. */
function prepared(item, mark) {
  const image = el("img", { alt: "the picture to judge", draggable: "false" });
  image.addEventListener("load", () => { if (Math.max(image.naturalWidth, image.naturalHeight) <= 128) image.classList.add("small"); });
  image.addEventListener("error", () => { image.alt = "This picture cannot be shown."; image.classList.add("missing"); });
  return { ...item, image, address: `/image/${item.row_number}?w=${WIDTH}&v=${encodeURIComponent(mark)}` };
}

function settingsOf(params) {
  try {
    const found = JSON.parse(params.get("settings") ?? "{}");
    return found && typeof found === "object" && !Array.isArray(found) ? found : {};
  } catch {
    return {};
  }
}

const isField = (node) => Boolean(node.closest?.("input:not([type=checkbox]), select, textarea"));
const shownKey = (key) => ({ " ": "Space", arrowleft: "←", arrowright: "→", arrowup: "↑", arrowdown: "↓" })[key.toLowerCase()] ?? (key.length === 1 ? key.toUpperCase() : key[0].toUpperCase() + key.slice(1));

function kept(store, name, other) {
  try { return JSON.parse(store.getItem(name)) ?? other; } catch { return other; }
}

function keep(store, name, value) {
  try { store.setItem(name, JSON.stringify(value)); } catch { /* a browser that keeps nothing */ }
  return value;
}
