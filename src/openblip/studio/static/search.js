// The room Search: what a picture shall show becomes a query, and what was found a mosaic.
import { copyable, count, el, empty, fill, get, go, note, plural, post, probability, quoted, refresh, tell, tellError, waiting } from "./page.js";
import { taking, tile, view } from "./pictures.js";

const WATCH_MS = 3000;

export async function show(main, state) {
  const table = state.about.table;
  if (!table) {
    fill(main, empty("No collection is open", "Start the studio with a folder of pictures or a pair table.", "openblip studio photos/"));
    return undefined;
  }
  const room = new Search(main, state);
  await room.start();
  return () => room.stop();
}

class Search {
  constructor(main, state) {
    this.main = main;
    this.state = state;
    const params = state.params;
    const weights = params.getAll("weight").map(Number);
    this.terms = params.getAll("text").map((text, place) => ({ kind: "and", text, weight: weights[place] || 1 }));
    if (this.terms.length === 0) this.terms.push({ kind: "and", text: "", weight: 1 });
    this.terms.push(...params.getAll("not").map((text) => ({ kind: "not", text, weight: 1 })));
    this.like = params.get("like");
    this.picture = null;
    this.threshold = Number(params.get("threshold") ?? state.about.threshold);
    this.found = null;
    this.under = null;
  }

  async start() {
    this.first = el("input", { type: "search", class: "first", autocomplete: "off", enterkeyhint: "search",
      placeholder: "What shall the picture show?", "aria-label": "What shall the picture show?", value: this.terms[0].text,
      oninput: () => { this.terms[0].text = this.first.value; } });
    this.pictures = taking("Picture", (file) => { this.picture = file; this.like = null; this.drawTerms(); this.search(); });
    this.more = el("div", { class: "terms" });
    this.where = el("input", { type: "text", spellcheck: "false", autocomplete: "off", placeholder: "split = 'test' and width > 1000", value: this.state.params.get("where") ?? "", id: "where-filter" });
    this.k = el("select", { id: "k" }, [24, 48, 96, 200].map((k) => el("option", { value: String(k), text: String(k), selected: String(k) === (this.state.params.get("k") ?? "48") })));
    this.options = el("div", { class: "fields", id: "options", hidden: !this.where.value },
      el("div", { class: "field grow" }, el("label", { for: "where-filter", text: "Only rows that fulfil (SQL)" }), this.where),
      el("div", { class: "field" }, el("label", { for: "k", text: "Pictures" }), this.k));
    const form = el("form", { class: "search", role: "search", onsubmit: (event) => { event.preventDefault(); this.search(); } },
      el("h1", { class: "unseen", text: "Search" }),
      el("div", { class: "ask" }, this.first, this.pictures.button, el("button", { class: "strong", text: "Search" })),
      this.more, this.options);
    this.head = el("div", { class: "head" });
    this.list = el("ul", { class: "mosaic found" });
    this.begin = el("div", {});
    fill(this.main, form, this.head, this.list, this.begin);
    this.drawTerms();
    if (!this.state.about.table.indexed) {
      form.inert = true;
      form.classList.add("asleep");
      this.drawUnindexed();
      this.watch = setInterval(() => this.watchIndex(), WATCH_MS);
    } else if (this.isAsked()) this.search();
    else if (matchMedia("(hover: hover)").matches) this.first.focus({ preventScroll: true });
    if (!this.isAsked() || !this.state.about.table.indexed) await this.drawSample();
  }

  stop() {
    this.hasStopped = true;
    clearInterval(this.watch);
    this.under?.abort();
    this.pictures.stop();
    this.close?.();
  }

  isAsked() {
    return this.terms.some((term) => term.kind === "and" && term.text.trim()) || this.like !== null || this.picture !== null;
  }

  // Everything behind the first text: further ones, what they count, and what it shall look like.
  drawTerms() {
    const several = this.terms.filter((term) => term.kind === "and").length > 1;
    const parts = this.terms.slice(1).map((term) => this.pill(term, several));
    if (several) parts.unshift(el("span", { class: "pill" }, el("span", { class: "soft", text: "first text" }), this.weight(this.terms[0])));
    if (this.like !== null) parts.push(this.token(`similar to row ${this.like}`, () => { this.like = null; }));
    if (this.picture !== null) parts.push(this.token("similar to your picture", () => { this.picture = null; }));
    const add = (kind, label) => el("button", { type: "button", class: "quiet", text: label, onclick: () => {
      this.terms.push({ kind, text: "", weight: 1 });
      this.drawTerms();
      [...this.more.querySelectorAll(".pill input[type=text]")].at(-1).focus();
    } });
    const filter = el("button", { type: "button", class: "quiet", text: "Filter", "aria-controls": "options", "aria-expanded": String(!this.options.hidden), onclick: () => {
      this.options.hidden = !this.options.hidden;
      filter.setAttribute("aria-expanded", String(!this.options.hidden));
    } });
    fill(this.more, parts, add("and", "+ and"), add("not", "− but not"), filter);
  }

