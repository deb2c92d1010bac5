// Verdicts on their way: sent one after the other, each until the studio has said that it is on the
// disk. Until then they are in the browser's own store, so that a crash of page or studio loses none.
import { Failed, post } from "./page.js";

const PREFIX = "openblip.outbox.";
const BEAT = 5000;
// A page that has not written for so long is gone; if it was only asleep, both send the same, and
// the studio records it once.
const GONE = 30000;
const WAITS = [300, 600, 1200, 2500, 5000];

/** A name that no other has; also where a page is not reached by a secure address. */
export function unique() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Whether the studio has understood, and says no: the same again would be refused again. */
export function isRefusal(error) {
  return error instanceof Failed && error.status >= 400 && error.status < 500 && ![408, 429].includes(error.status);
}

export class Outbox {
  /**
   * @param tab name of this page.
   * @param place of the collection: what belongs to another one waits for that.
   * @param on `acknowledged(order, answer)`, `refused(order, error)`, `changed()`.
   */
  constructor(tab, place, on) {
    this.name = PREFIX + tab;
    this.place = place;
    this.on = on;
    this.orders = read(this.name);
    this.isAway = false;
    this.#adopt();
    this.timer = setInterval(() => this.#keep(), BEAT);
    this.#keep();
    this.#send();
  }

  /** Orders of this collection that are not acknowledged. */
  get waiting() { return this.orders.filter((order) => order.place === this.place); }

  /** Orders of other collections, left by pages that are gone. */
  get elsewhere() { return this.orders.filter((order) => order.place !== this.place); }

  add(order) {
    this.orders.push({ ...order, place: this.place });
    this.#keep();
    this.#send();
  }

  /** Take an order back that has not been sent; false if it may have arrived already. */
  withdraw(id) {
    const place = this.orders.findIndex((order) => order.id === id);
    if (place < 0 || this.sending === id || this.orders[place].tried) return false;
    this.orders.splice(place, 1);
    this.#keep();
    return true;
  }

  close() {
    clearInterval(this.timer);
    clearTimeout(this.later);
    this.isClosed = true;
    if (this.orders.length) this.#keep();
    else try { localStorage.removeItem(this.name); } catch { /* a browser that keeps nothing */ }
  }

  /** Send what waits at once, without waiting for the next attempt. */
  hurry() {
    clearTimeout(this.later);
    this.#send();
  }

  async #send() {
    if (this.sending || this.isClosed) return;
    const order = this.waiting[0];
    if (!order) return;
    this.sending = order.id;
    let wait = 0;
    try {
      order.tried = true;
      const answer = await post(order.path, order.values);
      this.#done(order);
      this.isAway = false;
      this.attempts = 0;
      this.on.acknowledged(order, answer);
    } catch (error) {
      if (isRefusal(error)) {
        this.#done(order);
        this.on.refused(order, error);
      } else {
        this.isAway = true;
        this.attempts = (this.attempts ?? 0) + 1;
        wait = WAITS[Math.min(this.attempts, WAITS.length) - 1];
      }
    }
    this.sending = null;
    this.on.changed();
    clearTimeout(this.later);
    if (wait) this.later = setTimeout(() => this.#send(), wait);
    else this.#send();
  }

  #done(order) {
    this.orders.splice(this.orders.indexOf(order), 1);
    this.#keep();
  }

  #keep() {
    try {
      if (this.orders.length) localStorage.setItem(this.name, JSON.stringify({ beat: Date.now(), orders: this.orders }));
      else localStorage.removeItem(this.name);
    } catch { /* a browser that keeps nothing: they are in this page alone */ }
  }

  /** Take over what pages have left that are gone. */
  #adopt() {
    try {
      for (const name of Object.keys(localStorage)) {
        if (!name.startsWith(PREFIX) || name === this.name) continue;
        const left = JSON.parse(localStorage.getItem(name));
        if (Date.now() - left.beat < GONE) continue;
        const known = new Set(this.orders.map((order) => order.id));
        this.orders.push(...left.orders.filter((order) => !known.has(order.id)));
        this.#keep();
        localStorage.removeItem(name);
      }
    } catch { /* nothing is kept, or it is damaged: what this page has stays */ }
  }
}

function read(name) {
  try { return JSON.parse(localStorage.getItem(name))?.orders ?? []; } catch { return []; }
}
