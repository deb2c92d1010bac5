// Curves, drawn by hand as SVG: axes, a legend that has values, and a place along the axis that the
// pointer or the arrow keys move.
//
// A chart is drawn at the width that it has, so that its letters keep their size on a phone.
import { el, fill } from "./page.js";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["blue", "orange", "green", "red", "violet", "teal", "pink", "brown"];
const DASHES = ["none", "7 3", "2 3", "9 3 2 3"];
const LEFT = 52;
const BOTTOM = 22;
const MOST_TOLD = 10;
let charts = 0;

/** The look of the curve of a number: a colour, and behind eight of them another dash. */
export function look(number) {
  return { colour: `var(--${COLOURS[number % COLOURS.length]})`, dash: DASHES[Math.floor(number / COLOURS.length) % DASHES.length] };
}

/** A small line as the curve is drawn, for lists. */
export function swatch(own) {
  return svg("svg", { class: "swatch", viewBox: "0 0 22 10", width: 22, height: 10, "aria-hidden": "true" },
    svg("line", { x1: 0, x2: 22, y1: 5, y2: 5, stroke: own.colour, "stroke-width": 3, "stroke-dasharray": own.dash }));
}

export function svg(tag, props = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) if (value !== null && value !== undefined) node.setAttribute(name, value);
  node.append(...children.flat());
  return node;
}

/** A number for people, short. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return `${trimmed(value / 1e9)}G`;
  if (size >= 1e6) return `${trimmed(value / 1e6)}M`;
  if (size >= 1e4) return `${trimmed(value / 1e3)}k`;
  if (size > 0 && size < 1e-3) return value.toExponential(1).replace("e-", "e−");
  return trimmed(value);
}

const trimmed = (value) => String(Number(value.toPrecision(4)));

/** The exponential mean of [x, y] points, without the pull of its start towards zero. */
export function smoothed(points, weight) {
  if (!weight) return points;
  let total = 0;
  let share = 0;
  return points.map(([x, y]) => {
    total = weight * total + (1 - weight) * y;
    share = weight * share + (1 - weight);
    return [x, total / share];
  });
}

/** About so many round numbers, the first at most `low` and the last at least `high`. */
export function ticks(low, high, wanted) {
  // Equal but for rounding is equal: marks so close would be one and the same.
  if (!(high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high)))) { high = low + (Math.abs(low) || 1) * 0.1; }
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const first = Math.floor(low / size + 1e-9);
  const last = Math.ceil(high / size - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, number) => Number(((first + number) * size).toPrecision(12)));
}

function logTicks(low, high) {
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const steps = last - first > 4 ? [1] : last - first > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  const all = [];
  for (let power = first; power <= last; power += 1) for (const step of steps) all.push(Number((step * 10 ** power).toPrecision(3)));
  const inside = all.filter((value) => value >= low && value <= high);
  return [all.filter((value) => value < low).pop(), ...inside, all.find((value) => value > high)].filter((value) => value !== undefined);
}

/**
 * A chart. `about`: `title`, `along` (what the axis counts), `height`, `format` and `formatX` of
 * values. `draw(series, options)` shows series of `{name, look, points, dots, band}`; points are
 * [x, y], a band [x, low, high]. Options: `smoothing`, `log`, `from` and `to` of the values' axis,
 * `fromX` and `toX`, `marks` [{x, text}], `diagonal`.
 */
