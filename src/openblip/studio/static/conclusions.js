// What follows from the verdicts of a review: the certificate, curves over thresholds, agreement.
import { count, el, fill, plural, probability } from "./page.js";
import { Chart, look } from "./chart.js";

const LEVELS = [0.8, 0.85, 0.9, 0.95, 0.97, 0.99];

export class Conclusions {
  /** `params` of the address say what is asked for; `changed` is called when that is something else. */
  constructor(params, changed) {
    this.precision = Number(params.get("precision")) || 0.9;
    this.confidence = Number(params.get("confidence")) || 0.95;
    this.partly = params.get("partly") === "1";
    const share = (value) => `${Math.round(100 * value)} %`;
    this.curves = new Chart({ title: "Precision and recall", note: "with 95 % intervals", along: "threshold", height: 230, format: share, formatX: (x) => String(Number(x.toFixed(3))) });
    this.trust = new Chart({ title: "Calibration", note: "how often a text of this match probability (ITM) is right", along: "match probability", height: 190, format: share, formatX: (x) => String(Number(x.toFixed(3))) });
    const level = el("select", { id: "precision", onchange: () => { this.precision = Number(level.value); changed(); } },
      [...new Set([...LEVELS, this.precision])].sort().map((value) => el("option", { value: String(value), text: `${Number((100 * value).toFixed(2))} %`, selected: value === this.precision })));
    const partly = el("input", { type: "checkbox", id: "partly", checked: this.partly, onchange: () => { this.partly = partly.checked; changed(); } });
    /** The certificate, or what it lacks: shown beside the texts. */
    this.certificate = el("p", { class: "verdict-of-all", role: "status" });
    this.facts = el("div", { class: "findings small soft" });
    this.node = el("section", { class: "conclusions", hidden: true, "aria-label": "What follows from the verdicts" },
      el("h2", { text: "What follows" }),
      el("div", { class: "fields" }, el("div", { class: "field" }, el("label", { for: "precision", text: "Right among what is kept, at least" }), level), el("label", { class: "tick", for: "partly" }, partly, "A wrong detail counts as right")),
      el("div", { class: "axes" }, this.curves.node, this.trust.node), this.facts);
  }

  /** What decides how verdicts count. */
  get counted() { return this.partly ? { partly: "1" } : {}; }

  /** All that is asked for besides the verdicts. */
  get asked() { return { precision: this.precision, ...(this.confidence === 0.95 ? {} : { confidence: this.confidence }), ...this.counted }; }

  close() {
    this.curves.close();
    this.trust.close();
  }

  show({ certificate, estimates }) {
    this.node.hidden = false;
    fill(this.certificate, certificate ? sentence(certificate.told) : "A review of rejected texts alone says nothing of what is kept.");
    this.certificate.classList.toggle("good", certificate?.threshold !== null && certificate?.threshold !== undefined);
    const known = estimates.points.filter((point) => point.precision.value !== null);
    const series = [curveOf("precision", 2, known, (point) => point.precision)];
    const withRecall = estimates.points.filter((point) => point.recall && point.recall.value !== null);
    if (withRecall.length) series.push(curveOf("recall", 0, withRecall, (point) => point.recall));
    const marks = [{ x: estimates.current.threshold, text: `now ${estimates.current.threshold}` }];
    if (certificate && certificate.threshold !== null) marks.push({ x: certificate.threshold, text: "certified" });
    // Where scores lie close together, a scale up to 1 would show a stroke.
    const along = [...estimates.points.map((point) => point.threshold), ...marks.map((mark) => mark.x)];
    const [fromX, toX] = reach(along);
    this.curves.draw(series, { from: 0, to: 1, fromX, toX, marks });
    this.trust.draw([{ name: "right", look: look(4), points: stairs(estimates.isotonic, Math.max(...along, 0)) }], { from: 0, to: 1, fromX: 0, toX: 1, diagonal: true });
    fill(this.facts, facts(estimates).map((text) => el("p", { text })));
  }
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

const curveOf = (name, number, points, part) => ({
  name, look: look(number), points: points.map((point) => [point.threshold, part(point).value]),
  band: points.filter((point) => part(point).low !== null).map((point) => [point.threshold, part(point).low, part(point).high]),
});

/** From where to where an axis goes that shows these values: 0 to 1 if they take half of it. */
function reach(values) {
  const least = Math.min(...values, 0), most = Math.max(...values);
  if (least >= 0 && most > 0.5 && most <= 1) return [0, 1];
  return [least, most > least ? most : least + 1];
}

/** Steps as a line: each value holds until the next step, the last up to the largest score. */
function stairs(steps, most) {
  return steps.flatMap(([at, value], place) => (place ? [[at, steps[place - 1][1]], [at, value]] : [[at, value]]))
    .concat(steps.length && most > steps.at(-1)[0] ? [[most, steps.at(-1)[1]]] : []);
}

function facts(estimates) {
  const { current, agreement, calibration } = estimates;
  const told = [];
  const range = (found) => `${Math.round(100 * found.value)} % (95 %: ${Math.round(100 * found.low)} to ${Math.round(100 * found.high)})`;
  if (current.precision.value !== null) told.push(`At the current threshold ${current.threshold}: ${range(current.precision)} of what is kept is right; it keeps ${Math.round(100 * current.keeps)} %, ${plural(current.kept, "text")}.`);
  if (current.recall && current.recall.value !== null) told.push(`Of all right texts it keeps ${range(current.recall)}.`);
  if (calibration) told.push(`Calibration: temperature ${calibration.temperature.toFixed(2)}; expected error ${probability(calibration.ece_before)}, with it ${probability(calibration.ece_after)}.`);
  else if (estimates.not_calibrated && estimates.labels) told.push(`No calibration: ${estimates.not_calibrated.split(";")[0]}.`);
  if (agreement.texts > 0 && agreement.alpha !== null) told.push(`Agreement on ${plural(agreement.texts, "text")} (Krippendorff's alpha): ${agreement.alpha.toFixed(2)}; 1 is full agreement, 0 that of chance.`);
  for (const pair of agreement.pairs) if (pair.kappa !== null) told.push(`${pair.first} and ${pair.second}: kappa ${pair.kappa.toFixed(2)} on ${count(pair.texts)}.`);
  if (estimates.unsure) told.push(`${plural(estimates.unsure, "text")} nobody could judge, or reviewers are of two minds.`);
  return told;
}
