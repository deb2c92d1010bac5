// The room Jobs: long work on the collection. The same commands as in a terminal; each goes on where
// it was stopped, whoever started it.
import { Watch, count, el, empty, fill, get, notice, post, sheet, tellError } from "./page.js";
import { time } from "./runs.js";

const TITLES = { caption: "Caption pictures", capfilt: "CapFilt: caption and score", index: "Index for search" };
const STATES = { running: "running", finished: "finished", stopped: "stopped", failed: "failed", killed: "was killed" };
// What was given for the work comes before what could do it, too.
const ROLES = { captions: "captioner:", scores: "filter:", embeddings: "filter:" };
const EVERY = 1500;
const SELDOM = 8000;

export async function show(main, state) {
  await sheet("charts.css");
  if (!state.about.table) {
    fill(main, empty("No collection is open", "Start the studio with a table or a folder of pictures.", "openblip studio photos/"));
    return null;
  }
  const room = new Room(main);
  await room.start();
  return () => room.close();
}

class Room {
  constructor(main) {
    this.opened = new Map();
    this.forms = el("div", { class: "forms" });
    this.atWork = el("div", { class: "desk" });
    this.list = el("div", { class: "desk" });
    this.watch = new Watch(() => this.#poll(), EVERY);
    fill(main, el("header", { class: "head" }, el("h1", { text: "Jobs" }),
      el("p", { class: "soft", text: "Long work on this collection. A job goes on when you close this page, or the studio; stopped, it goes on where it was, from here or from a terminal." })),
    this.atWork, this.forms, this.list);
  }

  async start() {
    await this.#ask();
    await this.watch.now();
  }

  /** What may be started: an index that has been made, or a run that has ended, changes it. */
  async #ask() {
    const offer = await get("/api/jobs/forms");
    if (JSON.stringify(offer) === JSON.stringify(this.offer)) return;
    this.offer = offer;
    fill(this.forms, this.#caption(), !offer.is_folder && this.#capfilt(), this.#index());
  }

  close() {
    this.watch.close();
  }

  async #poll() {
    const told = await get("/api/jobs");
    if (this.watch.isClosed) return SELDOM;
    this.watch.answered();
    this.#show(told);
    const atWork = [...told.jobs.map((job) => job.state === "running"), ...told.seen.map((work) => work.is_running)];
    return atWork.some(Boolean) ? EVERY : SELDOM;
  }

