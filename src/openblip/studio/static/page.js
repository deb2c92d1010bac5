// What all rooms share: the rooms themselves by the address, asking the studio, and elements.
//
// A room is a module `NAME.js` with `show(main, state)`. It fills `main`, and may return a function
// that is called before another room is shown. Texts of a collection are anybody's: they become
// text nodes here and nothing else, so that no text can become markup.

const ADDRESS = /^(#|\/|blob:)/;

/** An element. `props`: attributes; `onclick` and the like are listeners, `class` and `text` what
 * they say, `vars` custom properties, and null leaves one out. Children are elements or texts. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else if (name === "vars") for (const [own, set] of Object.entries(value)) node.style.setProperty(own, set);
    else if ((name === "href" || name === "src") && !ADDRESS.test(value)) throw new Error(`${name} leads elsewhere`);
    else if (name in node && typeof node[name] === "boolean") node[name] = Boolean(value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Put children in the place of what an element had. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const GONE = "The studio does not answer. Is its command still running?";
const line = document.getElementById("line");

/** One line to the person, which a screen reader reads out; empty takes it away. */
export function tell(text, isError = false) {
  line.textContent = text;
  line.classList.toggle("error", isError);
  line.classList.toggle("shown", Boolean(text));
}

/** Say for some seconds what was done. */
export function notice(text) {
  tell(text);
  setTimeout(() => { if (line.textContent === text) tell(""); }, 6000);
}

export class Failed extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function answered(request) {
  let response;
  try {
    response = await request;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(GONE, 0);
  }
  let found = null;
  try {
    found = await response.json();
  } catch {
    throw new Failed(`The studio's answer cannot be read (${response.status}).`, response.status);
  }
  if (!response.ok) throw new Failed(found.error ?? `The studio refused (${response.status}).`, response.status);
  return found;
}

/** What the studio answers to a question that changes nothing; `values` go into the address. */
export function get(path, values = {}, signal = null) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, value);
  }
  const asked = query.toString();
  const address = asked ? `${path}?${asked}` : path;
  const known = begun[address];
  delete begun[address];
  return known ? Promise.resolve(known) : answered(fetch(address, { signal }));
}

/** Answers that came with the page, by address, for the room that it begins with. */
let begun = {};

/** What the studio answers to something that it computes or changes; `image` is a file, or null. */
export function post(path, values, image = null, signal = null) {
  const headers = { "X-Openblip": "1" };
  let body;
  if (image) {
    if (image.size > state.about.max_upload) {
      return Promise.reject(new Failed(`The picture has ${Math.round(image.size / 1048576)} MB; at most ${Math.round(state.about.max_upload / 1048576)} MB go.`, 413));
    }
    body = new FormData();
    body.set("json", JSON.stringify(values));
    body.set("image", image, "image");
  } else {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(values);
  }
  return answered(fetch(path, { method: "POST", headers, body, signal }));
}

/** The style sheet of a room, once; resolves when it counts, so that nothing is seen without it. */
export function sheet(name) {
  const href = `/static/${name}`;
  const known = document.querySelector(`link[href="${href}"]`);
  if (known) return known.ready;
  const link = el("link", { rel: "stylesheet", href });
  link.ready = new Promise((resolve) => { link.onload = resolve; link.onerror = resolve; });
  document.head.append(link);
  return link.ready;
}

const NAMES = { captioner: "captioner", filter: "filter", vqa: "question model" };

/** Carry out something that may load a model first, and say meanwhile what is waited for. */
export async function waiting(told, work) {
  let isDone = false;
  const watch = async () => {
    while (!isDone) {
      await new Promise((resolve) => setTimeout(resolve, 400));
      if (isDone) return;
      try {
        const { models } = await get("/api/models");
        const loading = models.find((model) => model.state === "loading");
        const names = loading ? loading.roles.map((role) => NAMES[role]).join(", ") || "model" : "";
        const fetched = loading?.published ? " (published: the first time about 1 GB is fetched)" : "";
        if (!isDone) tell(loading ? `Loading the ${names}${fetched} …` : told);
      } catch {
        return;
      }
    }
  };
  tell(told);
  watch();
  try {
    return await work();
  } finally {
    isDone = true;
  }
}

/** Asks again and again while the page is in view. `ask` resolves to the milliseconds until the next time. */
export class Watch {
  constructor(ask, afterFailure) {
    this.ask = ask;
    this.afterFailure = afterFailure;
    this.isClosed = false;
    this.onVisible = () => { if (!document.hidden) this.soon(0); };
    document.addEventListener("visibilitychange", this.onVisible);
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.onVisible);
  }

  soon(wait) {
    clearTimeout(this.timer);
    if (!this.isClosed && !document.hidden) this.timer = setTimeout(() => this.now(), wait);
  }

  async now() {
    let wait = this.afterFailure;
    try {
      wait = await this.ask();
    } catch (error) {
      if (this.isClosed) return;
      this.failed = true;
      tellError(error);
    }
    this.soon(wait);
  }

  /** The server answers: what was said of a failure before holds no more. */
  answered() {
    if (this.failed) tell("");
    this.failed = false;
  }
}

/** Say what went wrong; something that was called off is nothing wrong. */
export function tellError(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Failed)) console.error(error);
  tell(error instanceof Failed ? error.message : `Something is wrong with the page: ${error.message}`, true);
}

/** The address of a row's picture, at most `width` wide and high; without, as it is stored. */
export function imageUrl(row, width = null) {
  const mark = encodeURIComponent(state.about.table?.mark ?? "");
  return width ? `/image/${row}?w=${width}&v=${mark}` : `/image/${row}?v=${mark}`;
}

