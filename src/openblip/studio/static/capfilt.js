// The room CapFilt: a threshold, what it keeps of each source, and what stands on either side.
//
// The studio tells how many texts are above each of a thousand thresholds, so that everything but
// the examples follows the slider without asking.
import { SCORES, copyable, count, el, empty, fill, get, imageUrl, noScores, note, plural, quoted, refresh, tell, tellError } from "./page.js";
import { fateWords } from "./collection.js";

const BARS = 60;
const EXAMPLES = {
  below: ["Just below", "The next that would be kept, if the threshold were lower."],
  above: ["Just above", "The first that would go, if the threshold were higher."],
  rejected: ["Surest rejections", "Farthest below. True texts among them are the filter's worst mistakes."],
  accepted: ["Surest acceptances", "Farthest above. Wrong texts among them are kept at any threshold."],
};
const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");

/** Texts above each threshold, of those that are above exactly n of them. */
function above(histogram) {
  const kept = new Array(histogram.length - 1);
  let sum = 0;
  for (let n = histogram.length - 1; n > 0; n -= 1) {
    sum += histogram[n];
    kept[n - 1] = sum;
  }
  return kept;
}

export async function show(main, state) {
  if (!state.about.table) {
    fill(main, empty("No collection is open", "Start the studio with a table.", "openblip studio pairs.lance"));
    return null;
  }
  const room = new CapFilt(main, state);
  fill(main, el("p", { class: "soft", role: "status", text: "Reading the scores …" }));
  await room.read();
  return () => room.close();
}

class CapFilt {
  constructor(main, state) {
    Object.assign(this, { main, state });
    const given = Number(state.params.get("threshold") ?? NaN);
    this.threshold = given >= 0 && given <= 1 ? given : state.about.threshold;
    this.source = state.params.get("source") === "synthetic" ? "synthetic" : "web";
    this.split = state.params.get("split") ?? "";
    this.score = state.params.get("score") ?? "";
    this.without = (state.params.get("without") ?? "").split(",").filter(Boolean);
  }

  close() {
    clearTimeout(this.timer);
    this.control?.abort();
  }

  async read() {
    const [found, rows] = await Promise.all([
      get("/api/capfilt", { split: this.split, score: this.score, without: this.without.join(",") }),
      get("/api/rows/about"),
    ]);
    this.found = found;
    this.rows = rows;
    this.split = found.split;
    this.score = found.score;
    if (!found.is_scored) {
      fill(this.main, noScores(this.state.about.table, found.commands.scores));
      return;
    }
    for (const source of found.sources) source.kept = source.histogram ? above(source.histogram) : null;
    for (const set of found.data_sets.shown) for (const own of Object.values(set.sources)) own.kept = above(own.histogram);
    if (!this.scored().some((source) => source.source === this.source)) this.source = this.scored()[0]?.source ?? "web";
    this.draw();
  }

  scored() {
    return this.found.sources.filter((source) => source.kept && source.texts);
  }

  /** Texts of a source that stay at the threshold; null where only the studio can tell. */
  keptOf(own) {
    const place = this.threshold * this.found.steps;
    const near = Math.round(place);
    return Math.abs(place - near) < 1e-6 ? own.kept[near] : null;
  }

  draw() {
    this.span = this.spanOfScores();
    // Over the scores that there are, as the histograms: the same place is the same threshold.
    const { begin, end } = this.span;
    const slider = el("input", { type: "range", id: "f-slider", min: String(begin), max: String(end), step: "1", class: "grow", "aria-label": "Threshold" });
    const number = el("input", { type: "number", id: "f-number", min: "0", max: "1", step: String(1 / this.found.steps), class: "short-number number" });
    slider.value = String(Math.round(this.threshold * this.found.steps));
    number.value = String(this.threshold);
    slider.addEventListener("input", () => {
      number.value = String(Math.min(Number(slider.value) / this.found.steps, 1));
      this.move(Number(number.value));
    });
    number.addEventListener("input", () => {
      const value = Number(number.value);
      if (number.value === "" || !(value >= 0 && value <= 1)) return;
      // What counts are known of: a thousandth.
      const rounded = Math.round(value * this.found.steps) / this.found.steps;
      slider.value = String(Math.round(rounded * this.found.steps));
      this.move(rounded);
    });
    number.addEventListener("change", () => { number.value = String(this.threshold); });
    this.charts = el("div", { class: "scores-all" });
    this.reasons = el("div", {});
    this.sets = el("div", {});
    this.commands = el("div", { class: "view-commands" });
    this.examples = el("div", { class: "example-rows", "aria-live": "polite" });
    fill(this.main,
      el("div", { class: "capfilt-head" }, el("h1", { text: "What the filter keeps" }),
        el("p", { class: "soft", text: `A text counts if ${SCORES[this.score] ? `its ${SCORES[this.score]}` : `its score ${this.score}`} is above the threshold. Moving it runs no model and changes nothing in the table.` })),
      el("div", { class: "slide-line" }, el("label", { for: "f-number", text: "Threshold" }), slider, number),
      el("div", { class: "fields" }, this.scoreField(), this.splitField(), this.withoutField()),
      this.narrow(), this.charts,
      el("section", {}, el("h2", { text: "Examples" }), this.sourceTabs(), this.examples),
      this.certificate(),
      el("section", { class: "side-by-side" }, this.reasons, this.sets),
      el("section", {}, el("h2", { text: "This view as a command" }), this.commands));
    this.drawCharts();
    this.update();
    this.askExamples(0);
  }

