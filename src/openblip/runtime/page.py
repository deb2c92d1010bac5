"""Self-contained HTML report pages: one file, no network, light and dark.

Long tables can be sorted, by a few lines of script that only pages with such a table have. Every
page forbids whatever else there could be: of scripts only the one with that digest runs, so that no
text of a stranger could become one even if it were not escaped.
"""

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal
from unicodedata import bidirectional

from PIL import Image

from openblip.runtime.atomic import replace_file
from openblip.runtime.charts import colour_key

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2126; --soft: #5d6872;
  --line: #dde2e7; --card: #f6f8fa; --shade: #1c21263d; --blue: #2563b8; --orange: #c2570c;
  --green: #1a7f4b; --red: #b3261e; --violet: #7a3fb5; --teal: #0e7c86; --pink: #b8336a;
  --brown: #7a5a1e; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e6eaee; --soft: #9aa5b0;
  --line: #2c343c; --card: #1c2228; --shade: #9aa5b059; --blue: #6ea8f0; --orange: #f0965a;
  --green: #57c28b; --red: #ef7f78; --violet: #b98af0; --teal: #4fc3cc; --pink: #f07fae;
  --brown: #d0a95a; } }
* { box-sizing: border-box; }
html { font-size: 15px; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 82rem; margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 2.5rem) 4rem; }
@media (min-width: 2000px) { html { font-size: 18px; } main { max-width: 112rem; } }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; font-weight: 600; margin: 1.6rem 0 .5rem; }
p { margin: .4rem 0; max-width: 70ch; } .soft { color: var(--soft); }
.warning { border-inline-start: 4px solid var(--orange); background: var(--card);
  padding: .6rem .9rem; border-radius: 0 6px 6px 0; }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; border-radius: 3px; }
.scroll { overflow: auto; max-width: max-content; max-height: 85vh; margin: .6rem 0;
  scrollbar-width: thin; background: linear-gradient(to right, var(--paper) 40%, transparent),
  linear-gradient(to left, var(--paper) 40%, transparent) right,
  linear-gradient(to right, transparent 1px, var(--shade) 1px, transparent),
  linear-gradient(to left, transparent 1px, var(--shade) 1px, transparent) right;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll;
  background-size: 2.5rem 100%, 2.5rem 100%, .8rem 100%, .8rem 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.1rem .35rem 0; text-align: start; vertical-align: top;
  border-bottom: 1px solid var(--line); max-width: 46ch; }