/** What scores are called; another one has its name. */
export const SCORES = {
  itm: "match probability (ITM)", itc: "similarity (ITC)", right: "calibrated probability of being right",
};

/** A probability for people: 0.97, and never 1.00 for what is not 1. */
export function probability(value) {
  if (value === null || value === undefined) return "–";
  if (value > 0.995 && value < 1) return "> 0.99";
  if (value < 0.005 && value > 0) return "< 0.01";
  return value.toFixed(2);
}

export const count = (value) => value.toLocaleString("en-US");

/** "1 image", "12 images". */
export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** A block that says why there is nothing here, and what to do; `command` can be copied. */
export function empty(title, text, command = null, ...more) {
  return el("div", { class: "empty" }, el("h2", { text: title }), el("p", { text }), command && copyable(command), ...more);
}

/** A path as a shell takes it. */
export const quoted = (path) => (/^[\w./:~-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`);

/** What a room that needs scores says where there are none; `command` makes those of a table. */
export function noScores(table, command) {
  if (table.kind === "folder") {
    return empty("A folder has no scores", "CapFilt works on a pair table, which has room for captions and scores. This command makes one of the folder, its pictures without a text included; then open the studio with it.",
      `openblip data import ${quoted(table.place)} ${quoted(`${table.name}.lance`)} --without-captions`);
  }
  return empty("This table has no scores yet", "CapFilt writes a caption for each picture, and gives all texts a match probability. This command does it; it can be stopped and goes on where it was.", command);
}

/** A command with a button that copies it. */
export function copyable(command) {
  const button = el("button", { type: "button", class: "quiet", text: "Copy", "aria-label": `Copy the command ${command}` });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.previousSibling);
      button.textContent = "Press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return el("div", { class: "command" }, el("code", { text: command, tabindex: "0" }), button);
}

/** What rooms are given: `about` the collection, `params` of the address, `go(room, params)`. */
export const state = { about: null, room: null, params: new URLSearchParams(), go };

/** Show a room; `replace` leaves no entry in the history of the browser. */
export function go(room, params = {}, replace = false) {
  const query = new URLSearchParams(params).toString();
  const hash = `#${room}${query ? `?${query}` : ""}`;
  if (hash !== location.hash && !replace) {
    location.hash = hash; // which renders
    return undefined;
  }
  history.replaceState(null, "", hash);
  return render();
}

/** Note something in the address, so that a reload shows it again; shows nothing by itself. */
export function note(params) {
  const query = new URLSearchParams(params).toString();
  history.replaceState(null, "", `#${state.room}${query ? `?${query}` : ""}`);
  state.params = new URLSearchParams(query);
}

const main = document.getElementById("main");
let leave = null;
let turn = 0;

async function render() {
  const [name, query] = location.hash.slice(1).split(/\?(.*)/s);
  if (name === "main") { main.focus(); return; }
  const rooms = state.about.rooms;
  const room = rooms.find((one) => one.name === name) ?? rooms[0];
  state.room = room.name;
  state.params = new URLSearchParams(query ?? "");
  const mine = ++turn;
  for (const link of document.querySelectorAll(".rooms a")) {
    if (link.dataset.room === room.name) { link.setAttribute("aria-current", "page"); link.scrollIntoView({ block: "nearest", inline: "nearest" }); }
    else link.removeAttribute("aria-current");
  }
  document.title = `${room.title} · openblip studio`;
  if (leave) leave();
  leave = null;
  tell("");
  try {
    const module = await import(`/static/${room.name}.js`).catch((error) => {
      throw error instanceof TypeError ? new Failed(GONE, 0) : error;
    });
    if (mine !== turn) return;
    fill(main);
    main.className = `room-${room.name}`;
    leave = (await module.show(main, state)) ?? null;
    if (mine !== turn && leave) { leave(); leave = null; }
  } catch (error) {
    tellError(error);
  }
}

const THEMES = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

function setTheme(theme) {
  const button = document.getElementById("theme");
  document.documentElement.dataset.theme = theme;
  button.dataset.theme = theme;
  button.setAttribute("aria-label", `${THEMES[theme]}; change it`);
  button.title = THEMES[theme];
  try { localStorage.setItem("theme", theme); } catch { /* a browser that keeps nothing */ }
}

function startTheme() {
  let theme = "auto";
  try { theme = localStorage.getItem("theme") ?? "auto"; } catch { /* as above */ }
  setTheme(theme in THEMES ? theme : "auto");
  document.getElementById("theme").addEventListener("click", () => {
    const order = Object.keys(THEMES);
    setTheme(order[(order.indexOf(document.documentElement.dataset.theme) + 1) % order.length]);
  });
}

/** Ask the studio again what there is; a table may have grown, or got its index. */
export async function refresh() {
  begun = {};
  told(await get("/api/about"));
}

function told(about) {
  state.about = about;
  const table = state.about.table;
  document.getElementById("where").textContent = table ? `${table.name} · ${plural(table.rows, "picture")}` : "no collection";
}

async function start() {
  startTheme();
  // The page comes with it; it has none where the studio could not say.
  const about = JSON.parse(document.getElementById("about").textContent);
  begun = about?.answers ?? {};
  // They are of now: a room that is opened later asks for itself.
  setTimeout(() => { begun = {}; }, 3000);
  try {
    if (about) told(about);
    else await refresh();
  } catch (error) {
    tellError(error);
    return;
  }
  const links = state.about.rooms.map((room) => el("a", { href: `#${room.name}`, "data-room": room.name, text: room.title }));
  fill(document.querySelector(".rooms"), links);
  addEventListener("hashchange", () => { begun = {}; return render(); });
  await render();
}

start();
