// The room Collection: all rows, sorted and chosen, and everything about one of them.
import { count, el, empty, fill, get, imageUrl, plural, probability, refresh, tell, tellError } from "./page.js";
import { Grid } from "./grid.js";

const ORDERS = {
  row: "Order of the table",
  id: "Name (id)",
  size: "Size in pixels",
  texts: "Number of texts",
  "best-given-itm": "Best given text (ITM)",
  "worst-given-itm": "Worst given text (ITM)",
  "best-synthetic-itm": "Best synthetic text (ITM)",
  "worst-synthetic-itm": "Worst synthetic text (ITM)",
  "best-given-itc": "Best given text (ITC)",
  "worst-given-itc": "Worst given text (ITC)",
  "best-synthetic-itc": "Best synthetic text (ITC)",
  "worst-synthetic-itc": "Worst synthetic text (ITC)",
};
const SOURCES = { web: "web", human: "human", synthetic: "synthetic" };
const CHOICES = ["words", "source", "fate", "split", "flag", "verdict", "itm_from", "itm_to", "itc_from", "itc_to", "where"];
const NAMES = {
  words: "text contains", source: "source", fate: "decision", split: "split", flag: "found", verdict: "verdict",
  itm_from: "ITM from", itm_to: "ITM to", itc_from: "ITC from", itc_to: "ITC to", where: "condition",
};
const VERDICTS = { any: "any verdict", none: "no verdict yet", right: "right", wrong: "wrong", partly: "partly right", unsure: "unsure" };
const ASKED_OF_PAGE = ["row", "at"];

const option = (value, text, chosen) => el("option", { value, text, selected: value === chosen });

/** What becomes of a text, in words. */
export const fateWords = (fate) => (fate === "counts" ? "counts" : `does not count: ${fate}`);

/** A text with what is known of it; anybody's words, so that they stand for themselves. */
export function textBlock(text, ...more) {
  const scores = [];
  if (text.itm !== null) scores.push(`match probability (ITM) ${probability(text.itm)}`);
  if (text.itc !== null) scores.push(`similarity (ITC) ${text.itc.toFixed(2)}`);
  return el("div", { class: `told ${text.fate === "counts" ? "is-kept" : "is-left"}` },
    el("p", { class: "told-words", dir: "auto", text: text.text || "(empty)" }),
    el("p", { class: "small soft" }, el("span", { class: "text-source", text: SOURCES[text.source] ?? text.source }), ` ${fateWords(text.fate)}`, scores.length ? ` · ${scores.join(" · ")}` : ""),
    more);
}

export async function show(main, state) {
  if (!state.about.table) {
    fill(main, empty("No collection is open", "Start the studio with a table or a folder of pictures.", "openblip studio photos/"));
    return null;
  }
  const room = new Collection(main, state);
  await room.begin();
  return () => room.close();
}

class Collection {
  constructor(main, state) {
    Object.assign(this, { main, state, about: null, params: {}, version: null });
    for (const [name, value] of state.params) this.params[name] = value;
    this.grid = new Grid({
      name: "Pictures of the collection",
      load: (start, number, signal) => this.load(start, number, signal),
      draw: (words, row) => this.draw(words, row),
      label: (row) => this.label(row),
      picture: (row, width) => imageUrl(row.row, width),
      onopen: (index, row, isChosen) => this.open(index, row, isChosen),
      onmove: (index) => this.moved(index),
    });
  }

  async begin() {
    this.told = el("p", { class: "small soft number", role: "status" });
    this.chips = el("div", { class: "chips" });
    this.panel = el("dialog", { class: "detail", "aria-label": "About this picture" });
    this.panel.addEventListener("close", () => this.closed());
    this.panel.addEventListener("keydown", (event) => this.panelKey(event));
    // The first rows come while the studio is asked what rows can be chosen by.
    const isDrawn = this.begun();
    isDrawn.catch(() => {}); // told by who waits for it
    await this.refill(Number(this.params.at) || 0, isDrawn);
    await isDrawn;
    if (/^\d+$/.test(this.params.row ?? "")) await this.showRow(Number(this.params.row), false);
  }

  async begun() {
    const about = await get("/api/rows/about");
    this.about = about;
    this.compare(about);
    fill(this.main, el("h1", { class: "unseen", text: "Collection" }), this.bar(),
      el("div", { class: "looked" }, el("div", { class: "looked-grid" }, this.grid.view), this.panel));
    this.fit = new ResizeObserver(() => this.fitHeight());
    this.fit.observe(document.body);
    this.fitHeight();
  }

