// The room Runs: what training runs are doing, their curves, and where they differ.
import { Watch, count, el, empty, fill, get, plural, sheet } from "./page.js";
import { Chart, look, short, swatch } from "./chart.js";

const TITLES = {
  loss: "Loss", itc: "Contrast (ITC)", itm: "Matching (ITM)", lm: "Language modelling (LM)", mlm: "Masked words (MLM)",
  lr: "Learning rate", grad_norm: "Norm of the gradient", pairs_per_second: "Pairs per second", temperature: "Temperature",
  utilisation: "Utilisation of the machine", loader_share: "Share of time spent waiting for data",
};
// These are set, not measured: smoothed they would be others.
const EXACT = new Set(["lr", "temperature"]);
const STATES = { running: "running", finished: "finished", interrupted: "stopped", failed: "failed", unknown: "no status" };
const EVERY = 2000;
const SELDOM = 10000;
const MOST_SHOWN_FIRST = 12;

export async function show(main, state) {
  await sheet("charts.css");
  if (!state.about.runs) {
    fill(main, empty("No training runs here", "Name a folder of runs when you start the studio. Their curves are shown while they train.", "openblip studio --runs runs/"));
    return null;
  }
  const room = new Room(main);
  await room.start();
  return () => room.close();
}

class Room {
  constructor(main) {
    this.rows = new Map();
    this.names = [];
    this.numbers = new Map();
    this.hidden = new Set();
    this.curves = new Map();
    this.after = "";
    this.about = { quantities: [], different: {}, events: [], names: [] };
    this.charts = new Map();
    this.visible = new Set();
    this.smoothing = stored("runs.smoothing", 0.6);
    this.log = stored("runs.log", false);
    this.watcher = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: "300px" });
    this.watch = new Watch(() => this.#poll(), EVERY);
    this.#build(main);
  }

  #build(main) {
    this.sum = el("p", { class: "soft" });
    this.list = el("ul", { class: "runs", "aria-label": "Runs" });
    this.field = el("div", { class: "quantities" });
    this.more = el("div", { class: "more" });
    const smooth = el("input", { type: "range", id: "smoothing", min: "0", max: "0.98", step: "0.01", value: String(this.smoothing), oninput: () => {
      this.smoothing = Number(smooth.value);
      keep("runs.smoothing", this.smoothing);
      told.textContent = this.smoothing.toFixed(2);
      this.#draw();
    } });
    const told = el("output", { class: "number small", for: "smoothing", text: this.smoothing.toFixed(2) });
    const log = el("input", { type: "checkbox", id: "log", checked: this.log, onchange: () => { this.log = log.checked; keep("runs.log", this.log); this.#draw(); } });
    const filter = el("input", { type: "search", id: "filter", placeholder: "part of a name", oninput: () => { this.filter = filter.value.trim().toLowerCase(); this.#list(); } });
    this.filter = "";
    fill(main,
      el("header", { class: "head" }, el("h1", { text: "Training runs" }), this.sum),
      el("div", { class: "runs-bench" },
        el("aside", { class: "side", "aria-label": "Which runs are shown" },
          el("div", { class: "fields" }, el("div", { class: "field grow" }, el("label", { for: "filter", text: "Filter" }), filter),
            el("button", { type: "button", class: "quiet", text: "All", onclick: () => this.#choose(true) }),
            el("button", { type: "button", class: "quiet", text: "None", onclick: () => this.#choose(false) })),
          this.list),
        el("div", { class: "desk" },
          el("div", { class: "fields controls" },
            el("div", { class: "field" }, el("label", { for: "smoothing" }, "Smoothing ", told), smooth),
            el("label", { class: "tick", for: "log" }, log, "Logarithmic scale")),
          this.field, this.more)));
  }

  async start() {
    await this.watch.now();
  }

  close() {
    this.watch.close();
    this.watcher.disconnect();
    for (const each of this.charts.values()) for (const chart of each.charts) chart.close();
  }

  async #poll() {
    const told = await get("/api/runs", { after: this.after });
    if (this.watch.isClosed) return SELDOM;
    this.watch.answered();
    await this.#take(told);
    await Promise.all([...this.visible].map((quantity) => this.#fetch(quantity)));
    if (this.watch.isClosed) return SELDOM;
    this.#list();
    const isBusy = told.reading > 0 || [...this.rows.values()].some((row) => row.state === "running");
    return told.reading > 0 ? 300 : isBusy ? EVERY : SELDOM;
  }

  async #take(told) {
    this.after = told.after;
    this.problem = told.problem;
    this.reading = told.reading;
    const isOther = told.names.join("\n") !== this.names.join("\n");
    this.names = told.names;
    for (const name of told.names) {
      if (this.numbers.has(name)) continue;
      // A hundred curves at once say nothing: the first are shown, the others can be.
      if (this.numbers.size >= MOST_SHOWN_FIRST) this.hidden.add(name);
      this.numbers.set(name, this.numbers.size);
    }
    for (const row of told.rows) this.rows.set(row.name, row);
    for (const name of this.rows.keys()) if (!told.names.includes(name)) this.rows.delete(name);
    if (isOther || told.rows.length) {
      this.about = await get("/api/runs/about");
      if (!this.watch.isClosed) this.#arrange();
    }
  }

  async #fetch(quantity) {
    const own = this.curves.get(quantity) ?? { after: "", runs: new Map() };
    this.curves.set(quantity, own);
    const told = await get("/api/runs/curves", { quantity, after: own.after });
    if (this.watch.isClosed) return;
    own.after = told.after;
    for (const [name, kinds] of Object.entries(told.curves)) {
      if (kinds.anew || !own.runs.has(name)) own.runs.set(name, { train: [], validation: [] });
      for (const kind of ["train", "validation"]) {
        if (!kinds[kind]) continue;
        const [first, steps, values] = kinds[kind];
        own.runs.get(name)[kind].splice(first, Infinity, ...steps.map((step, place) => [step, values[place]]));
      }
    }
    if (Object.keys(told.curves).length || !own.isDrawn) this.#draw(quantity);
    own.isDrawn = true;
  }

  #seen(entries) {
    let isNew = false;
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) this.visible.delete(target.dataset.quantity);
      else if (!this.visible.has(target.dataset.quantity)) { this.visible.add(target.dataset.quantity); isNew = true; }
    }
    if (isNew) this.watch.soon(0);
  }

  /** One section a quantity, in it one chart for each group of runs that share an axis. */
  #arrange() {
    for (const { name, axes } of this.about.quantities) {
      const key = JSON.stringify(axes.map((axis) => axis.label));
      const known = this.charts.get(name);
      if (known?.key === key) { known.axes = axes; continue; }
      if (known) for (const chart of known.charts) chart.close();
      const section = known?.section ?? el("section", { class: "quantity", "data-quantity": name, "aria-label": TITLES[name] ?? name });
      const title = TITLES[name] ?? name;
      const made = axes.map((axis) => new Chart({ title: axes.length > 1 ? `${title} · ${axis.label}` : title, along: "step", formatX: (x) => count(Math.round(x)), height: name === "loss" ? 260 : 190 }));
      fill(section, axes.length > 1 && el("p", { class: "soft small", text: `${title}: ${plural(axes.length, "group")} whose values mean different things, each on an axis of its own.${axes.some((axis) => axis.label.includes("vocabulary")) ? " The digits tell vocabularies apart." : ""}` }),
        el("div", { class: "axes" }, made.map((chart) => chart.node)));
      if (!known) { this.field.append(section); this.watcher.observe(section); }
      this.charts.set(name, { key, axes, charts: made, section });
      this.#draw(name);
    }
    this.#more();
  }

  #draw(only = null) {
    for (const [quantity, { axes, charts }] of this.charts) {
      if (only && quantity !== only) continue;
      const runs = this.curves.get(quantity)?.runs ?? new Map();
      axes.forEach((axis, place) => {
        const shown = axis.runs.filter((name) => !this.hidden.has(name));
        const series = shown.map((name) => ({
          name, look: look(this.numbers.get(name) ?? 0), points: runs.get(name)?.train ?? [], dots: runs.get(name)?.validation ?? [],
          isStrong: name === this.pointed, isFaint: this.pointed && name !== this.pointed,
        }));
        charts[place].draw(series, { smoothing: EXACT.has(quantity) ? 0 : this.smoothing, log: this.log });
      });
    }
  }

  #list() {
    const rows = [...this.rows.values()];
    const running = rows.filter((row) => row.state === "running").length;
    const damaged = rows.filter((row) => row.damage).length;
    const parts = [plural(this.names.length, "run"), `${running} running`];
    if (damaged) parts.push(`${damaged} cannot be read`);
    if (this.reading) parts.push(`reading ${this.reading} …`);
    this.sum.textContent = this.problem ?? parts.join(" · ");
    const shown = this.names.filter((name) => name.toLowerCase().includes(this.filter));
    const held = document.activeElement?.id;
    fill(this.list, shown.map((name) => this.#row(this.rows.get(name) ?? { name })));
    if (held && held.startsWith("run-")) document.getElementById(held)?.focus();
  }

  #row(row) {
    const { name } = row;
    const number = this.numbers.get(name) ?? 0;
    const id = `run-${number}`;
    if (row.damage) {
      return el("li", { class: "run damaged" }, el("span", { class: "name", text: name }), el("p", { class: "small fault", text: `Cannot be read: ${row.damage}` }));
    }
    const box = el("input", { type: "checkbox", id, checked: !this.hidden.has(name), onchange: () => {
      if (box.checked) this.hidden.delete(name); else this.hidden.add(name);
      this.#draw();
    } });
    const share = row.total_steps ? Math.min(row.step / row.total_steps, 1) : 0;
    const facts = [
      row.loss !== null && `loss ${short(row.loss)}`,
      row.validation !== null && `validation ${short(row.validation)}`,
      row.pairs_per_second !== null && `${short(row.pairs_per_second)} pairs/s`,
      row.num_parameters && `${short(row.num_parameters)} weights`,
      row.rewinds > 0 && plural(row.rewinds, "rewind"), row.alarms > 0 && plural(row.alarms, "alarm"),
      row.num_odd > 0 && `${plural(row.num_odd, "line")} of its metrics cannot be read`,
    ].filter(Boolean);
    const isTold = row.state === "failed" || row.state === "interrupted" || row.state === "unknown";
    const point = (on) => () => { this.pointed = on && !this.hidden.has(name) ? name : null; this.#draw(); };
    return el("li", { class: "run", onpointerenter: (event) => event.pointerType === "mouse" && point(true)(), onpointerleave: (event) => event.pointerType === "mouse" && point(false)() },
      el("label", { for: id, class: "title" }, box, swatch(look(number)), el("span", { class: "name", text: name }), el("span", { class: `state ${row.state}`, text: STATES[row.state] ?? "…" })),
      el("div", { class: "gauge", role: "progressbar", "aria-label": `${name}: steps done`, "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(share * 100)), vars: { "--share": String(share) } }),
      el("p", { class: "small number" }, `step ${count(row.step ?? 0)}${row.total_steps ? ` of ${count(row.total_steps)}` : ""}`, row.seconds_left !== null && row.seconds_left !== undefined && ` · ${time(row.seconds_left)} left`),
      el("p", { class: "small soft number", text: [row.task, ...facts].join(" · ") }),
      isTold && el("p", { class: "small soft", text: row.reason }));
  }

  #choose(all) {
    for (const name of this.names) {
      if (!name.toLowerCase().includes(this.filter)) continue;
      if (all) this.hidden.delete(name); else this.hidden.add(name);
    }
    this.#list();
    this.#draw();
  }

  #more() {
    const { names, different, events, events_left_out: left } = this.about;
    const fields = Object.keys(different);
    const parts = [];
    if (fields.length) {
      parts.push(el("h2", { text: "Where their recipes differ" }), table(...(names.length > 6
        ? [["run", ...fields], names.map((name, place) => [name, ...fields.map((field) => different[field][place])])]
        : [["field", ...names], fields.map((field) => [field, ...different[field]])])));
    } else if (names.length > 1) {
      parts.push(el("h2", { text: "Where their recipes differ" }), el("p", { class: "soft", text: "Nowhere: they are repetitions." }));
    }
    if (events.length) {
      parts.push(el("h2", { text: "What happened" }), left > 0 && el("p", { class: "soft", text: `The last ${events.length} of ${count(events.length + left)}.` }),
        table(["run", "step", "what", ""], events.map((event) => [event.run, count(event.step), event.what, event.text])));
    }
    fill(this.more, parts);
  }
}

function table(header, rows) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${header[0]}` }, el("table", {},
    el("thead", {}, el("tr", {}, header.map((cell) => el("th", { scope: "col", text: cell })))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, place) => el(place ? "td" : "th", place ? { text: cell } : { scope: "row", text: cell })))))));
}

/** A time for people. */
export function time(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

function stored(name, other) {
  try { return JSON.parse(localStorage.getItem(name)) ?? other; } catch { return other; }
}

function keep(name, value) {
  try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* a browser that keeps nothing */ }
}