td { white-space: nowrap; } th.number { text-align: end; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; vertical-align: bottom; }
.long th { position: sticky; top: 0; background: var(--paper); }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  text-align: inherit; cursor: pointer; } th button:hover { color: var(--ink); }
th button::after { content: " \\2195"; opacity: .55; }
th[aria-sort] button::after { content: " \\2191"; opacity: 1; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
tr.strong td { font-weight: 650; }
.cards { display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; display: flex; flex-direction: column; }
.card img { width: 100%; height: 13rem; object-fit: contain; background: var(--line); }
.card img.small { image-rendering: pixelated; }
.card .texts { padding: .55rem .7rem .7rem; display: grid; gap: .5rem; }
.text { border-inline-start: 3px solid var(--line); padding-inline-start: .55rem;
  overflow-wrap: anywhere; line-height: 1.4; }
.text.kept, .text.right { border-color: var(--green); }
.text.rejected, .text.wrong { border-color: var(--red); }
.tag { display: block; font-size: .8rem; color: var(--soft); }
.tag b { font-weight: 650; } .kept .tag b, .right .tag b { color: var(--green); }
.rejected .tag b, .wrong .tag b { color: var(--red); }
.charts { display: grid; gap: 1.6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .87rem; color: var(--soft); margin-bottom: .3rem; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg text.ink { fill: var(--ink); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1.2rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 560px) { dl { display: block; } dd { margin-bottom: .5rem; } }
"""
# A cell has the look of its column, and needs no word of its own in each row.
_STYLE += "".join(
    f".number-{at} td:nth-child({at}) {{ text-align: end; }}\n"
    f".prose-{at} td:nth-child({at}) {{ white-space: normal; min-width: 16ch; }}\n"
    for at in range(1, 25)
)
# Rows from which on a table can be sorted.
_LONG = 12
# Characters of a cell that are kept on one line.
_SHORT = 28
_SCRIPT = """
for (const table of document.querySelectorAll('.long table')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const valueOf = (row, at) => {
    const text = row.cells[at].textContent.trim();
    const times = [...text.matchAll(/([\\d.]+) (h|min|s)\\b/g)];
    if (times.length && text.replace(/[\\d.]+ (h|min|s)\\b/g, '').trim() === '')
      return times.reduce((sum, [, n, unit]) => sum + n * { h: 3600, min: 60, s: 1 }[unit], 0);
    const number = parseFloat(text.replace(/,(?=\\d{3})/g, ''));
    return Number.isNaN(number) ? text : number;
  };
  heads.forEach((head, at) => {
    const button = document.createElement('button');
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const first = head.classList.contains('number') ? 'descending' : 'ascending';
      const other = first === 'ascending' ? 'descending' : 'ascending';
      const order = head.getAttribute('aria-sort') === first ? other : first;
      const sign = order === 'ascending' ? 1 : -1;
      const compare = (a, b) => typeof a !== typeof b ? (typeof a === 'number' ? -sign : sign)
        : typeof a === 'number' ? a - b : a.localeCompare(b, [], { numeric: true });
      heads.forEach((each) => each.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', order);
      body.append(...[...body.rows].map((row) => [valueOf(row, at), row])
        .sort((a, b) => sign * compare(a[0], b[0])).map((pair) => pair[1]));
    };
  });
}
"""
# What a column of numbers has in its cells: a number that something may stand behind, or nothing.
_NUMBER = re.compile(r"[-+±≤≥<>~ ]?\d.*|[-\s]*|nan|inf", re.DOTALL)


Verdict = Literal["", "kept", "rejected", "right", "wrong"]
"""What a page says of a text, by word and colour."""


@dataclass(frozen=True)
class CardText:
    """A text on a card, with a small line below it unless that is empty."""

    words: str
    tag: str
    verdict: Verdict = ""


class Page:
    """A page that is built from top to bottom."""

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self._parts = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(lead)}</p>']

    def section(self, title: str, text: str = "") -> None:
        """Begin a section with an optional paragraph."""
        self._parts.append(f"<h2{_direction(title)}>{escape(title)}</h2>")
        if text:
            self.note(text)

    def note(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p{_direction(text)}>{escape(text)}</p>")

    def warning(self, text: str) -> None:
        """A paragraph that must not be missed."""
        self._parts.append(f'<p class="warning" role="note">{escape(text)}</p>')

    def quote(self, text: str) -> None:
        """Somebody's words, above what belongs to them."""
        self._parts.append(f"<h3{_direction(text)}>{escape(text)}</h3>")

    def table(
        self, header: Sequence[str], rows: Iterable[Sequence[str]], strong: Sequence[int] = ()
    ) -> None:
        """A table of texts; the rows numbered in `strong` stand out.

        Columns of numbers are told by their cells. One of twelve rows or more can be sorted.
        """
        self._parts.append(_table(header, rows, strong, is_sortable=True))

    def tables(self, header: Sequence[str], parts: Mapping[str, Iterable[Sequence[str]]]) -> None:
        """Tables of the same columns side by side, each below its name."""
        drawn = (
            f"<figure><figcaption>{escape(name)}</figcaption>{_table(header, rows)}</figure>"
            for name, rows in parts.items()
        )
        self._parts.append(f'<div class="charts">{"".join(drawn)}</div>')

    def facts(self, values: Mapping[str, object]) -> None:
        """Names with their values."""
        items = "".join(
            f"<dt{_direction(name)}>{escape(name)}</dt>"
            f"<dd{_direction(str(value))}>{escape(str(value))}</dd>"
            for name, value in values.items()
        )
        self._parts.append(f"<dl>{items}</dl>")

    def legend(self, names: Iterable[str]) -> None:
        """Which colour stands for what in the charts that follow."""
        self._parts.append(f"<p>{colour_key(names)}</p>")

    def charts(self, charts: Iterable[str]) -> None:
        """Charts side by side, as `histogram`, `bars` and `curves` make them."""
        self._parts.append(f'<div class="charts">{"".join(charts)}</div>')

    def cards(self, cards: Iterable[tuple[Image.Image, Sequence[CardText]]]) -> None:
        """Images with their texts."""
        self._parts.append(f'<div class="cards">{"".join(_card(*card) for card in cards)}</div>')

    def save(self, path: Path) -> Path:
        """Write the page, whole or not at all, and return where it is.

        Raises:
            UnwritableError: it cannot be written.
        """
        is_sortable = any(_LONG_TABLE in part for part in self._parts)
        script = f"<script>{_SCRIPT}</script>" if is_sortable else ""
        html = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(is_sortable)}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head>"
            f"<body><main>{''.join(self._parts)}</main>{script}</body></html>"
        )
        with replace_file(path) as unfinished:
            # A name that is no Unicode must not keep the page from being written.
            unfinished.write_text(html, encoding="utf-8", errors="backslashreplace")
        return path


