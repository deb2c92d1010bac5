// The room Try: one picture at the left, and what the models say of it at the right.
import { copyable, el, fill, get, imageUrl, note, post, probability, quoted, tell, tellError, waiting } from "./page.js";
import { bar, taking, tile } from "./pictures.js";

const TABS = [
  { name: "caption", title: "Caption", role: "captioner" },
  { name: "ask", title: "Ask", role: "vqa" },
  { name: "match", title: "Match", role: "filter" },
  { name: "explain", title: "Explain", role: null },
];
const LACK = {
  captioner: "No model that writes captions was given.",
  vqa: "No model that answers questions was given.",
  filter: "No model that matches texts and pictures was given.",
};

export async function show(main, state) {
  const room = new Try(main, state);
  await room.start();
  return () => room.stop();
}

const field = (label, input, ...more) => el("div", { class: "field" }, el("label", { for: input.id, text: label }), input, more);
const lines = (text) => text.split("\n").map((one) => one.trim()).filter(Boolean);

class Try {
  constructor(main, state) {
    this.main = main;
    this.state = state;
    this.row = state.params.get("row");
    this.tab = TABS.some((tab) => tab.name === state.params.get("tab")) ? state.params.get("tab") : "caption";
    this.file = null;
    this.blob = null;
    this.under = null;
    this.heat = null;
  }

  async start() {
    this.pictures = taking("Choose a picture", (file) => { this.file = file; this.row = null; this.changed(); });
    this.stage = el("figure", { class: "stage" });
    this.tabs = el("div", { class: "tabs", role: "tablist", "aria-label": "What the models do" }, TABS.map((tab) => el("button", {
      type: "button", role: "tab", id: `tab-${tab.name}`, "aria-controls": `panel-${tab.name}`, text: tab.title,
      onclick: () => this.open(tab.name), onkeydown: (event) => this.turn(event, tab.name) })));
    this.panels = Object.fromEntries(TABS.map((tab) => [tab.name, el("section", { role: "tabpanel", id: `panel-${tab.name}`, "aria-labelledby": `tab-${tab.name}`, tabindex: "0" })]));
    fill(this.main, el("h1", { class: "unseen", text: "Try" }), el("div", { class: "bench" }, this.stage,
      el("div", { class: "panel" }, this.tabs, Object.values(this.panels))));
    this.drawCaption();
    this.drawAsk();
    this.drawMatch();
    this.drawExplain();
    this.open(this.tab);
    this.drawStage();
  }

  stop() {
    this.under?.abort();
    this.pictures.stop();
    this.sizes?.disconnect();
    if (this.blob) URL.revokeObjectURL(this.blob);
  }

  // The picture.

  changed() {
    this.under?.abort();
    this.under = null;
    this.main.removeAttribute("aria-busy");
    this.noteTab();
    for (const panel of Object.values(this.panels)) panel.querySelector(".results")?.replaceChildren();
    this.drawStage();
    tell("");
  }

  hasPicture() {
    return this.file !== null || this.row !== null;
  }

  drawStage() {
    this.heat = null;
    this.sizes?.disconnect();
    if (this.blob) URL.revokeObjectURL(this.blob);
    this.blob = this.file ? URL.createObjectURL(this.file) : null;
    this.stage.classList.toggle("vacant", !this.hasPicture());
    const buttons = el("div", { class: "fields" }, this.pictures.button,
      this.state.about.table && el("button", { type: "button", class: "quiet", text: "Any of the collection", onclick: () => this.any() }));
    if (!this.hasPicture()) {
      fill(this.stage, el("div", { class: "invite" }, el("h2", { text: "Give a picture" }),
        el("p", { class: "soft", text: "Drop one here, paste it, or choose a file. It stays on this machine." }), buttons));
      this.drawSample();
      return;
    }
    const img = el("img", { src: this.blob ?? imageUrl(this.row, 1440), alt: this.file ? "Your picture" : `Row ${this.row} of the collection` });
    this.canvas = el("canvas", { class: "heat", hidden: true, "aria-hidden": "true" });
    img.addEventListener("error", () => {
      if (this.file) img.replaceWith(el("p", { class: "soft", text: "The browser cannot show this format; the models may read it all the same." }));
      else img.replaceWith(el("p", { class: "soft", text: "This picture cannot be read." }));
    });
    const easel = el("div", { class: "easel" }, img, this.canvas);
    img.addEventListener("load", () => easel.style.setProperty("--shape", String(img.naturalWidth / img.naturalHeight)));
    const named = el("figcaption", { class: "soft small", text: this.file ? this.file.name || "a pasted picture" : `row ${this.row}` });
    fill(this.stage, easel, named, buttons);
    if (!this.file) this.nameRow(named, this.row);
  }

