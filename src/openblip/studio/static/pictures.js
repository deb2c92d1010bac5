// Pictures that a person gives (by drop, from the clipboard, as a file), and pictures that are shown large.
import { el, fill, imageUrl, plural, probability, tell } from "./page.js";

/** Take pictures that are dropped anywhere, pasted, or chosen with the button.
 * Gives `button`, an element to place, and `stop`, which ends it. */
export function taking(label, take) {
  const input = el("input", { type: "file", accept: "image/*", class: "unseen", tabindex: "-1", "aria-hidden": "true" });
  const button = el("button", { type: "button", class: "quiet", onclick: () => input.click() }, label);
  const veil = el("div", { class: "veil", hidden: true, text: "Drop the picture here" });
  document.body.append(veil);

  function offer(files) {
    const file = [...files].find((one) => one.type.startsWith("image/") || /\.(heic|heif|avif|tiff?|jp2)$/i.test(one.name));
    if (file) take(file);
    else tell("That is no picture: give a file such as JPEG, PNG or WebP.", true);
  }
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const over = (event) => { if (hasFiles(event)) { event.preventDefault(); veil.hidden = false; } };
  const out = (event) => { if (!event.relatedTarget) veil.hidden = true; };
  const drop = (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    veil.hidden = true;
    offer(event.dataTransfer.files);
  };
  const paste = (event) => {
    if (event.clipboardData?.files.length) { event.preventDefault(); offer(event.clipboardData.files); }
  };
  input.addEventListener("change", () => { if (input.files.length) offer(input.files); input.value = ""; });
  const listeners = [["dragover", over], ["dragleave", out], ["drop", drop], ["paste", paste]];
  for (const [name, listener] of listeners) document.addEventListener(name, listener);
  return {
    button: [button, input],
    stop() {
      for (const [name, listener] of listeners) document.removeEventListener(name, listener);
      veil.remove();
    },
  };
}

/** How wide a row is for its height; of pictures whose size is not known a guess until they load. */
export const shapeOf = (row) => (row.width && row.height ? Math.min(Math.max(row.width / row.height, 0.4), 3.2) : 1.4);

/** A picture of a row in a mosaic; where its size is not known it takes its shape when it has loaded. */
export function tile(row, label, onopen, ...over) {
  const img = el("img", { src: imageUrl(row.row, 480), alt: "", loading: "lazy", decoding: "async" });
  const item = el("li", { vars: { "--shape": shapeOf(row) } },
    el("button", { type: "button", class: "picture", "aria-label": label, onclick: onopen }, img), over);
  img.addEventListener("load", () => {
    if (!row.width) item.style.setProperty("--shape", shapeOf({ width: img.naturalWidth, height: img.naturalHeight }));
  });
  img.addEventListener("error", () => {
    item.classList.add("lost");
    img.replaceWith(el("span", { class: "small soft", text: "cannot be read" }));
  });
  return item;
}

/** A bar of 0 to 1 beside its number. */
export function bar(name, value, told = null) {
  return el("div", { class: "bar" },
    el("span", { class: "name", text: name }),
    el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "fill", vars: { "--part": `${Math.max(0, Math.min(1, value ?? 0)) * 100}%` } })),
    el("span", { class: "number", text: told ?? probability(value) }));
}

/** Show one of several pictures large; `actions(hit, close)` gives the buttons that go with it. */
export function view(hits, start, actions) {
  let place = start;
  const stage = el("div", { class: "stage" });
  const where = el("span", { class: "soft small number", "aria-live": "polite" });
  const facts = el("div", { class: "own" });
  const dialog = el("dialog", { class: "viewer", "aria-label": "Picture" });
  const close = () => dialog.close();
  const step = (by) => { place = (place + by + hits.length) % hits.length; draw(); };
  // Made once: a button that has the focus keeps it while the pictures change.
  const turn = el("div", { class: "turn" },
    el("button", { type: "button", class: "quiet", "aria-label": "Previous picture", onclick: () => step(-1), text: "←" }),
    where,
    el("button", { type: "button", class: "quiet", "aria-label": "Next picture", onclick: () => step(1), text: "→" }),
    el("button", { type: "button", class: "quiet end", "aria-label": "Close", onclick: close, text: "✕" }));

  function draw() {
    const hit = hits[place];
    const texts = (hit.captions ?? []).map((text) => el("li", { dir: "auto", text }));
    const picture = el("img", { src: imageUrl(hit.row, 1440), alt: hit.captions?.[0] ?? hit.id });
    picture.addEventListener("error", () => picture.replaceWith(el("p", { class: "soft", text: "This picture cannot be read." })));
    new Image().src = imageUrl(hits[(place + 1) % hits.length].row, 1440); // shown at once, when it is
    where.textContent = `${place + 1} of ${hits.length}`;
    fill(stage, picture);
    fill(facts, el("h2", { dir: "auto", text: hit.id }),
      hit.itm != null && bar("match probability (ITM)", hit.itm),
      hit.itc != null && bar("similarity (ITC cosine)", hit.itc, hit.itc.toFixed(3)),
      texts.length > 0 && el("div", {}, el("h3", { text: plural(texts.length, "given text") }), el("ul", { class: "plain" }, texts)),
      el("div", { class: "fields" }, actions(hit, close),
        el("a", { class: "button quiet", href: imageUrl(hit.row), target: "_blank", rel: "noopener", text: "Full size" })));
  }
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) close(); });
  dialog.addEventListener("close", () => dialog.remove());
  draw();
  dialog.append(stage, el("div", { class: "facts" }, turn, facts));
  document.body.append(dialog);
  dialog.showModal();
  return close;
}