_LONG_TABLE = '<div class="scroll long'


def _policy(is_sortable: bool) -> str:
    """What the page may do: nothing but show its own pictures and style, and sort."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    scripts = f" script-src 'sha256-{digest}';" if is_sortable else ""
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline';{scripts} base-uri 'none'; "
        "form-action 'none'"
    )


def _table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    strong: Sequence[int] = (),
    is_sortable: bool = False,
) -> str:
    cells = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    kinds = [_column_kind([row[at] for row in cells]) for at in range(len(header))]
    head = "".join(
        f'<th scope="col" class="{kind}">{escape(name)}</th>'
        for kind, name in zip(kinds, header, strict=True)
    )
    body = []
    for number, row in enumerate(cells):
        inner = "".join(f"<td{_direction(cell)}>{escape(cell)}</td>" for cell in row)
        kind = ' class="strong"' if number in strong else ""
        body.append(f"<tr{kind}>{inner}</tr>")
    looks = ["long"] if is_sortable and len(cells) >= _LONG else []
    looks += [f"{kind}-{at}" for at, kind in enumerate(kinds, 1) if kind]
    label = escape(", ".join(filter(None, header)))
    # With the keyboard only what has the focus can be scrolled.
    return (
        f'<div class="{" ".join(["scroll", *looks])}" tabindex="0" role="region" '
        f'aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _column_kind(cells: Sequence[str]) -> str:
    """How a column is set: numbers end at the right, and only long texts have several lines."""
    if any(cell.strip() for cell in cells) and all(map(_NUMBER.fullmatch, cells)):
        return "number"
    return "prose" if max(map(len, cells), default=0) > _SHORT else ""


def _direction(text: str) -> str:
    """Lets a text in Arabic or Hebrew run from right to left; its first letter decides."""
    runs_left = not text.isascii() and any(bidirectional(mark) in ("R", "AL") for mark in text)
    return ' dir="auto"' if runs_left else ""


def _card(image: Image.Image, texts: Sequence[CardText]) -> str:
    lines = []
    for text in texts:
        word = f"<b>{text.verdict}</b> " if text.verdict else ""
        tag = f'<span class="tag">{word}{escape(text.tag)}</span>' if word or text.tag else ""
        lines.append(
            f'<div class="text {text.verdict}"{_direction(text.words)}><span class="words">'
            f"{escape(text.words) or '(empty)'}</span>{tag}</div>"
        )
    small = ' class="small"' if max(image.size) <= 128 else ""
    return (
        f'<div class="card"><img{small} src="{_data_uri(image)}" alt="" loading="lazy">'
        f'<div class="texts">{"".join(lines)}</div></div>'
    )


def _data_uri(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((320, 320))
    buffer = io.BytesIO()
    # Small drawn pictures suffer from JPEG, and photographs are large as PNG.
    kind, options = ("PNG", {}) if max(small.size) <= 128 else ("JPEG", {"quality": 82})
    small.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
