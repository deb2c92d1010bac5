// A grid of any number of pictures: a few dozen elements, moved about as it is scrolled.
//
// Rows are asked for in blocks, pictures one by one, both for what is in view; what was scrolled
// past before it came is called off. A browser draws no element taller than some million pixels, so
// a longer grid is scrolled in stretches (as SlickGrid does): small moves are exact, a dragged
// scroll bar leads to the place in proportion, and no row is out of reach.
import { el, tellError } from "./page.js";

const BLOCK = 60;
const KEPT_BLOCKS = 80;
const TALLEST = 6_000_000;
const LEAST_WIDTH = { narrow: 148, wide: 208 };
const GAP = 10;
// Of the words below a picture: three lines, and four where the tags of a text need two.
const TEXT = { narrow: 85, wide: 66 };
const REST = 70;
const AT_ONCE = 3;

/** A grid.
 *
 * `load(start, count, signal)` gives `{total, rows}`; `draw(cell, row)` fills a cell, `label(row)`
 * says it to who cannot see it, `picture(row, width)` is the address of its picture. `onopen(index,
 * row)` is told what was chosen, `onmove(index)` that something else is first in view. */
export class Grid {
  constructor({ load, draw, label, picture, onopen, onmove = () => {}, name }) {
    Object.assign(this, { load, draw, label, picture, onopen, onmove });
    this.total = 0;
    this.active = -1;
    this.blocks = new Map();
    this.asked = new Map();
    this.lines = new Map();
    this.spare = [];
    this.offset = 0;
    this.before = 0;
    this.columns = 0;
    this.first = 0;
    this.turn = 0;
    this.seen = 0;
    this.settled = 0;
    this.sizer = el("div", { class: "grid-sizer", role: "presentation" });
    this.view = el("div", { class: "grid", role: "listbox", tabindex: "0", "aria-label": name, "aria-multiselectable": "false" }, this.sizer);
    this.view.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.view.addEventListener("keydown", (event) => this.#key(event));
    this.view.addEventListener("click", (event) => this.#clicked(event));
    this.view.addEventListener("focus", () => this.#mark(this.active < 0 ? this.first : this.active));
    this.watch = new ResizeObserver(() => this.#measure());
    this.watch.observe(this.view);
  }

  /** Give up everything that is under way. */
  close() {
    this.watch.disconnect();
    clearTimeout(this.timer);
    this.#callOff(() => true);
  }

  /** Show other rows, those from `at` on; resolves when the first of them are there. They are asked
   * for at once, and shown when the grid stands in the page (`isDrawn`). */
  async show(at = 0, isDrawn = null) {
    this.turn += 1;
    this.#callOff(() => true);
    this.blocks.clear();
    this.active = -1;
    this.view.removeAttribute("aria-activedescendant");
    this.view.setAttribute("aria-busy", "true");
    // Until its first rows are there, nothing in view is of use.
    this.range = null;
    clearTimeout(this.timer);
    const mine = this.turn;
    const block = Math.max(Math.floor(at / BLOCK), 0);
    try {
      // Whoever comes back to a place that is not there any more begins at the first row.
      const found = await this.#fetch(block).catch((error) => {
        if (block && error.status === 400) return this.#fetch(0);
        throw error;
      });
      await isDrawn;
      if (!found || mine !== this.turn) return false;
      this.view.removeAttribute("aria-busy");
      this.total = found.total;
      this.#release(() => true);
      this.#measure(true);
      this.reveal(Math.min(at, this.total - 1), true);
      return true;
    } finally {
      if (mine === this.turn) this.view.removeAttribute("aria-busy");
    }
  }

  /** The row at a place, if it has come. */
  row(index) {
    return this.blocks.get(Math.floor(index / BLOCK))?.[index % BLOCK] ?? null;
  }

  /** The row at a place, asked for if need be; null where there is none. */
  async fetchRow(index) {
    if (index < 0 || index >= this.total) return null;
    if (!this.row(index)) await this.#fetch(Math.floor(index / BLOCK));
    return this.row(index);
  }

  /** Bring a place into view; at the top with `atTop`. */
  reveal(index, atTop = false) {
    if (!this.columns || index < 0) return;
    const top = Math.floor(index / this.columns) * this.height;
    const now = this.view.scrollTop + this.offset;
    const room = this.view.clientHeight;
    if (atTop) this.#goTo(top);
    else if (top < now) this.#goTo(top);
    else if (top + this.height > now + room) this.#goTo(top + this.height - room);
    this.#place();
  }

  /** Make a place the current one, as the arrow keys do. */
  move(index) {
    const to = Math.min(Math.max(index, 0), this.total - 1);
    if (to < 0) return;
    this.reveal(to);
    this.#mark(to);
  }

  #measure(isNew = false) {
    const width = this.view.clientWidth;
    if (!width) return;
    const form = width < 560 ? "narrow" : "wide";
    const columns = Math.max(1, Math.floor((width + GAP) / (LEAST_WIDTH[form] + GAP)));
    const cell = (width - GAP * (columns - 1)) / columns;
    const isOther = columns !== this.columns || cell !== this.cell;
    const anchor = this.first;
    this.columns = columns;
    this.cell = cell;
    this.box = { width: Math.floor(cell), height: Math.round(cell * 0.75) };
    this.height = this.box.height + TEXT[form] + GAP;
    this.sizer.style.setProperty("--words", `${TEXT[form]}px`);
    // In whole stretches: the real height, and what the browser is given.
    this.real = Math.max(Math.ceil(this.total / columns) * this.height, 1);
    this.shown = Math.min(this.real, TALLEST);
    this.stretch = this.shown / 100;
    this.stretches = Math.ceil(this.real / this.stretch);
    this.jump = this.stretches > 1 ? (this.real - this.shown) / (this.stretches - 1) : 0;
    this.sizer.style.height = `${this.shown}px`;
    if (isOther || isNew) {
      this.#release(() => true);
      if (isOther) {
        for (const node of this.spare) node.remove();
        this.spare = [];
      }
      if (!isNew) this.reveal(anchor, true);
    }
    this.#place();
  }

  /** Scroll to a place in real pixels. */
  #goTo(top) {
    const to = Math.min(Math.max(top, 0), Math.max(this.real - this.view.clientHeight, 0));
    const stretch = Math.min(this.stretches - 1, Math.floor(to / this.stretch));
    this.#setOffset(Math.round(stretch * this.jump));
    this.before = to - this.offset;
    this.view.scrollTop = this.before;
  }