export class Chart {
  constructor(about) {
    this.about = { along: "step", height: 220, format: short, formatX: (x) => short(x), ...about };
    this.series = [];
    this.options = {};
    this.at = null;
    this.clip = `clip-${++charts}`;
    this.picture = svg("svg", { role: "presentation", "aria-hidden": "true" });
    this.readout = el("div", { class: "readout" });
    this.field = el("div", {
      class: "plot", tabindex: "0", role: "slider", "aria-label": `${about.title}, by ${this.about.along}`,
      "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0", "aria-valuetext": "nothing yet",
      onpointermove: (event) => this.#follow(event), onpointerdown: (event) => this.#follow(event),
      onpointerleave: (event) => { if (event.pointerType === "mouse") this.#move(null); },
      onkeydown: (event) => this.#press(event), onblur: () => this.#move(null),
    }, this.picture);
    this.node = el("figure", { class: "curve-chart" }, el("figcaption", {}, el("span", { text: about.title }), about.note && el("span", { class: "soft small", text: about.note })), this.field, this.readout);
    this.observer = new ResizeObserver(() => this.#redraw());
    this.observer.observe(this.field);
  }

  /** Let the chart go. */
  close() { this.observer.disconnect(); }

  draw(series, options = {}) {
    this.series = series;
    this.options = options;
    this.#redraw();
  }

  #redraw() {
    const width = this.field.clientWidth;
    if (!width) return;
    const { smoothing = 0, log = false } = this.options;
    const isShown = ([, y]) => Number.isFinite(y) && (!log || y > 0);
    this.curves = this.series.map((own) => {
      const raw = own.points.filter(isShown);
      return { ...own, raw, line: smoothed(raw, smoothing), dots: (own.dots ?? []).filter(isShown), band: own.band ?? [] };
    });
    this.#scale(width, log);
    const { height } = this.about;
    this.cursor = svg("g", { class: "cursor" });
    this.picture.setAttribute("width", width);
    this.picture.setAttribute("height", height + BOTTOM);
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height + BOTTOM}`);
    this.picture.replaceChildren(
      svg("clipPath", { id: this.clip }, svg("rect", { x: LEFT - 1, y: 0, width: Math.max(width - LEFT + 1, 1), height: height + 1 })),
      ...this.#axes(width), svg("g", { "clip-path": `url(#${this.clip})` }, this.curves.map((own) => this.#curve(own, smoothing))),
      ...this.#marks(), this.cursor);
    this.#move(this.at);
  }

  #scale(width, log) {
    // A single outlier shall not flatten the rest: of the values themselves most decide the range.
    const all = this.curves.flatMap((own) => [...own.line, ...own.dots, ...middle(own.raw)]);
    const bands = this.curves.flatMap((own) => own.band.flatMap(([, low, high]) => [low, high]));
    const ys = all.map(([, y]) => y).concat(bands);
    const xs = all.map(([x]) => x);
    const low = this.options.from ?? least(ys, 0);
    const high = this.options.to ?? most(ys, 1);
    this.xs = [...new Set(xs)].sort((a, b) => a - b);
    this.fromX = this.options.fromX ?? 0;
    this.toX = this.options.toX ?? (most(xs, 1) || 1);
    this.values = log && ys.length ? logTicks(low, high) : ticks(low, high, 4);
    const form = log && ys.length ? Math.log : (value) => value;
    const [bottom, top] = [form(this.values[0]), form(this.values.at(-1))];
    const { height } = this.about;
    this.x = (value) => LEFT + ((value - this.fromX) / (this.toX - this.fromX)) * (width - LEFT - 8);
    this.y = (value) => height - ((form(value) - bottom) / (top - bottom)) * (height - 8);
    this.placeX = (pixel) => this.fromX + ((pixel - LEFT) / (width - LEFT - 8)) * (this.toX - this.fromX);
  }