  /** What a picture of the collection is called: in a folder its file. */
  async nameRow(named, row) {
    try {
      const { id } = await get(`/api/rows/${row}`);
      if (row === this.row) named.textContent = `${id} (row ${row})`;
    } catch {
      // The number says it, too.
    }
  }

  async drawSample() {
    if (!this.state.about.table) return;
    try {
      const { rows } = await get("/api/sample", { count: 12 });
      if (this.hasPicture()) return;
      this.stage.append(el("div", { class: "offers" }, el("h3", { class: "soft", text: "or one of these" }), el("ul", { class: "mosaic" },
        rows.map((row) => tile(row, `Try ${row.id}`, () => { this.row = String(row.row); this.changed(); })))));
    } catch (error) {
      tellError(error);
    }
  }

  any() {
    this.file = null;
    this.row = String(Math.floor(Math.random() * this.state.about.table.rows));
    this.changed();
  }

  // Tabs.

  noteTab() {
    note([...(this.row !== null ? [["row", this.row]] : []), ...(this.tab !== "caption" ? [["tab", this.tab]] : [])]);
  }

  open(name) {
    this.tab = name;
    for (const tab of TABS) {
      const isOpen = tab.name === name;
      const button = this.tabs.querySelector(`#tab-${tab.name}`);
      button.setAttribute("aria-selected", String(isOpen));
      button.tabIndex = isOpen ? 0 : -1;
      this.panels[tab.name].hidden = !isOpen;
    }
    if (this.canvas) this.canvas.hidden = name !== "explain" || this.heat === null;
    this.noteTab();
  }