  #setOffset(offset) {
    if (offset === this.offset) return;
    this.offset = offset;
    for (const [line, node] of this.lines) this.#put(node, line);
  }

  #scrolled() {
    const top = this.view.scrollTop;
    const moved = Math.abs(top - this.before);
    if (this.jump && moved >= this.view.clientHeight) {
      // The bar was dragged: to the place in proportion.
      const ratio = (this.real - this.view.clientHeight) / (this.shown - this.view.clientHeight);
      const stretch = Math.min(this.stretches - 1, Math.floor((top * ratio) / this.stretch));
      this.#setOffset(Math.round(stretch * this.jump));
      this.before = top;
    } else if (this.jump && moved) {
      this.#goTo(top + this.offset);
    } else {
      this.before = top;
    }
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.#place(); });
  }

  /** Put lines where they can be seen, and ask for what they need. */
  #place() {
    if (!this.columns || this.view.hasAttribute("aria-busy")) return;
    const top = this.view.scrollTop + this.offset;
    const lines = Math.ceil(this.total / this.columns);
    const begin = Math.max(Math.floor(top / this.height) - 2, 0);
    const end = Math.min(Math.ceil((top + this.view.clientHeight) / this.height) + 2, lines);
    this.#release((line) => line < begin || line >= end);
    for (let line = begin; line < end; line += 1) {
      if (!this.lines.has(line)) {
        const node = this.spare.pop() ?? this.#newLine();
        this.lines.set(line, node);
        node.hidden = false;
        this.#put(node, line);
        this.#fill(node, line);
      }
    }
    const first = Math.min(Math.round(top / this.height) * this.columns, Math.max(this.total - 1, 0));
    if (first !== this.first) {
      this.first = first;
      this.onmove(first);
    }
    this.range = [begin * this.columns, Math.min(end * this.columns, this.total)];
    // What is only passed by is not asked for; what is strolled by is.
    const isSlow = Math.abs(top - this.seen) < this.view.clientHeight / 8;
    this.seen = top;
    clearTimeout(this.timer);
    if (isSlow && performance.now() - this.settled > 2 * REST) this.#settle();
    else this.timer = setTimeout(() => this.#settle(), REST);
  }

  #newLine() {
    const cells = Array.from({ length: this.columns }, () => {
      const image = el("img", { alt: "", decoding: "async", draggable: "false" });
      image.addEventListener("load", () => image.classList.add("is-there"));
      image.addEventListener("error", () => { if (image.hasAttribute("src")) image.parentNode.classList.add("is-broken"); });
      const cell = el("div", { class: "cell", role: "option", "aria-selected": "false" },
        el("div", { class: "frame", vars: { "--box": `${this.box.height}px` } }, image),
        el("div", { class: "cell-words" }));
      Object.assign(cell, { image, words: cell.lastChild });
      return cell;
    });
    const node = el("div", { class: "grid-line", role: "presentation", vars: { "--columns": this.columns } }, cells);
    this.sizer.append(node);
    node.cells = cells;
    return node;
  }

  #put(node, line) {
    node.style.transform = `translateY(${line * this.height - this.offset}px)`;
  }

  #fill(node, line) {
    for (const [column, cell] of node.cells.entries()) {
      const index = line * this.columns + column;
      cell.hidden = index >= this.total;
      if (cell.hidden) continue;
      cell.index = index;
      cell.id = `cell-${index}`;
      cell.setAttribute("aria-posinset", index + 1);
      cell.setAttribute("aria-setsize", this.total);
      cell.setAttribute("aria-selected", String(index === this.active));
      const row = this.row(index);
      if (row) this.#fillCell(cell, row);
      else this.#clear(cell);
    }
  }

  #clear(cell) {
    cell.shown = null;
    cell.words.replaceChildren();
    cell.setAttribute("aria-label", "loading");
    cell.classList.add("is-coming");
    this.#dropImage(cell);
    cell.image.style.width = "";
    cell.image.style.height = "";
  }

  #dropImage(cell) {
    // Taking the address away calls off a picture that is still coming.
    cell.image.removeAttribute("src");
    cell.image.classList.remove("is-there");
    cell.image.parentNode.classList.remove("is-broken");
  }

  #fillCell(cell, row) {
    this.#dropImage(cell);
    cell.shown = row;
    cell.classList.remove("is-coming");
    cell.setAttribute("aria-label", this.label(row));
    // The place that the picture will take, before it is there.
    const scale = row.width && row.height ? Math.min(this.box.width / row.width, this.box.height / row.height) : 0;
    cell.image.style.width = scale ? `${Math.max(row.width * scale, 1)}px` : "";
    cell.image.style.height = scale ? `${Math.max(row.height * scale, 1)}px` : "";
    this.draw(cell.words, row);
  }

  #release(isFree) {
    for (const [line, node] of this.lines) {
      if (!isFree(line)) continue;
      this.lines.delete(line);
      node.hidden = true;
      for (const cell of node.cells) { cell.shown = null; cell.removeAttribute("id"); this.#dropImage(cell); }
      if (node.cells.length === this.columns && node.cells[0].firstChild.style.getPropertyValue("--box") === `${this.box?.height}px`) this.spare.push(node);
      else node.remove();
    }
  }

  /** The view rests: ask for the rows and pictures that are in it. */
  #settle() {
    if (!this.range) return;
    this.settled = performance.now();
    const [begin, end] = this.range;
    const wanted = [];
    for (let block = Math.floor(begin / BLOCK); block * BLOCK < end; block += 1) wanted.push(block);
    this.#callOff((block) => !wanted.includes(block));
    for (const block of wanted) {
      if (!this.blocks.has(block) && !this.asked.has(block) && this.asked.size < AT_ONCE) this.#fetch(block).catch(tellError);
    }
    // Pictures of lines that are seen; the others are near, and cost as much.
    const top = this.view.scrollTop + this.offset - this.height / 2;
    const bottom = top + this.view.clientHeight + this.height / 2;
    for (const [line, node] of this.lines) {
      if (line * this.height > top - this.height && line * this.height < bottom) for (const cell of node.cells) this.#askPicture(cell);
    }
  }

  #askPicture(cell) {
    if (cell.hidden || !cell.shown || cell.image.hasAttribute("src")) return;
    const width = Math.ceil(Math.max(this.box.width, this.box.height) * Math.min(devicePixelRatio, 2));
    cell.image.src = this.picture(cell.shown, width);
  }

  #callOff(isUnwanted) {
    for (const [block, control] of this.asked) {
      if (isUnwanted(block)) {
        control.abort();
        this.asked.delete(block);
      }
    }
  }

  async #fetch(block) {
    const mine = this.turn;
    const control = new AbortController();
    this.asked.set(block, control);
    try {
      const found = await this.load(block * BLOCK, BLOCK, control.signal);
      if (mine !== this.turn || control.signal.aborted) return null;
      this.blocks.delete(block);
      this.blocks.set(block, found.rows);
      // What was seen longest ago goes.
      for (const old of this.blocks.keys()) if (this.blocks.size > KEPT_BLOCKS && old !== block) this.blocks.delete(old);
      this.#arrived(block);
      return found;
    } finally {
      if (this.asked.get(block) === control) this.asked.delete(block);
    }
  }

  #arrived(block) {
    for (const node of this.lines.values()) {
      for (const cell of node.cells) {
        if (cell.hidden || cell.shown || Math.floor(cell.index / BLOCK) !== block) continue;
        const row = this.row(cell.index);
        if (row) this.#fillCell(cell, row);
      }
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#settle(), 0);
  }

  #mark(index) {
    const cellOf = (place) => this.lines.get(Math.floor(place / this.columns))?.cells[place % this.columns];
    if (this.active >= 0) cellOf(this.active)?.setAttribute("aria-selected", "false");
    this.active = index;
    if (index < 0 || index >= this.total) return;
    cellOf(index)?.setAttribute("aria-selected", "true");
    this.view.setAttribute("aria-activedescendant", `cell-${index}`);
  }

  #clicked(event) {
    const cell = event.target.closest(".cell");
    if (!cell?.shown) return;
    this.#mark(cell.index);
    this.onopen(cell.index, cell.shown, true);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(Math.floor(this.view.clientHeight / this.height), 1) * this.columns;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, PageDown: page, PageUp: -page };
    const now = this.active < 0 ? this.first : this.active;
    const to = now + steps[event.key];
    // From the first or last line there is no way up or down, and no slipping aside.
    if (event.key in steps) this.move(event.key.startsWith("Arrow") && (to < 0 || to >= this.total) ? now : to);
    else if (event.key === "Home") this.move(0);
    else if (event.key === "End") this.move(this.total - 1);
    else if (event.key === "Enter" || event.key === " ") this.#open(now);
    else return;
    event.preventDefault();
    if (event.key in steps || event.key === "Home" || event.key === "End") this.onopen(this.active, this.row(this.active), false);
  }

  async #open(index) {
    const row = await this.fetchRow(index).catch(tellError);
    if (row) this.onopen(index, row, true);
  }
}