  scoreField() {
    if (this.found.scores.length < 2) return null;
    const select = el("select", { id: "f-score", onchange: () => { this.score = select.value; this.again(); } },
      this.found.scores.map((name) => el("option", { value: name, selected: name === this.score, text: SCORES[name] ?? name })));
    return el("div", { class: "field" }, el("label", { for: "f-score", text: "Score" }), select);
  }

  splitField() {
    const there = Object.entries(this.found.splits).filter(([, rows]) => rows);
    if (there.length < 2) return null;
    const select = el("select", { id: "f-split", onchange: () => { this.split = select.value; this.again(); } },
      there.map(([name, rows]) => el("option", { value: name, selected: name === this.split, text: `${name} (${plural(rows, "picture")})` })));
    return el("div", { class: "field" }, el("label", { for: "f-split", text: "Split" }), select);
  }

  withoutField() {
    if (!this.rows.without.length) return null;
    const boxes = this.rows.without.map((name) => el("label", { class: "checked-line" }, el("input", { type: "checkbox", value: name, checked: this.without.includes(name), onchange: () => {
      this.without = boxes.map((box) => box.firstChild).filter((box) => box.checked).map((box) => box.value);
      this.again();
    } }), ` ${name.replaceAll("_", " ")}`));
    return el("fieldset", { class: "field" }, el("legend", { class: "small soft", text: "Leave out" }), el("div", { class: "checked-lines" }, boxes));
  }

  async again() {
    this.remember();
    const focused = document.activeElement?.id;
    try {
      await this.read();
      if (focused) document.getElementById(focused)?.focus();
    } catch (error) {
      tellError(error);
    }
  }

  narrow() {
    const narrow = this.scored().filter((source) => source.is_narrow);
    if (!narrow.length) return null;
    return el("div", { class: "narrow", role: "note" }, el("h2", { text: narrow.length === this.scored().length ? "This filter separates nothing" : `It separates nothing among ${narrow[0].source} texts` }),
      narrow.map((source) => el("p", { text: `${source.spread}.` })));
  }

  certificate() {
    const { judged_texts: judged } = this.found;
    const review = this.state.about.rooms.some((room) => room.name === "review");
    return el("div", { class: "certify" }, el("h2", { text: "Can the threshold be trusted?" }),
      el("p", { class: "soft" }, judged
        ? [el("a", { href: "#collection?verdict=any", text: plural(judged, "text") }), ` of this table ${judged === 1 ? "has" : "have"} a verdict. The review says how much of what a threshold keeps is right, and how sure that is.`]
        : "Judge some texts near it, and you learn how much of what it keeps is right."),
      review ? el("p", {}, el("a", { class: "button", href: "#review", text: "Review texts" })) : copyable(`openblip capfilt review ${quoted(this.state.about.table.place)}`));
  }

  move(threshold) {
    this.threshold = threshold;
    this.update();
    this.askExamples(220);
  }

  remember() {
    const params = { threshold: String(this.threshold) };
    if (this.source !== "web") params.source = this.source;
    if (this.split && this.split !== "train") params.split = this.split;
    if (this.score !== this.found.scores[0]) params.score = this.score;
    if (this.without.length) params.without = this.without.join(",");
    note(params);
  }

  // What follows the slider.