  pill(term, several) {
    const name = term.kind === "and" ? "and" : "not";
    const input = el("input", { type: "text", value: term.text, "aria-label": term.kind === "and" ? "It shall show this too" : "It shall not show this",
      placeholder: term.kind === "and" ? "a beach" : "a ball", oninput: () => { term.text = input.value; } });
    return el("span", { class: `pill ${name}` }, el("span", { class: "kind", text: name }), input,
      several && term.kind === "and" && this.weight(term), this.remove(name === "and" ? "this text" : "this exclusion", () => {
        this.terms.splice(this.terms.indexOf(term), 1);
      }));
  }

  weight(term) {
    const input = el("input", { type: "number", min: "0.1", max: "10", step: "0.1", value: String(term.weight), "aria-label": "How much it counts (weight)",
      title: "How much it counts: the exponent of its probability", oninput: () => { term.weight = Number(input.value) || 1; } });
    return el("span", { class: "weight" }, "×", input);
  }

  token(text, forget) {
    return el("span", { class: "pill" }, el("span", { text }), this.remove(text, forget));
  }

  remove(what, forget) {
    return el("button", { type: "button", class: "quiet small", "aria-label": `Remove ${what}`, text: "✕", onclick: () => {
      forget();
      this.drawTerms();
      if (this.isAsked()) this.search();
    } });
  }

  asked() {
    const texts = this.terms.filter((term) => term.kind === "and" && term.text.trim());
    return {
      texts: texts.map((term) => term.text.trim()),
      weights: texts.some((term) => term.weight !== 1) ? texts.map((term) => term.weight) : [],
      without: this.terms.filter((term) => term.kind === "not" && term.text.trim()).map((term) => term.text.trim()),
      like: this.like === null ? null : Number(this.like),
      where: this.where.value.trim(),
      k: Number(this.k.value),
      threshold: this.threshold,
    };
  }

  noteAsked(asked) {
    const params = [...asked.texts.map((text) => ["text", text]), ...asked.weights.map((weight) => ["weight", String(weight)]),
      ...asked.without.map((text) => ["not", text])];
    if (asked.like !== null) params.push(["like", String(asked.like)]);
    if (asked.where) params.push(["where", asked.where]);
    if (asked.k !== 48) params.push(["k", String(asked.k)]);
    if (asked.threshold !== this.state.about.threshold) params.push(["threshold", String(asked.threshold)]);
    note(params);
  }

  async search() {
    if (!this.isAsked()) {
      tell("Write what the picture shall show, or give a picture.");
      return;
    }
    this.under?.abort();
    const mine = this.under = new AbortController();
    const asked = this.asked();
    this.noteAsked(asked);
    this.main.setAttribute("aria-busy", "true");
    this.list.classList.add("waiting");
    try {
      const found = await waiting("Searching …", () => post("/api/search", asked, this.picture, mine.signal));
      if (mine !== this.under) return;
      this.found = found;
      this.state.about.table.mark = found.mark;
      fill(this.begin);
      this.drawFound();
      tell((found.warnings ?? []).join(" "));
    } catch (error) {
      if (mine === this.under) tellError(error);
    } finally {
      if (mine === this.under) {
        this.main.removeAttribute("aria-busy");
        this.list.classList.remove("waiting");
      }
    }
  }

  drawFound() {
    const { hits } = this.found;
    const isMatched = hits.some((hit) => hit.itm !== null);
    this.title = el("h2", {});
    const how = el("p", { class: "soft small", title: this.found.told, text: this.how(hits) });
    const slider = el("input", { type: "range", id: "threshold", min: "0", max: "1", step: "0.01", value: String(this.threshold) });
    const shown = el("output", { class: "number", for: "threshold" });
    slider.addEventListener("input", () => { this.threshold = Number(slider.value); dim(); });
    slider.addEventListener("change", () => this.noteAsked(this.asked()));
    const items = hits.map((hit, place) => this.hit(hit, place));
    const dim = () => {
      shown.textContent = this.threshold.toFixed(2);
      let above = 0;
      hits.forEach((hit, place) => {
        const isBelow = hit.itm !== null && hit.itm < this.threshold;
        if (hit.itm !== null && !isBelow) above += 1;
        items[place].classList.toggle("below", isBelow);
        items[place].querySelector(".picture").setAttribute("aria-label", this.label(hit, isBelow));
      });
      this.list.classList.toggle("faint", above === 0);
      this.title.textContent = this.summary(hits, isMatched, above);
    };
    fill(this.head, el("div", { role: "status" }, this.title, how), isMatched
      ? el("div", { class: "threshold" }, el("label", { for: "threshold", text: "match probability (ITM) at least" }), slider, shown)
      : hits.length > 0 && el("p", { class: "soft small", text: "Compared by similarity (ITC cosine) alone, which does not tell when nothing fits." }));
    fill(this.list, items);
    dim();
  }