  /** Do something, and show what has become of it. */
  async #act(path, values, told) {
    try {
      await post(path, values);
      notice(told);
      await this.watch.now();
    } catch (error) {
      tellError(error);
    }
  }

  #show({ jobs, older, folder, seen }) {
    const busy = document.activeElement?.dataset?.act;
    const states = jobs.map((job) => job.id + job.state).join();
    if (this.states && this.states !== states) this.#ask().catch(tellError);
    this.states = states;
    const running = jobs.filter((job) => job.state === "running");
    const ended = jobs.filter((job) => job.state !== "running");
    const others = (isRunning) => seen.filter((work) => work.is_running === isRunning).map((work) => this.#seen(work));
    const block = (title, items, ...more) => (items.length ? [el("h2", { text: title }), el("ul", { class: "jobs" }, items), ...more] : []);
    fill(this.atWork, block("At work", [...running.map((job) => this.#job(job)), ...others(true)]));
    fill(this.list, block("Ended", ended.map((job) => this.#job(job)), older > 0 && el("p", { class: "soft small", text: `${count(older)} older ones are in ${folder}.` })),
      block("What there is", others(false)));
    if (busy) document.querySelector(`[data-act="${busy}"]`)?.focus();
  }

  #job(job) {
    const { progress, state } = job;
    const details = el("details", { open: this.opened.get(job.id) ?? (state === "failed" || state === "killed"), ontoggle: () => this.opened.set(job.id, details.open) },
      el("summary", { text: "What it says" }), el("pre", { class: "log", text: job.lines.join("\n") || "nothing yet" }), el("p", { class: "small soft" }, "As in a terminal: ", el("code", { text: job.command })));
    return el("li", { class: "job" },
      el("header", {}, el("h3", { text: TITLES[job.kind] ?? job.kind }), el("span", { class: `state ${state}`, text: STATES[state] })),
      job.output && el("p", { class: "small soft", text: job.output }),
      state === "running" && bar(progress.done, progress.total, TITLES[job.kind]),
      progress.what && el("p", { class: "number" }, amount(progress.done, progress.total, progress.unit), state === "running" && [pace(progress.rate, progress.unit), left(progress.left)]),
      state === "running" && !progress.what && el("p", { class: "soft", text: "loading …" }),
      state !== "running" && el("p", { class: "small soft", text: job.lines.at(-1) ?? "it said nothing" }),
      details,
      el("div", { class: "actions" }, state === "running"
        ? el("button", { type: "button", "data-act": `stop-${job.id}`, text: "Stop", "aria-label": `Stop: ${TITLES[job.kind]}`, onclick: () => this.#act(`/api/jobs/${job.id}/stop`, {}, "Stopping: it finishes what it has begun.") })
        : el("button", { type: "button", "data-act": `again-${job.id}`, text: state === "finished" ? "Once more" : "Go on", "aria-label": `${state === "finished" ? "Once more" : "Go on"}: ${TITLES[job.kind]}`, onclick: () => this.#act(`/api/jobs/${job.id}/again`, {}, "Started.") })));
  }

  #seen(work) {
    const name = work.kind === "caption" ? `Captions in ${work.place.split("/").at(-1)}` : TITLES[work.kind];
    return el("li", { class: "job" },
      el("header", {}, el("h3", { text: name }), work.is_running && el("span", { class: "state running", text: "running elsewhere" })),
      work.is_running && bar(work.done, work.total, name),
      el("p", { class: "number" }, amount(work.done, work.total, "pictures"), pace(work.rate, "pictures"), left(work.seconds_left)),
      el("p", { class: "small soft", text: [work.place, work.note].filter(Boolean).join(" · ") }));
  }

  #caption() {
    const { output_folder: where } = this.offer;
    if (!where) return el("section", { class: "start" }, el("h2", { text: TITLES.caption }), el("p", { class: "soft", text: "This table is in an object store: caption it from the command line." }));
    return this.#form("caption", `The file goes into ${where}.`, [
      this.#models("model", "Model", "captions"), textField("output", "File (.jsonl, .csv, .txt, .json)", "captions.jsonl"),
      choice("method", "How words are chosen", this.offer.methods), number("num_captions", "Captions a picture", 10)]);
  }

  #capfilt() {
    return this.#form("capfilt", "Writes captions for the web rows, and scores every text. Adds columns; changes no row.", [
      this.#models("captioner", "Captioner", "captions"), this.#models("filter", "Filter", "scores"), number("num_captions", "Captions a picture", 10), number("processes", "Processes", 64)]);
  }

  #index() {
    const { index } = this.offer;
    const keep = index ? [["", `its own (${index})`]] : [];
    return this.#form("index", index ? "Embeds what is new or has changed." : "Embeds every picture, so that the collection can be searched.", [this.#models("model", "Model", "embeddings", keep)]);
  }

  #form(kind, about, fields) {
    const lacks = fields.some((one) => one.querySelector("select") && !one.querySelector("option:enabled"));
    const form = el("form", { class: "start", onsubmit: (event) => {
      event.preventDefault();
      const settings = {};
      for (const input of form.querySelectorAll("[name]")) {
        if (input.value !== "") settings[input.name] = input.type === "number" ? Number(input.value) : input.value;
      }
      this.#act("/api/jobs", { kind, settings }, "Started.");
    } }, el("h2", { text: TITLES[kind] }), el("p", { class: "soft small", text: about }),
    lacks ? el("p", { class: "soft", text: "No model is there that can do it: start the studio with --captioner, --filter or --runs, or leave them out for published ones." })
      : [fields, el("button", { type: "submit", class: "strong", text: "Start" })]);
    return form;
  }

  /** Those that were trained for it; the others are shown, so that nobody looks for them, and cannot be chosen. */
  #models(name, label, use, before = []) {
    const [able, others] = [true, false].map((isAble) => this.offer.models.filter((model) => model.uses.includes(use) === isAble).map((model) => model.name));
    able.sort((a, b) => b.startsWith(ROLES[use]) - a.startsWith(ROLES[use]));
    const made = choice(name, label, [...before, ...able]);
    if (others.length) made.querySelector("select").append(el("optgroup", { label: `Not trained for ${use}`, disabled: true }, others.map((text) => el("option", { text, disabled: true }))));
    return made;
  }
}

let fields = 0;

function field(label, input) {
  input.id = `job-field-${++fields}`;
  return el("div", { class: "field" }, el("label", { for: input.id, text: label }), input);
}

function choice(name, label, options, chosen = null) {
  return field(label, el("select", { name }, options.map((option) => {
    const [value, text] = Array.isArray(option) ? option : [option, option];
    return el("option", { value, text, selected: value === chosen });
  })));
}

const textField = (name, label, value) => field(label, el("input", { name, value, autocomplete: "off", spellcheck: "false" }));
const number = (name, label, max) => field(label, el("input", { name, type: "number", min: "1", max: String(max), value: "1", inputmode: "numeric" }));

function bar(done, total, name) {
  const share = total ? Math.min(done / total, 1) : 0;
  return el("div", { class: total ? "gauge" : "gauge unsure", role: "progressbar", "aria-label": name, "aria-valuemin": total ? "0" : null, "aria-valuemax": total ? "100" : null, "aria-valuenow": total ? String(Math.round(100 * share)) : null, vars: { "--share": String(share) } });
}

const amount = (done, total, unit) => `${count(done)}${total !== null && total !== undefined ? ` of ${count(total)}` : ""} ${(total ?? done) === 1 ? unit.replace(/s$/, "") : unit}`;
const pace = (rate, unit) => (rate > 0 ? ` · ${rate >= 10 ? Math.round(rate) : rate.toFixed(1)} ${unit}/s` : "");
const left = (seconds) => (seconds !== null && seconds !== undefined ? ` · ${time(seconds)} left` : "");