  close() {
    this.grid.close();
    this.fit?.disconnect();
    clearTimeout(this.noting);
    if (this.panel.open) this.panel.close();
  }

  fitHeight() {
    const top = this.grid.view.getBoundingClientRect().top + scrollY;
    this.main.style.setProperty("--above", `${Math.round(top)}px`);
  }

  // The bar: words, order, and the other things that rows can be chosen by.

  bar() {
    const words = el("input", { type: "search", id: "c-words", value: this.params.words ?? "", placeholder: "Text contains …", maxlength: "200", autocomplete: "off", "aria-label": "Text contains" });
    words.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.set({ words: words.value.trim() }), 350);
    });
    const orders = this.about.orders.filter((name) => !name.includes("-") || (this.about.is_scored && (this.about.has_synthetic || !name.includes("synthetic"))));
    const sort = el("select", { id: "c-sort", "aria-label": "Sorted by", onchange: () => {
      // Who asks for the best wants to see them first.
      const isDown = /^(best|size|texts)/.test(sort.value);
      turn.setAttribute("aria-pressed", String(isDown));
      this.set({ sort: sort.value === "row" ? "" : sort.value, desc: isDown ? "1" : "" });
    } },
      orders.map((name) => option(name, ORDERS[name] ?? name, this.params.sort ?? "row")));
    const turn = el("button", { type: "button", class: "toggle", "aria-pressed": String(this.params.desc === "1"), onclick: () => {
      const isDown = turn.getAttribute("aria-pressed") !== "true";
      turn.setAttribute("aria-pressed", String(isDown));
      this.set({ desc: isDown ? "1" : "" });
    } }, el("span", { "aria-hidden": "true", text: "↓" }), el("span", { class: "toggle-words", text: "Descending" }));
    this.fields = el("div", { class: "fields", id: "c-fields", hidden: true });
    this.inputs = {};
    fill(this.fields, this.choiceFields());
    const toggle = el("button", { type: "button", "aria-expanded": "false", "aria-controls": "c-fields", text: "Filters", onclick: () => {
      this.fields.hidden = !this.fields.hidden;
      toggle.setAttribute("aria-expanded", String(!this.fields.hidden));
      this.fitHeight();
    } });
    this.inputs.words = words;
    return el("form", { class: "chooser", role: "search", onsubmit: (event) => event.preventDefault() },
      el("div", { class: "fields asked" }, words, toggle, sort, turn),
      this.fields, el("div", { class: "chosen" }, this.told, this.chips));
  }

  choiceFields() {
    const about = this.about;
    const pick = (name, title, values, help = null) => {
      const select = el("select", { id: `c-${name}`, onchange: () => this.set({ [name]: select.value }) },
        option("", "any", this.params[name] ?? ""), values.map(([value, text]) => option(value, text, this.params[name])));
      this.inputs[name] = select;
      return el("div", { class: "field" }, el("label", { for: `c-${name}`, text: title }), select, help);
    };
    const number = (name, title) => {
      const input = el("input", { type: "number", id: `c-${name}`, min: name.startsWith("itm") ? "0" : "-1", max: "1", step: "any", value: this.params[name] ?? "", class: "short-number", onchange: () => this.set({ [name]: input.value }) });
      this.inputs[name] = input;
      return el("div", { class: "field" }, el("label", { for: `c-${name}`, text: title }), input);
    };
    const plain = (values) => values.map((value) => [value, value]);
    const where = el("input", { type: "text", id: "c-where", value: this.params.where ?? "", placeholder: "split = 'test' and width > 1000", maxlength: "1900", spellcheck: "false", autocomplete: "off", onchange: () => this.set({ where: where.value.trim() }) });
    this.inputs.where = where;
    const threshold = el("input", { type: "number", id: "c-threshold", min: "0", max: "1", step: "any", value: this.params.threshold ?? String(this.state.about.threshold), class: "short-number", onchange: () => this.set({ threshold: threshold.value }) });
    return [
      pick("source", "Source of a text", plain(about.sources)),
      pick("fate", "Decision on a text", about.fates.map((fate) => [fate, fateWords(fate)])),
      about.is_scored ? el("div", { class: "field" }, el("label", { for: "c-threshold", text: "Threshold (ITM above)" }), threshold) : null,
      pick("split", "Split", plain(about.splits)),
      pick("flag", "Found by checks", plain(about.flags)),
      pick("verdict", "Verdict of a person", about.verdicts.map((verdict) => [verdict, VERDICTS[verdict] ?? verdict])),
      about.is_scored ? [number("itm_from", "ITM from"), number("itm_to", "ITM to"), number("itc_from", "ITC from"), number("itc_to", "ITC to")] : null,
      about.without.length ? this.withoutField() : null,
      el("div", { class: "field grow" }, el("label", { for: "c-where", text: "Condition (SQL over the columns)" }), where),
      el("p", { class: "small soft chooser-hint", text: about.is_scored
        ? "What is asked of a text is asked of one and the same text. ITM is the probability that picture and text match, ITC how similar they are."
        : "These texts have no scores yet. The room CapFilt says what makes them." }),
    ];
  }

  withoutField() {
    const chosen = (this.params.without ?? "").split(",");
    const boxes = this.about.without.map((name) => el("label", { class: "checked-line" }, el("input", { type: "checkbox", value: name, checked: chosen.includes(name), onchange: () => {
      this.set({ without: boxes.map((box) => box.firstChild).filter((box) => box.checked).map((box) => box.value).join(",") });
    } }), ` ${name.replaceAll("_", " ")}`));
    return el("fieldset", { class: "field" }, el("legend", { class: "small soft", text: "Do not count" }), el("div", { class: "checked-lines" }, boxes));
  }

  /** Choose otherwise: a new entry in the history, and the grid anew. */
  set(changes) {
    const params = { ...this.params, ...changes };
    for (const name of Object.keys(params)) if (params[name] === "" || ASKED_OF_PAGE.includes(name)) delete params[name];
    this.params = params;
    this.remember(true);
    if (this.panel.open) this.panel.close();
    this.refill(0);
  }

  remember(isNew) {
    const query = new URLSearchParams(this.params).toString();
    history[isNew ? "pushState" : "replaceState"](null, "", `#collection${query ? `?${query}` : ""}`);
    this.state.params = new URLSearchParams(query);
  }

  async refill(at, isDrawn = null) {
    this.drawChips();
    tell("");
    try {
      if (!(await this.grid.show(at, isDrawn))) return;
    } catch (error) {
      this.told.textContent = "";
      tellError(error);
      return;
    }
    const { total } = this.grid;
    const all = this.about.rows_in_table;
    this.told.textContent = total === all ? plural(all, "picture") : `${count(total)} of ${plural(all, "picture")}`;
    if (!total) tell(all ? "No picture is like that. Take a choice away." : "The table has no rows.");
    else if (this.stale) tell(`${this.stale === 1 ? "1 verdict is on a text that has" : `${count(this.stale)} verdicts are on texts that have`} changed since, and left out.`);
    this.fitHeight();
  }

  drawChips() {
    const own = CHOICES.filter((name) => this.params[name]);
    fill(this.chips, own.map((name) => {
      const value = name === "fate" ? fateWords(this.params[name]) : name === "verdict" ? VERDICTS[this.params[name]] ?? this.params[name] : this.params[name];
      const told = `${NAMES[name]}: ${value}`;
      return el("button", { type: "button", class: "chip", "aria-label": `Take away ${told}`, onclick: () => {
        if (this.inputs[name]) this.inputs[name].value = "";
        this.set({ [name]: "" });
        this.grid.view.focus();
      } }, el("span", { dir: "auto", text: told }), el("span", { "aria-hidden": "true", text: "×" }));
    }));
  }

  // Rows.

  async load(start, number, signal) {
    const asked = { ...this.params, start, count: number };
    for (const name of ASKED_OF_PAGE) delete asked[name];
    const found = await get("/api/rows", asked, signal);
    this.compare(found);
    this.stale = found.stale_verdicts;
    return found;
  }

  /** All that is shown is of one version of the table. */
  compare(found) {
    this.version ??= found.mark;
    if (found.mark !== this.version) this.changed(found);
  }

  /** Another process has changed the table: what was read before is of no use any more. */
  changed(found) {
    this.version = found.mark;
    if (this.about) this.about.rows_in_table = found.rows_in_table;
    // After this answer, which is whole, of the new table alone.
    setTimeout(async () => {
      try {
        await refresh();
        this.about = await get("/api/rows/about");
        fill(this.fields, this.choiceFields());
        await this.refill(this.grid.first);
        tell("The table has changed; it was read again.");
      } catch (error) {
        tellError(error);
      }
    });
  }

  /** The text of a row that what was asked for is about. */
  shownText(row) {
    const { params } = this;
    const [which, whose, score] = (params.sort ?? "").split("-");
    const ofSort = (text) => !whose || (whose === "synthetic") === (text.source === "synthetic");
    const fits = (text) => (!params.source || text.source === params.source)
      && (!params.fate || text.fate === params.fate)
      && (!params.words || text.text.toLowerCase().includes(params.words.toLowerCase()));
    let texts = row.texts.filter((text) => fits(text) && ofSort(text));
    if (!texts.length) texts = row.texts.filter(fits);
    if (score) {
      const turn = which === "worst" ? 1 : -1;
      texts = texts.toSorted((a, b) => turn * ((a[score] ?? 2 * turn) - (b[score] ?? 2 * turn)));
      return texts[0] ?? row.texts[0];
    }
    return texts.find((text) => text.fate === "counts") ?? texts[0] ?? row.texts[0];
  }

  draw(words, row) {
    const shown = this.shownText(row);
    fill(words,
      el("p", { class: `cell-text ${shown && shown.fate !== "counts" ? "is-left" : ""}`, dir: "auto", text: shown ? shown.text : row.id }),
      el("p", { class: "cell-tags small" }, this.tags(row, shown)));
  }

  tags(row, shown) {
    const tags = [];
    if (shown) tags.push(el("span", { text: shown.source }));
    if (shown && shown.itm !== null) tags.push(el("span", { class: "number", text: `ITM ${probability(shown.itm)}` }));
    if (row.texts.length > 1) {
      const counting = row.texts.filter((text) => text.fate === "counts").length;
      tags.push(el("span", { class: "number", title: "Texts of this picture that count", text: `${counting} of ${row.texts.length} count` }));
    }
    // A cell has room for one.
    const [flag, ...more] = row.flags;
    if (flag) tags.push(el("span", { class: "row-flag", title: row.flags.join(", "), text: more.length ? `${flag} +${more.length}` : flag }));
    return tags;
  }

  label(row) {
    const texts = row.texts.map((text) => `${text.source}: ${text.text}, ${fateWords(text.fate)}`);
    return [`Row ${row.row}`, ...(texts.length ? texts : ["no text"]), ...row.flags].join(". ").slice(0, 600);
  }

  moved(index) {
    clearTimeout(this.noting);
    this.noting = setTimeout(() => {
      if (index) this.params.at = String(index);
      else delete this.params.at;
      this.remember(false);
    }, 400);
  }

  // One row.

  open(index, row, isChosen) {
    if (!row) return;
    if (isChosen) this.showRow(row.row, true, index);
    else if (this.panel.open && !this.isModal()) this.showRow(row.row, false, index);
  }

  isModal() {
    return this.panel.matches(":modal");
  }

  async showRow(number, isFocused, index = null) {
    this.index = index;
    const isNew = !this.panel.open;
    const mine = (this.asking = (this.asking ?? 0) + 1);
    let row;
    try {
      row = await get(`/api/rows/${number}`, { threshold: this.params.threshold, without: this.params.without });
    } catch (error) {
      tellError(error);
      return;
    }
    if (mine !== this.asking) return;
    this.params.row = String(number);
    this.remember(isNew && isFocused);
    fill(this.panel, this.detail(row));
    if (isNew) {
      if (matchMedia("(max-width: 60rem)").matches) this.panel.showModal();
      else {
        const before = document.activeElement;
        this.panel.show();
        // A dialog takes the focus; where it came with the address, nobody has asked for that.
        if (!isFocused && before === document.body) document.activeElement.blur();
        else if (!isFocused) before.focus();
      }
    }
    this.panel.scrollTop = 0;
    if (isFocused) this.panel.querySelector("h2").focus();
  }

  closed() {
    delete this.params.row;
    this.remember(false);
    if (this.main.isConnected && this.main.contains(this.grid.view)) this.grid.view.focus({ preventScroll: true });
  }

  panelKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") this.panel.close();
    else if (event.key === "ArrowRight") this.step(1);
    else if (event.key === "ArrowLeft") this.step(-1);
    else return;
    event.preventDefault();
  }

  async step(by) {
    const index = (this.index ?? this.grid.active) + by;
    try {
      const row = await this.grid.fetchRow(index);
      if (!row) return;
      this.grid.move(index);
      await this.showRow(row.row, true, index);
    } catch (error) {
      tellError(error);
    }
  }

  detail(row) {
    const size = row.width && row.height ? `${count(row.width)} × ${count(row.height)} pixels` : "size not known";
    const facts = [`row ${count(row.row)}`, size, row.split, `origin ${row.origin}`];
    const shape = row.width && row.height ? row.width / row.height : 1.4;
    return [
      el("div", { class: "detail-top" },
        el("h2", { tabindex: "-1", dir: "auto", text: row.id }),
        el("div", { class: "detail-steps" },
          el("button", { type: "button", class: "quiet", "aria-label": "The picture before (left arrow)", text: "‹", onclick: () => this.step(-1) }),
          el("button", { type: "button", class: "quiet", "aria-label": "The next picture (right arrow)", text: "›", onclick: () => this.step(1) }),
          el("button", { type: "button", class: "quiet", "aria-label": "Close (Escape)", text: "✕", onclick: () => this.panel.close() }))),
      el("a", { class: "detail-picture", href: imageUrl(row.row), target: "_blank", "aria-label": "The picture as it is stored, in a tab of its own", vars: { "--shape": shape } },
        el("img", { src: imageUrl(row.row, 960), alt: "" })),
      el("p", { class: "small soft number", text: facts.join(" · ") }),
      el("div", { class: "chips" }, row.flags.map((flag) => el("span", { class: "row-flag", text: flag })),
        // An image that cannot be read is the reason of several of them: said once.
        [...new Set([row.image_error, row.capfilt_error, row.synthetic_error])].filter(Boolean).map((reason) => el("p", { class: "small row-error", text: reason }))),
      this.similar(row),
      el("h3", { text: row.texts.length ? "Texts" : "No texts" }),
      row.texts.map((text) => textBlock(text, this.writer(text, row.models))),
      row.verdicts.length ? [el("h3", { text: "Verdicts of people" }), row.verdicts.map(verdictBlock)] : null,
      this.relatives(row),
      Object.keys(row.meta).length || row.image_uri ? [el("h3", { text: "What the source says" }), factsList({ ...(row.image_uri ? { file: row.image_uri } : {}), ...row.meta })] : null,
    ];
  }

  similar(row) {
    if (!this.state.about.table.indexed || !this.state.about.rooms.some((room) => room.name === "search")) return null;
    return el("p", {}, el("a", { class: "button", href: `#search?like=${row.row}`, text: "Similar pictures" }));
  }

  writer(text, models) {
    if (text.source !== "synthetic") return null;
    const told = [];
    if (text.captioner) told.push(`written by ${models.captioners[text.captioner] ?? "a captioner"} (${text.captioner})`);
    if (typeof text.logprob === "number") told.push(`log-probability ${text.logprob.toFixed(1)}`);
    return told.length ? el("p", { class: "small soft", text: told.join(" · ") }) : null;
  }

  relatives(row) {
    const link = (number) => el("button", { type: "button", class: "row-link number", text: `row ${count(number)}`, onclick: () => this.showRow(number, true) });
    const told = [];
    if (row.duplicate_of) told.push(el("p", {}, "Repeats ", row.duplicate_of_row === null ? el("span", { dir: "auto", text: row.duplicate_of }) : link(row.duplicate_of_row)));
    if (row.num_repeaters) told.push(el("p", {}, `Is repeated by ${plural(row.num_repeaters, "picture")}: `, row.repeaters.map((number) => [link(number), " "]), row.num_repeaters > row.repeaters.length ? "…" : ""));
    if (row.leak_of) told.push(el("p", {}, "Is also in an evaluation table, as ", el("span", { dir: "auto", text: row.leak_of })));
    return told.length ? [el("h3", { text: "Duplicates and leaks" }), told] : null;
  }
}

function verdictBlock(verdict) {
  return el("div", { class: "told" },
    el("p", {}, el("b", { text: VERDICTS[verdict.verdict] ?? verdict.verdict }), " ", el("span", { dir: "auto", text: verdict.text })),
    verdict.edited ? el("p", { dir: "auto", text: `corrected: ${verdict.edited}` }) : null,
    el("p", { class: "small soft" }, `${verdict.source} · `, el("span", { dir: "auto", text: verdict.reviewer }), ` · ${new Date(verdict.time).toLocaleString()}`,
      verdict.is_stale ? " · the text has changed since, so this does not count" : ""));
}

function factsList(values) {
  return el("dl", { class: "source-facts" }, Object.entries(values).map(([name, value]) => [
    el("dt", { dir: "auto", text: name }),
    el("dd", { dir: "auto", text: typeof value === "string" ? value : JSON.stringify(value) }),
  ]));
}