  how(hits) {
    const { seconds, matched, cached, unreadable } = this.found;
    const parts = [`${plural(hits.length, "picture")} in ${seconds.toFixed(1)} s`];
    if (matched) parts.push(`${count(matched)} compared with the text${cached ? `, ${count(cached)} from the cache` : ""}`);
    if (unreadable) parts.push(`${count(unreadable)} cannot be read: bring the index up to date (openblip index update)`);
    return parts.join("; ");
  }

  summary(hits, isMatched, above) {
    if (hits.length === 0) return "Nothing found: no row fulfils what was asked.";
    if (!isMatched) return `The nearest ${plural(hits.length, "picture")}`;
    if (above === 0) return `Nothing found above ${this.threshold.toFixed(2)}; nearest:`;
    return `${plural(above, "picture")} found`;
  }

  label(hit, isBelow) {
    const told = hit.itm === null ? `similarity ${hit.itc.toFixed(2)}` : `match probability ${probability(hit.itm)}`;
    return `${hit.captions[0] ?? hit.id}, ${told}${isBelow ? ", below the threshold" : ""}`;
  }

  hit(hit, place) {
    const badge = el("span", { class: "badge number", "aria-hidden": "true", text: hit.itm === null ? `ITC ${hit.itc.toFixed(2)}` : probability(hit.itm) });
    const similar = el("button", { type: "button", class: "corner", title: "Find similar pictures", "aria-label": `Find pictures similar to ${hit.id}`, text: "≈", onclick: () => this.similar(hit) });
    return tile(hit, this.label(hit, false), () => {
      this.close = view(this.found.hits, place, (one, close) => this.actions(one, close));
    }, badge, similar);
  }

  actions(hit, close) {
    const tries = this.state.about.rooms.some((room) => room.name === "try");
    return [
      this.state.about.table.indexed && el("button", { type: "button", text: "Find similar", onclick: () => { close(); this.similar(hit); } }),
      tries && el("button", { type: "button", text: "Try models on it", onclick: () => { close(); go("try", { row: hit.row }); } }),
    ];
  }

  similar(hit) {
    this.terms = [{ kind: "and", text: "", weight: 1 }];
    this.first.value = "";
    this.picture = null;
    this.like = String(hit.row);
    this.drawTerms();
    scrollTo({ top: 0 });
    this.search();
  }

  drawUnindexed() {
    const table = this.state.about.table;
    const kind = table.kind === "folder" ? "folder" : "table";
    const model = this.state.about.matches_with;
    fill(this.head, el("div", { class: "empty" },
      el("h2", { text: `This ${kind} has no index yet` }),
      el("p", { text: `To search, every picture is looked at once (${plural(table.rows, "picture")}). Run this in a terminal; this page goes on by itself when it is done:` }),
      copyable(`openblip index build ${quoted(table.place)}${model ? ` --model ${quoted(model)}` : ""}`),
      this.state.about.rooms.some((room) => room.name === "jobs") && el("p", {}, "or start it under ", el("a", { href: "#jobs", text: "Jobs" }), ".")));
  }

  // Until somebody has made the index, in a terminal or on this page.
  async watchIndex() {
    try {
      await refresh();
    } catch {
      return; // asked again in a moment
    }
    if (!this.state.about.table.indexed || this.hasStopped) return;
    this.stop();
    go("search", this.state.params, true);
  }

  async drawSample() {
    try {
      const { rows } = await get("/api/sample", { count: 40 });
      const items = rows.map((row, place) => tile(row, row.id, () => {
        this.close = view(rows, place, (one, close) => this.actions(one, close));
      }));
      if (this.found === null) {
        fill(this.begin, el("h2", { class: "soft", text: `From all over ${plural(this.state.about.table.rows, "picture")}` }), el("ul", { class: "mosaic" }, items));
      }
    } catch (error) {
      tellError(error);
    }
  }
}