  turn(event, name) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const place = TABS.findIndex((tab) => tab.name === name);
    const next = TABS[(place + by + TABS.length) % TABS.length].name;
    this.open(next);
    this.tabs.querySelector(`#tab-${next}`).focus();
  }

  given(role) {
    return this.state.about.models.some((model) => model.roles.includes(role));
  }

  lacking(role) {
    const table = this.state.about.table;
    return el("div", { class: "empty small" }, el("p", { text: `${LACK[role]} Start the studio again with one:` }),
      copyable(`openblip studio ${table ? `${quoted(table.place)} ` : ""}--${role} ${role.toUpperCase()}`));
  }

  /** Ask a model, and draw what it says; what is asked is taken from the form when it is sent. */
  form(label, told, path, values, draw, ...fields) {
    const results = el("div", { class: "results", "aria-live": "polite" });
    const button = el("button", { class: "strong", text: label });
    const send = async (event) => {
      event.preventDefault();
      if (!this.hasPicture()) { tell("Give a picture first.", true); return; }
      this.under?.abort();
      const mine = this.under = new AbortController();
      this.main.setAttribute("aria-busy", "true");
      try {
        const asked = this.file ? values() : { ...values(), row: Number(this.row) };
        const found = await waiting(told, () => post(path, asked, this.file, mine.signal));
        if (mine !== this.under) return;
        fill(results, draw(found), el("p", { class: "soft small", text: `${found.seconds.toFixed(1)} s, ${found.model}` }));
        tell((found.warnings ?? []).join(" "));
      } catch (error) {
        if (mine === this.under) tellError(error);
      } finally {
        if (mine === this.under) { this.under = null; this.main.removeAttribute("aria-busy"); }
      }
    };
    return [el("form", { class: "task", onsubmit: send }, fields, button), results];
  }

  // Caption.

  drawCaption() {
    const panel = this.panels.caption;
    if (!this.given("captioner")) { fill(panel, this.lacking("captioner")); return; }
    const method = el("select", { id: "method" }, el("option", { value: "beam", text: "likeliest (beam search)" }), el("option", { value: "nucleus", text: "random (nucleus sampling)" }));
    const beams = el("input", { type: "number", id: "beams", min: "1", max: "10", value: "3", required: true });
    const number = el("input", { type: "number", id: "count", min: "1", max: "10", value: "3", required: true });
    const beamField = field("Beams", beams);
    const adapt = () => {
      beamField.hidden = method.value !== "beam";
      number.max = method.value === "beam" ? beams.value : "10";
      if (Number(number.value) > Number(number.max)) number.value = number.max;
    };
    method.addEventListener("change", adapt);
    beams.addEventListener("input", adapt);
    adapt();
    const values = () => ({ method: method.value, beams: Number(beams.value), count: Number(number.value) });
    fill(panel, this.form("Caption", "Writing captions …", "/api/try/caption", values, (found) => this.captions(found),
      el("div", { class: "fields" }, field("How", method), beamField, field("Captions", number))));
  }

  captions(found) {
    return el("ol", { class: "captions" }, found.captions.map((caption) => el("li", {},
      caption.text ? el("p", { class: "words", dir: "auto" }, caption.words.map((word) => el("span", { class: "word", vars: { "--part": `${word.probability * 100}%` } },
        el("span", { class: "said", text: word.text }), el("span", { class: "sure number" }, probability(word.probability)))))
        : el("p", { class: "soft", text: `Nothing: ${caption.reason}.` }),
      el("p", { class: "soft small number", text: `whole caption: probability ${caption.probability < 0.001 ? caption.probability.toExponential(1) : caption.probability.toFixed(3)} (log-probability ${caption.logprob.toFixed(2)})` }))),
    el("li", { class: "key soft small", text: "Below each word: how sure the model was of it, given the picture and what stands before." }));
  }

  // Ask.

  drawAsk() {
    const panel = this.panels.ask;
    if (!this.given("vqa")) { fill(panel, this.lacking("vqa")); return; }
    const question = el("input", { type: "text", id: "question", required: true, placeholder: "What is on the table?", autocomplete: "off" });
    const candidates = el("textarea", { id: "candidates", rows: "3", placeholder: "one a line; empty: the model writes the answer" });
    const values = () => ({ question: question.value, candidates: lines(candidates.value), top: 5 });
    fill(panel, this.form("Ask", "Answering …", "/api/try/ask", values, (found) => this.answers(found),
      field("Question", question), field("Answers to choose from", candidates)));
  }

  answers(found) {
    // Beam search compares probabilities by word, else the shortest answer would always win.
    const isByWord = found.answers.some(({ probability }, at) => at && probability > found.answers[at - 1].probability);
    return [el("h3", { text: found.ranked ? "Your answers, ranked: share of the probability" : "Answers, the model's choice first, and their probability" }),
      isByWord && el("p", { class: "soft small", text: "Ordered by the probability of each word, so that longer answers have a chance." }),
      el("ol", { class: "bars" }, found.answers.map((answer) => el("li", { dir: "auto" }, bar(answer.text || "(nothing)", answer.probability))))];
  }

  // Match.

  drawMatch() {
    const panel = this.panels.match;
    if (!this.given("filter")) { fill(panel, this.lacking("filter")); return; }
    const texts = el("textarea", { id: "texts", rows: "4", required: true, placeholder: "two dogs on a beach\na red car" });
    fill(panel, this.form("Match", "Matching …", "/api/try/match", () => ({ texts: lines(texts.value) }), (found) => this.matches(found),
      field("Texts, one a line", texts)));
  }

  matches(found) {
    const isCompared = found.matches.some((match) => match.itc !== null);
    return [el("h3", { text: `Match probability (ITM)${isCompared ? ", and similarity (ITC cosine)" : ""}` }),
      el("ol", { class: "bars" }, found.matches.map((match) => el("li", { dir: "auto" }, bar(match.text, match.itm),
        match.itc !== null && el("span", { class: "soft small number", text: `ITC ${match.itc.toFixed(3)}` }))))];
  }

  // Explain.

  drawExplain() {
    const panel = this.panels.explain;
    const kinds = [["match", "filter", "a text's match"], ["caption", "captioner", "the caption that is written"], ["answer", "vqa", "an answer"]].filter(([, role]) => this.given(role));
    if (kinds.length === 0) { fill(panel, this.lacking("filter")); return; }
    const what = el("select", { id: "what" }, kinds.map(([value, , text]) => el("option", { value, text })));
    const text = el("input", { type: "text", id: "explained", autocomplete: "off", placeholder: "a dog on a beach" });
    const question = el("input", { type: "text", id: "explained-question", autocomplete: "off", placeholder: "What is on the table?" });
    const answer = el("input", { type: "text", id: "explained-answer", autocomplete: "off", placeholder: "empty: the model's own" });
    const textField = field("Text", text), questionField = field("Question", question), answerField = field("Answer", answer);
    const adapt = () => {
      textField.hidden = what.value !== "match";
      questionField.hidden = answerField.hidden = what.value !== "answer";
      text.required = what.value === "match";
      question.required = what.value === "answer";
    };
    what.addEventListener("change", adapt);
    adapt();
    const values = () => ({ what: what.value, text: text.value, question: question.value, answer: answer.value });
    fill(panel, el("p", { class: "soft small", text: "Where the model looks for each word (Grad-CAM over cross-attention)." }),
      this.form("Explain", "Looking where the model looks …", "/api/try/explain", values, (found) => this.explained(found),
        field("What", what), textField, questionField, answerField));
  }

  explained(found) {
    this.heat = found;
    const name = found.answer !== undefined ? `“${found.answer}”` : null;
    const choices = [{ text: "all words", map: found.overall, peak: null }, ...found.tokens.map((text, place) => ({ text, map: found.maps[place], peak: found.peaks[place] }))];
    const group = el("div", { class: "chosen-words", role: "radiogroup", "aria-label": "Word whose map is shown" }, choices.map((choice, place) => el("label", { class: "pick" },
      el("input", { type: "radio", name: "word", class: "unseen", checked: place === 0, onchange: () => this.drawHeat(choice.map, found.colours) }),
      el("span", { class: "pick-face", dir: "auto" }, choice.text, choice.peak !== null && el("span", { class: "peak", "aria-hidden": "true", vars: { "--part": `${choice.peak * 100}%` } })))));
    const opacity = el("input", { type: "range", id: "opacity", min: "0", max: "1", step: "0.01", value: "0.5" });
    opacity.addEventListener("input", () => { this.canvas.style.opacity = opacity.value; });
    const gradient = `linear-gradient(90deg, ${found.colours.map(([r, g, b]) => `rgb(${r} ${g} ${b})`).join(", ")})`;
    this.drawHeat(choices[0].map, found.colours);
    this.canvas.style.opacity = opacity.value;
    const score = found.score.toFixed(2);
    const what = name ? `the answer ${name}: log-probability ${score}` : this.panels.explain.querySelector("#what").value === "caption" ? `the caption: log-probability ${score}` : `logit of the match: ${score}`;
    return [el("h3", { text: "Where it looks" }), group,
      el("p", { class: "soft small", text: "The line below a word: how strong its largest value is beside the other words'." }),
      el("div", { class: "scale" }, el("span", { class: "soft small", text: "nothing" }), el("span", { class: "ramp", role: "img", "aria-label": "Colours of the heat map, from nothing (dark violet) to the word's largest value (yellow)", vars: { "--ramp": gradient } }), el("span", { class: "soft small", text: "the word's largest" })),
      field("Opacity of the heat map", opacity), el("p", { class: "soft small", text: what })];
  }

  // A map covers the whole picture: the model sees it squashed to a square.
  drawHeat(map, colours) {
    if (!this.canvas) return;
    const rows = map.length, columns = map[0].length;
    const small = el("canvas", { width: String(columns), height: String(rows) });
    const pixels = new ImageData(columns, rows);
    map.flat().forEach((value, place) => {
      const at = value * (colours.length - 1), low = Math.floor(at), high = Math.min(low + 1, colours.length - 1);
      for (let part = 0; part < 3; part += 1) pixels.data[place * 4 + part] = colours[low][part] + (colours[high][part] - colours[low][part]) * (at - low);
      pixels.data[place * 4 + 3] = 255 * (0.45 + 0.55 * value);
    });
    small.getContext("2d").putImageData(pixels, 0, 0);
    this.canvas.width = 640;
    this.canvas.height = 640;
    const context = this.canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, 640, 640);
    this.canvas.hidden = this.tab !== "explain";
  }
}