  #axes(width) {
    const { height, format, formatX } = this.about;
    const lines = this.values.map((value) => svg("g", {},
      svg("line", { class: "rule", x1: LEFT, x2: width, y1: this.y(value), y2: this.y(value) }),
      text(format(value), { x: LEFT - 8, y: this.y(value) + 4, "text-anchor": "end" })));
    if (!this.xs.length) return lines;
    const wanted = Math.max(2, Math.floor((width - LEFT) / 90));
    const steps = ticks(this.fromX, this.toX, wanted).filter((value) => value >= this.fromX && value <= this.toX * (1 + 1e-9));
    const below = steps.map((value) => text(formatX(value), { x: this.x(value), y: height + 17, "text-anchor": value === steps.at(-1) && this.x(value) > width - 24 ? "end" : "middle" }));
    return [...lines, ...below];
  }

  #curve(own, smoothing) {
    const parts = [];
    const shared = { fill: "none", stroke: own.look.colour, "stroke-dasharray": own.look.dash };
    if (own.band.length) {
      const up = own.band.map(([x, , high]) => `${this.x(x).toFixed(1)},${this.y(high).toFixed(1)}`);
      const down = own.band.map(([x, low]) => `${this.x(x).toFixed(1)},${this.y(low).toFixed(1)}`).reverse();
      parts.push(svg("polygon", { points: [...up, ...down].join(" "), fill: own.look.colour, "fill-opacity": 0.16 }));
    }
    if (smoothing > 0) parts.push(svg("path", { ...shared, d: this.#path(own.raw), "stroke-opacity": 0.35 }));
    parts.push(svg("path", { ...shared, d: this.#path(own.line), "stroke-width": own.isStrong ? 3 : 1.8, "stroke-linejoin": "round" }));
    // Of a single point the line would not be seen.
    const dots = own.line.length === 1 ? [...own.dots, own.line[0]] : own.dots;
    for (const [x, y] of dots) parts.push(svg("circle", { cx: this.x(x), cy: this.y(y), r: 3.2, fill: own.look.colour, stroke: "var(--paper)" }));
    return svg("g", { class: own.isFaint ? "faint" : null }, parts);
  }

  #path(points) {
    let path = "";
    for (const [x, y] of points) path += `${path ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`;
    return path;
  }

  #marks() {
    const { height } = this.about;
    const parts = [];
    if (this.options.diagonal) parts.push(svg("line", { class: "mark", x1: this.x(this.fromX), x2: this.x(this.toX), y1: this.y(this.fromX), y2: this.y(this.toX) }));
    const marks = this.options.marks ?? [];
    for (const [place, mark] of marks.entries()) {
      const x = this.x(mark.x);
      // One below the other, where they would stand on one another.
      const above = marks.slice(0, place).filter((other) => Math.abs(this.x(other.x) - x) < 90).length;
      const isRight = x > this.x(this.toX) - 110;
      parts.push(svg("line", { class: "mark", x1: x, x2: x, y1: 0, y2: height }), text(mark.text, { x: x + (isRight ? -5 : 5), y: 11 + 14 * above, "text-anchor": isRight ? "end" : "start" }));
    }
    return parts;
  }

  #follow(event) {
    if (!this.xs?.length) return;
    this.#move(nearest(this.xs, this.placeX(event.clientX - this.field.getBoundingClientRect().left)));
  }

  #press(event) {
    if (!this.xs?.length) return;
    const here = this.at === null ? this.xs.length - 1 : this.xs.indexOf(nearest(this.xs, this.at));
    const far = Math.max(1, Math.round(this.xs.length / 10));
    const moves = { ArrowLeft: here - 1, ArrowDown: here - 1, ArrowRight: here + 1, ArrowUp: here + 1, PageUp: here + far, PageDown: here - far, Home: 0, End: this.xs.length - 1 };
    if (event.key === "Escape") this.#move(null);
    if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.#move(this.xs[Math.min(Math.max(moves[event.key], 0), this.xs.length - 1)]);
  }

  #move(at) {
    this.at = at;
    const { format, formatX, along, height } = this.about;
    const told = at === null ? [] : this.curves.map((own) => ({ own, value: valueAt(own.line.length ? own.line : own.dots, at), exact: valueAt(own.raw, at) })).filter((each) => each.value !== null);
    if (this.cursor) {
      this.cursor.replaceChildren(...(at === null ? [] : [svg("line", { x1: this.x(at), x2: this.x(at), y1: 0, y2: height })]),
        ...told.map(({ own, value }) => svg("circle", { cx: this.x(at), cy: this.y(value), r: 3.5, fill: own.look.colour })));
    }
    told.sort((a, b) => b.value - a.value);
    const shown = told.slice(0, MOST_TOLD);
    const rest = told.length - shown.length;
    fill(this.readout, at === null ? this.#legend() : [el("span", { class: "place number", text: `${along} ${formatX(at)}` }),
      shown.map(({ own, value, exact }) => el("span", { class: "series" }, swatch(own.look), el("span", { class: "name", text: own.name }), el("b", { class: "number", text: format(exact ?? value) }),
        this.options.smoothing > 0 && shown.length < 5 && el("span", { class: "soft number", text: `smoothed ${format(value)}` }))),
      rest > 0 && el("span", { class: "soft", text: `and ${rest} more below` })]);
    const place = at === null ? 0 : this.xs.indexOf(at);
    this.field.setAttribute("aria-valuemax", String(Math.max((this.xs?.length ?? 1) - 1, 0)));
    this.field.setAttribute("aria-valuenow", String(Math.max(place, 0)));
    this.field.setAttribute("aria-valuetext", at === null ? "arrow keys show values" : `${along} ${formatX(at)}: ${shown.map(({ own, value, exact }) => `${own.name} ${format(exact ?? value)}`).join(", ")}`);
  }

  #legend() {
    const shown = (this.curves ?? []).filter((own) => own.line.length || own.dots.length);
    if (!shown.length) return [el("span", { class: "soft", text: "nothing to draw yet" })];
    const rest = shown.length - MOST_TOLD;
    return [shown.slice(0, MOST_TOLD).map((own) => el("span", { class: "series" }, swatch(own.look), el("span", { class: "name", text: own.name }))),
      rest > 0 && el("span", { class: "soft", text: `and ${rest} more` })];
  }
}

const text = (words, props) => { const node = svg("text", props); node.textContent = words; return node; };
// Spread into Math.min, a hundred thousand values would be too many.
const least = (values, other) => values.reduce((a, b) => Math.min(a, b), Infinity) === Infinity ? other : values.reduce((a, b) => Math.min(a, b));
const most = (values, other) => values.reduce((a, b) => Math.max(a, b), -Infinity) === -Infinity ? other : values.reduce((a, b) => Math.max(a, b));

/** The points between which nine of ten values lie. */
function middle(points) {
  const sorted = [...points].sort((a, b) => a[1] - b[1]);
  const skipped = Math.floor(sorted.length / 20);
  return sorted.length ? [sorted[skipped], sorted.at(-1 - skipped)] : [];
}

/** The element of an ascending list that is nearest to a value. */
function nearest(sorted, value) {
  let low = 0;
  let high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1; else high = middle;
  }
  return low > 0 && value - sorted[low - 1] < sorted[low] - value ? sorted[low - 1] : sorted[low];
}

/** The value of the point that is nearest to a place; null beyond the ends. */
function valueAt(points, at) {
  if (!points.length || at < points[0][0] || at > points.at(-1)[0]) return null;
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < at) low = middle + 1; else high = middle;
  }
  const before = points[Math.max(low - 1, 0)];
  return at - before[0] < points[low][0] - at ? before[1] : points[low][1];
}
