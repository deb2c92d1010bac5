"""The studio: its first page, its grid, reviews, how fast it chooses rows, and its memory.

    python benchmarks/studio.py --output benchmarks/results/studio.md
    python benchmarks/studio.py --only rows memory --rows 100000

Parts: `page` (time and bytes until the first pictures are shown), `grid` (the longest gap between
two frames while a table is scrolled), `rows` (choosing and sorting the rows of a large table),
`review` (from a key to the next picture, on that table), and `memory` (of a studio with that table,
without models). The studio runs as a command of its own, and
Chromium looks at it; what needs a browser is left out where there is none, and said to be.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
from PIL import Image

from openblip.table.rows import row_schema
from openblip.table.table import PairTable
from openblip.table.vectors import create_rows_table, exchange_rows

PARTS = ("page", "grid", "rows", "review", "memory")
ROWS_AT_ONCE = 100_000
# Scrolled with the wheel line by line, turned fast, and dragged by the bar.
SCROLLS = {"slowly": (24, 240), "fast": (600, 240), "by the bar": (0, 60)}
CHOICES: dict[str, dict[str, str]] = {
    "all rows, as they stand": {},
    "sorted by the best given ITM": {"sort": "best-given-itm", "desc": "1"},
    "sorted by the worst synthetic ITM": {"sort": "worst-synthetic-itm"},
    "sorted by size": {"sort": "size", "desc": "1"},
    "sorted by id": {"sort": "id"},
    "ITM from 0.4 to 0.6": {"itm_from": "0.4", "itm_to": "0.6"},
    "below the threshold, web": {"fate": "below the threshold", "source": "web"},
    "text contains beach 12": {"words": "beach 12"},
    "width > 1000 (SQL)": {"where": "width > 1000"},
}
FRAMES = """() => {
  window.gaps = [];
  let before = performance.now();
  const tick = (now) => {
    window.gaps.push(now - before);
    before = now;
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}"""

# From a key to the frame in which the next picture stands, decoded; and whether it was ready.
KEYS = """() => {
  window.taken = [];
  let begun = 0;
  addEventListener("keydown", () => { begun = performance.now(); }, true);
  new MutationObserver(async () => {
    const image = document.querySelector(".stage img");
    if (!image || !begun) return;
    const [from, isReady] = [begun, image.complete && image.naturalWidth > 0];
    begun = 0;
    await image.decode().catch(() => {});
    requestAnimationFrame(() => setTimeout(() => {
      window.taken.push([performance.now() - from, isReady]);
    }));
  }).observe(document.querySelector(".stage"), { childList: true });
}"""

# From the start of the navigation to the frames in which the first text and the first picture of
# the grid stand: what a driver of the browser needs to see them is not in it.
SHOWN = """() => {
  window.shown = {};
  const wanted = {
    room: "#main > :not(noscript)", texts: ".cell .cell-text", picture: ".cell img.is-there" };
  const look = () => {
    for (const [name, selector] of Object.entries(wanted)) {
      if (name in window.shown || !document.querySelector(selector)) continue;
      window.shown[name] = null;
      requestAnimationFrame(() => setTimeout(() => { window.shown[name] = performance.now(); }));
    }
  };
  const all = { childList: true, subtree: true, attributes: true };
  new MutationObserver(look).observe(document, all);
}"""

# Bytes of the page and all that is no picture, and of pictures.
SIZES = """() => {
  const sums = [0, 0];
  for (const kind of ["navigation", "resource"])
    for (const entry of performance.getEntriesByType(kind))
      sums[Number(entry.name.includes("/image/"))] += entry.transferSize;
  return sums;
}"""


def photograph(path: Path) -> Path:
    """A picture as heavy as a photograph: 1024 x 768 with some grain."""
    dice = np.random.default_rng(0)
    small = Image.fromarray(dice.integers(0, 256, (48, 64, 3), np.uint8))
    image = small.resize((1024, 768), Image.Resampling.BICUBIC)
    noise = Image.fromarray(dice.integers(0, 256, (768, 1024, 3), np.uint8))
    Image.blend(image, noise, 0.04).save(path, "JPEG", quality=88)
    return path


def lists(values: pa.Array, counts: np.ndarray) -> pa.Array:
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), values)


def drawn_rows(start: int, count: int, image: Path) -> pa.Table:
    """Web rows with one or two given texts and a synthetic one, all with scores."""
    dice = np.random.default_rng(1 + start)
    numbers = np.arange(start, start + count)
    given, one = dice.integers(1, 3, count), np.ones(count, np.int64)
    begins = np.array(["a dog on a beach", "two people beside a red car", "IMG_2041.jpg", "free"])
    total = int(given.sum())
    tails = np.char.add(" ", dice.integers(0, 10**6, total).astype(str))
    texts = np.char.add(begins[dice.integers(0, 4, total)], tails)
    itm = dice.beta(0.3, 0.4, total).astype(np.float32)
    written = dice.beta(2.0, 0.4, count).astype(np.float32)
    splits = np.where(dice.random(count) < 0.9, "train", "test")
    metas = [json.dumps({"source": "cc12m" if n % 3 else "sbu", "url": f"u/{n}"}) for n in numbers]
    columns: dict[str, Any] = {
        "id": pa.array([f"photo-{number:08d}" for number in numbers]),
        "image": pa.nulls(count, pa.large_binary()),
        "image_uri": pa.array([str(image)] * count),
        "width": pa.array(dice.integers(300, 2000, count), pa.int32()),
        "height": pa.array(dice.integers(300, 2000, count), pa.int32()),
        "captions": lists(pa.array(texts.tolist()), given),
        "origin": pa.array(["web"] * count),
        "split": pa.array(splits.tolist()),
        "meta": pa.array(metas),
        "synthetic": lists(pa.array(begins[dice.integers(0, 2, count)].tolist()), one),
        "captions_itm": lists(pa.array(itm), given),
        "captions_itc": lists(pa.array(itm / 2), given),
        "synthetic_itm": lists(pa.array(written), one),
        "synthetic_itc": lists(pa.array(written / 2), one),
    }
    return pa.table(columns)


def scored_table(uri: Path, count: int, image: Path) -> PairTable:
    numbers, texts = pa.list_(pa.float32()), pa.list_(pa.string())
    names = ("captions_itm", "captions_itc", "synthetic_itm", "synthetic_itc")
    added = [("synthetic", texts), *((name, numbers) for name in names)]
    table = create_rows_table(str(uri), pa.schema([*row_schema(), *added]))
    for start in range(0, count, ROWS_AT_ONCE):
        rows = drawn_rows(start, min(ROWS_AT_ONCE, count - start), image)
        ordered = rows.select(table.columns).combine_chunks()
        table = exchange_rows(table, [], ordered.to_batches())
    return table


class Running:
    """A studio that runs as the command."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process, self.url = process, url

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(self.url.rstrip("/") + path, timeout=120) as answer:
            return json.load(answer)

    def memory(self) -> tuple[float, float]:
        """MB of its own, and with its share of the files that it has mapped (PSS)."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        sizes = dict(re.findall(r"^(\w+): +(\d+) kB", rollup, re.M))
        return int(sizes["Anonymous"]) / 1000, int(sizes["Pss"]) / 1000


@contextmanager
def studio(table: Path) -> Iterator[Running]:
    words = [sys.executable, "-m", "openblip", "studio", str(table), "--no-open", "--port", "0"]
    with subprocess.Popen(words, text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found, "the studio does not start"
            yield Running(process, found[0])
        finally:
            process.terminate()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; None where there is none."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        executable = None
    if executable is None:
        yield None
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


def first_page(running: Running, browser: Any, times: int) -> list[str]:
    opened, taken, sizes = [], [], [0, 0]
    for _ in range(times):
        page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
        page.add_init_script(f"({SHOWN})()")
        page.goto(running.url)
        # `wait_for_function` would evaluate a string in the page, which its policy forbids.
        while not page.evaluate("window.shown.room"):
            page.wait_for_timeout(20)
        opened.append(page.evaluate("window.shown.room"))
        page.context.close()
        page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
        page.add_init_script(f"({SHOWN})()")
        page.goto(f"{running.url}#collection")
        page.wait_for_selector(".cell img.is-there")
        page.wait_for_timeout(500)
        taken.append((page.evaluate("window.shown.texts"), page.evaluate("window.shown.picture")))
        sizes = page.evaluate(SIZES)
        page.context.close()
    texts_ms, pictures_ms = (statistics.median(some) for some in zip(*taken, strict=True))
    return [
        "## The first page",
        "",
        "In a new browser, without anything in its cache: from the start of the navigation to the "
        "frame that shows it. First the room that the studio opens with (Search), then Collection.",
        "",
        "| until | ms (median) |",
        "| --- | ---: |",
        f"| the first room is shown | {statistics.median(opened):.0f} |",
        f"| the texts of the rows are shown | {texts_ms:.0f} |",
        f"| the first picture is shown | {pictures_ms:.0f} |",
        "",
        f"Page, styles, scripts and rows: {sizes[0] / 1000:.0f} kB; pictures of the first "
        f"screen: {sizes[1] / 1000:.0f} kB.",
        "",
    ]


def scroll(page: Any, step: int, turns: int) -> None:
    for turn in range(turns):
        if step:
            page.mouse.wheel(0, step)
        else:
            page.evaluate(
                "(part) => { const view = document.querySelector('.grid');"
                " view.scrollTop = part * view.scrollHeight; }",
                (turn + 1) / turns,
            )
        page.wait_for_timeout(8)


def longest_task(trace: bytes) -> float:
    """Milliseconds of a core of the page's longest task."""
    events = json.loads(trace)["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    taken = [e["tdur"] for e in events if "tdur" in e and (e["pid"], e["tid"]) in threads]
    return float(max(taken, default=float("nan"))) / 1000


def grid(running: Running, browser: Any, rows: int) -> list[str]:
    lines = [
        f"## The grid: {rows:,} rows",
        "",
        "Gaps between two frames while the grid is scrolled; 16.7 ms is one frame. Beside it the "
        "longest task of the page's main thread, in time that it had a core: what a gap is at "
        "least, and would be on a machine that is free.",
        "",
        "| scrolled | frames | median ms | 99 % below ms | longest ms | longest task, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
    page.goto(f"{running.url}#collection")
    page.wait_for_selector(".cell img.is-there")
    page.mouse.move(600, 500)
    page.evaluate(FRAMES)
    for name, (step, turns) in SCROLLS.items():
        page.wait_for_timeout(500)
        page.evaluate("window.gaps.length = 0")
        browser.start_tracing(page=page, categories=["toplevel"])
        scroll(page, step, turns)
        page.wait_for_timeout(400)
        gaps = np.array(page.evaluate("window.gaps"))
        task = longest_task(browser.stop_tracing())
        lines.append(
            f"| {name} | {len(gaps)} | {np.median(gaps):.1f} | {np.percentile(gaps, 99):.1f} | "
            f"{gaps.max():.1f} | {task:.1f} |"
        )
    page.context.close()
    return [*lines, ""]


def timed(running: Running, path: str) -> tuple[float, Any]:
    begun = time.perf_counter()
    answer = running.ask(path)
    return 1000 * (time.perf_counter() - begun), answer


def choosing(running: Running, rows: int) -> list[str]:
    lines = [
        f"## Choosing among {rows:,} rows",
        "",
        "Milliseconds until the first 60 rows are there: the first time, which reads the columns "
        "that it needs; and a place in the middle of the same choice, as scrolling asks for it.",
        "",
        "| choice | rows | first ms | then ms |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, asked in CHOICES.items():
        first, answer = timed(running, f"/api/rows?{urlencode({**asked, 'count': '60'})}")
        middle = {**asked, "start": str(answer["total"] // 2), "count": "60"}
        then = statistics.median(
            timed(running, f"/api/rows?{urlencode(middle)}")[0] for _ in range(5)
        )
        lines.append(f"| {name} | {answer['total']:,} | {first:.0f} | {then:.0f} |")
    first, _ = timed(running, "/api/capfilt")
    then, _ = timed(running, "/api/capfilt")
    lines.append(f"| counts of CapFilt | | {first:.0f} | {then:.0f} |")
    query = "/api/capfilt/examples?threshold=0.5&source=web"
    times = [timed(running, query)[0] for _ in range(5)]
    lines.append(f"| examples of CapFilt | | {times[0]:.0f} | {statistics.median(times[1:]):.0f} |")
    return [*lines, ""]


def reviewing(running: Running, browser: Any, rows: int, keys: int, pause: float) -> list[str]:
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.goto(f'{running.url}#review?name=Ann&settings={{"size":{2 * keys}}}')
    begun = time.perf_counter()
    page.wait_for_selector(".stage img", timeout=300_000)
    drawn = time.perf_counter() - begun
    page.wait_for_timeout(5000)  # somebody looks at the first picture
    page.evaluate(KEYS)
    for number in range(keys):
        page.keyboard.press("rwpu"[number % 4])
        page.wait_for_timeout(1000 * pause)
    page.get_by_text("All recorded.").wait_for()
    taken = page.evaluate("window.taken")
    times = np.array([one for one, _ in taken])
    ready = sum(is_ready for _, is_ready in taken)
    page.context.close()
    return [
        f"## A review of {rows:,} rows",
        "",
        f"From a key to the frame in which the next picture stands; {keys} verdicts, {pause:g} s "
        "apart, each on the disk. Drawing the texts and loading what that needs took "
        f"{drawn:.1f} s, once.",
        "",
        "| pictures | ready before the key | median ms | 95 % below ms | longest ms |",
        "| ---: | ---: | ---: | ---: | ---: |",
        f"| {len(taken)} | {ready} | {np.median(times):.1f} | {np.percentile(times, 95):.1f} | "
        f"{times.max():.1f} |",
        "",
    ]


def memory_line(name: str, running: Running) -> str:
    own, shared = running.memory()
    return f"| {name} | {own:.0f} | {shared:.0f} |"


def host(options: argparse.Namespace) -> list[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = os.getloadavg()[0]
    told = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, load {load:.1f}"
    return ["# The studio", "", f"{told}. {options.note}".strip(), ""]


def measured(options: argparse.Namespace, folder: Path) -> list[str]:
    image = photograph(folder / "photo.jpg")
    lines = host(options)
    with chromium() as browser:
        wanted = [part for part in options.only if part in ("page", "grid", "review")]
        if browser is None and wanted:
            lines += [f"Left out: no browser, which {' and '.join(wanted)} need.", ""]
        elif {"page", "grid"} & set(wanted):
            table = folder / "grid.lance"
            scored_table(table, options.grid_rows, image)
            with studio(table) as running:
                if "page" in wanted:
                    lines += first_page(running, browser, options.times)
                if "grid" in wanted:
                    lines += grid(running, browser, options.grid_rows)
        if {"rows", "review", "memory"} & set(options.only):
            scored_table(folder / "rows.lance", options.rows, image)
        if browser is not None and "review" in options.only:
            with studio(folder / "rows.lance") as running:
                lines += reviewing(running, browser, options.rows, options.keys, options.pause)
    if {"rows", "memory"} & set(options.only):
        table = folder / "rows.lance"
        with studio(table) as running:
            running.ask("/api/about")
            sizes = [memory_line("started, the first rows shown", running)]
            chosen = choosing(running, options.rows)
            sizes.append(memory_line("after all choices above", running))
            time.sleep(options.idle)
            sizes.append(memory_line(f"{options.idle:.0f} s later", running))
        lines += chosen if "rows" in options.only else []
        if "memory" in options.only:
            lines += [
                f"## Memory with {options.rows:,} rows",
                "",
                "MB without models: what is the studio's own, and with its share of the libraries "
                "that are mapped from disk (PSS).",
                "",
                "| when | own | with its share |",
                "| --- | ---: | ---: |",
                *sizes,
                "",
            ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large table")
    parser.add_argument("--grid-rows", type=int, default=100_000, help="of the scrolled table")
    parser.add_argument("--times", type=int, default=5, help="the first page is opened")
    parser.add_argument("--keys", type=int, default=200, help="verdicts of the review")
    parser.add_argument("--pause", type=float, default=0.4, help="seconds between two of them")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds")
    parser.add_argument("--note", default="", help="a sentence about the circumstances")
    parser.add_argument("--output", type=Path, help="a Markdown file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="openblip-") as folder:
        text = "\n".join(measured(options, Path(folder)))
    print(text)
    if options.output is not None:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