  /** The range that the scores have, in thousandths, in bars that each have whole steps. */
  spanOfScores() {
    const scored = this.scored();
    if (!scored.length) return { begin: 0, width: 1, bars: this.found.steps, end: this.found.steps };
    const low = Math.min(1, ...scored.map((source) => source.lowest));
    const high = Math.max(low, ...scored.map((source) => source.highest));
    // A step more at either side, for the thresholds that keep all and nothing.
    const begin = Math.max(Math.floor(low * this.found.steps) - 1, 0);
    const last = Math.min(Math.ceil(high * this.found.steps) + 1, this.found.steps);
    const width = Math.max(Math.ceil((last - begin) / BARS), 1);
    const bars = Math.max(Math.ceil((last - begin) / width), 1);
    return { begin, width, bars, end: begin + bars * width };
  }

  drawCharts() {
    const scored = this.scored();
    const { begin, width, bars, end } = this.span;
    fill(this.charts, scored.map((source) => {
      const sums = new Array(bars).fill(0);
      // Scores at n are above n thresholds: between (n - 1) and n thousandths.
      source.histogram.forEach((number, n) => { sums[Math.min(Math.max(Math.floor((n - 1 - begin) / width), 0), bars - 1)] += number; });
      const most = Math.max(...sums, 1);
      source.bars = sums.map((sum, place) => el("span", { class: "spread-bar", vars: { "--tall": Math.sqrt(sum / most) }, title: `${count(sum)} from ${((begin + place * width) / this.found.steps).toFixed(3)}` }));
      source.line = el("span", { class: "spread-edge" });
      source.told = el("p", { class: "number kept-told" });
      source.meter = el("span", { class: "kept-fill" });
      return el("figure", { class: "scores-of" },
        el("figcaption", {}, el("b", { text: `${source.source} texts` })), source.told,
        el("div", { class: "kept-meter", "aria-hidden": "true" }, source.meter),
        el("div", { class: "spread", role: "img", "aria-label": source.spread }, source.bars, source.line),
        el("div", { class: "spread-ends small soft number", "aria-hidden": "true" }, el("span", { text: (begin / this.found.steps).toFixed(2) }), el("span", { text: `${SCORES[this.score] ?? this.score}; height: root of the count` }), el("span", { text: (end / this.found.steps).toFixed(2) })));
    }), this.peoples());
  }

  peoples() {
    const human = this.found.sources.find((source) => source.source === "human");
    if (!human?.texts) return null;
    const left = Object.values(human.rejected).reduce((sum, number) => sum + number, 0);
    return el("figure", { class: "scores-of" }, el("figcaption", {}, el("b", { text: "human texts" })),
      el("p", { class: "number kept-told" }, el("b", { text: count(human.texts - left) }), ` of ${count(human.texts)} count`),
      el("p", { class: "small soft", text: "They need no score." }));
  }

  update() {
    const place = this.threshold * this.found.steps;
    for (const source of this.scored()) {
      const kept = this.keptOf(source);
      fill(source.told, el("b", { text: count(kept) }), ` of ${count(source.texts)} stay · ${percent(kept, source.texts)}`);
      source.meter.style.setProperty("--part", source.texts ? kept / source.texts : 0);
      const { begin, width, end } = this.span;
      source.bars.forEach((bar, n) => bar.classList.toggle("is-left", begin + (n + 0.5) * width < place));
      source.line.style.setProperty("--at", Math.min(Math.max((place - begin) / (end - begin), 0), 1));
    }
    this.drawReasons();
    this.drawSets();
    const threshold = String(this.threshold);
    const { training, export: exported, report } = this.found.commands;
    fill(this.commands, [["Train on it", training], ["Write it for other programs", exported], ["A page of it", report]].map(([title, command]) =>
      el("div", { class: "field" }, el("span", { class: "small soft", text: title }), copyable(command.replace("THRESHOLD", threshold)))));
  }

  drawReasons() {
    const rows = [];
    for (const source of this.found.sources) {
      if (!source.texts) continue;
      const reasons = { ...source.rejected };
      if (source.kept) {
        const decided = source.texts - Object.values(source.rejected).reduce((sum, number) => sum + number, 0);
        reasons["below the threshold"] = decided - this.keptOf(source);
      }
      for (const [reason, number] of Object.entries(reasons)) if (number) rows.push([source.source, reason, number, source.texts]);
    }
    fill(this.reasons, el("h2", { text: "Why texts do not count" }), rows.length
      ? table(["source", "reason", "texts", "share"], rows.map(([source, reason, number, all]) => [source, this.reasonLink(source, reason), count(number), percent(number, all)]), 2)
      : el("p", { class: "soft", text: "All texts count." }));
  }

