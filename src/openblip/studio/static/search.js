// The room Search.
import { el, fill, get, imageUrl } from "./page.js";

export async function show(main, state) {
  const { rows } = await get("/api/sample", { count: 40 });
  const shape = (row) => (row.width && row.height ? row.width / row.height : 1.4);
  fill(main, el("ul", { class: "mosaic" }, rows.map((row) => el("li", { vars: { "--shape": shape(row) } },
    el("div", { class: "picture" }, el("img", { src: imageUrl(row.row, 360), alt: row.id, loading: "lazy" }))))));
}