  reasonLink(source, fate) {
    // The room of rows has the match probability alone.
    if (this.score !== "itm") return fate;
    const params = new URLSearchParams({ source, fate, threshold: this.threshold, split: this.split });
    if (this.without.length) params.set("without", this.without.join(","));
    return el("a", { href: `#collection?${params}`, text: fate });
  }

  drawSets() {
    const { shown, num_more: more } = this.found.data_sets;
    if (!shown.length) { fill(this.sets); return; }
    const names = this.scored().map((source) => source.source);
    fill(this.sets, el("h2", { text: "Data sets" }),
      table(["data set", ...names.flatMap((name) => [`${name} kept`, "share"])], shown.map((set) => [
        set.name || "not named",
        ...names.flatMap((name) => {
          const own = set.sources[name];
          return own ? [`${count(this.keptOf(own))} of ${count(own.texts)}`, percent(this.keptOf(own), own.texts)] : ["–", "–"];
        })])),
      more ? el("p", { class: "small soft", text: `${plural(more, "smaller data set")} more` }) : null);
  }

  // Examples, asked for when the slider rests.

  sourceTabs() {
    const names = this.scored().map((source) => source.source);
    if (names.length < 2) return null;
    const buttons = names.map((name) => el("button", { type: "button", "aria-pressed": String(name === this.source), class: "toggle", text: `${name} texts`, onclick: () => {
      this.source = name;
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.textContent === `${name} texts`));
      this.askExamples(0);
    } }));
    return el("div", { class: "chips" }, buttons);
  }

  askExamples(wait) {
    clearTimeout(this.timer);
    this.control?.abort();
    this.timer = setTimeout(async () => {
      this.remember();
      this.control = new AbortController();
      try {
        const found = await get("/api/capfilt/examples", { threshold: this.threshold, source: this.source, split: this.split, score: this.score, without: this.without.join(","), count: 8 }, this.control.signal);
        if (found.mark !== this.found.mark) { await this.changed(); return; }
        this.drawExamples(found);
      } catch (error) {
        tellError(error);
      }
    }, wait);
  }

  /** Another process has changed the table: what is shown is of an older one. */
  async changed() {
    await refresh();
    await this.read();
    tell("The table has changed; it was read again.");
  }

  drawExamples(found) {
    this.digits = digitsBeside(this.threshold, found.below?.[0]?.text.itm, found.above?.[0]?.text.itm);
    fill(this.examples, Object.entries(EXAMPLES).map(([name, [title, told]]) => el("div", { class: "example-row" },
      el("h3", { text: title }), el("p", { class: "small soft", text: told }),
      found[name]?.length ? el("ul", { class: "example-cards" }, found[name].map((card) => this.card(card))) : el("p", { class: "soft", text: "There are none." }))));
  }

  card(card) {
    const { text } = card;
    const shape = card.width && card.height ? Math.min(Math.max(card.width / card.height, 0.6), 2.2) : 1.4;
    const params = new URLSearchParams({ row: card.row, threshold: this.threshold });
    return el("li", {}, el("a", { class: "example", href: `#collection?${params}`, "aria-label": `${this.score === "itm" ? "ITM" : this.score} ${text.itm.toFixed(this.digits)}: ${text.text}. ${fateWords(text.fate)}. Show row ${card.row}` },
      el("span", { class: "example-picture", vars: { "--shape": shape } }, el("img", { src: imageUrl(card.row, 360), alt: "", loading: "lazy" })),
      el("span", { class: `score-told number ${text.fate === "counts" ? "is-kept" : "is-left"}`, text: text.itm.toFixed(this.digits) }),
      el("span", { class: "cell-text", dir: "auto", text: text.text || "(empty)" })));
  }
}

/** As many digits as tell the scores on both sides of a threshold from it; but no more than a float32 has. */
function digitsBeside(threshold, below = -Infinity, above = Infinity) {
  let digits = 3;
  const shown = (value) => Number(value.toFixed(digits));
  while (digits < 9 && !(shown(below) <= threshold && shown(above) > threshold)) digits += 1;
  return digits;
}

/** A table; its first `words` columns are words, the others numbers. */
function table(header, rows, words = 1) {
  const side = (place) => (place < words ? "is-words" : null);
  return el("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": header.join(", ") }, el("table", {},
    el("thead", {}, el("tr", {}, header.map((name, place) => el("th", { scope: "col", class: side(place), text: name })))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, place) => (place
      ? el("td", { class: side(place) }, cell)
      : el("th", { scope: "row", dir: "auto", class: side(0) }, cell))))))));
}
