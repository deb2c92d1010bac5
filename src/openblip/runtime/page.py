"""Self-contained HTML report pages: one file, no scripts, no network, light and dark."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import ceil, floor, isfinite, log10
from pathlib import Path
from typing import Literal
from unicodedata import bidirectional

from PIL import Image

from openblip.runtime.atomic import replace_file

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2126; --soft: #5d6872;
  --line: #dde2e7; --card: #f6f8fa; --blue: #2563b8; --orange: #c2570c; --green: #1a7f4b;
  --red: #b3261e; --violet: #7a3fb5; --teal: #0e7c86; --pink: #b8336a; --brown: #7a5a1e; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e6eaee; --soft: #9aa5b0;
  --line: #2c343c; --card: #1c2228; --blue: #6ea8f0; --orange: #f0965a; --green: #57c28b;
  --red: #ef7f78; --violet: #b98af0; --teal: #4fc3cc; --pink: #f07fae; --brown: #d0a95a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; font-weight: 600; margin: 1.6rem 0 .5rem; }
p { margin: .4rem 0; max-width: 70ch; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; }
th:first-child, td:first-child { text-align: left; }
tr.strong td { font-weight: 650; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(235px, 1fr)); gap: .9rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; display: flex; flex-direction: column; }
.card img { width: 100%; height: 165px; object-fit: contain; background: var(--line); }
.card img.small { image-rendering: pixelated; }
.card .texts { padding: .55rem .7rem .7rem; display: grid; gap: .45rem; font-size: .88rem; }
.text { border-inline-start: 3px solid var(--line); padding-inline-start: .5rem;
  overflow-wrap: anywhere; }
.text.kept, .text.right { border-color: var(--green); }
.text.rejected, .text.wrong { border-color: var(--red); }
.text.rejected .words { color: var(--soft); text-decoration: line-through;
  text-decoration-thickness: 1px; }
.tag { display: block; font-size: .74rem; color: var(--soft); }
.tag b { font-weight: 650; } .kept .tag b, .right .tag b { color: var(--green); }
.rejected .tag b, .wrong .tag b { color: var(--red); }
.charts { display: flex; flex-wrap: wrap; gap: 1.6rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: var(--soft); margin-bottom: .3rem; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .88rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


_COLOURS = ("blue", "orange", "green", "red", "violet", "teal", "pink", "brown")


Verdict = Literal["", "kept", "rejected", "right", "wrong"]
"""What a page says of a text, by word and colour; a rejected one is struck out."""


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

    def quote(self, text: str) -> None:
        """Somebody's words, above what belongs to them."""
        self._parts.append(f"<h3{_direction(text)}>{escape(text)}</h3>")

    def table(
        self, header: Sequence[str], rows: Iterable[Sequence[str]], strong: Sequence[int] = ()
    ) -> None:
        """A table of texts; the rows numbered in `strong` stand out."""
        self._parts.append(_table(header, rows, strong))

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
        self._parts.append(f"<p>{_legend(names)}</p>")

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
        html = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head>"
            f"<body><main>{''.join(self._parts)}</main></body></html>"
        )
        with replace_file(path) as unfinished:
            # A name that is no Unicode must not keep the page from being written.
            unfinished.write_text(html, encoding="utf-8", errors="backslashreplace")
        return path


def histogram(
    title: str, series: Mapping[str, Sequence[float]], threshold: float | None = None
) -> str:
    """Shares of scores in twenty bins over [0, 1], one colour a series, as SVG.

    Args:
        title: shown above.
        series: scores by name, at most four series.
        threshold: a line at this score.
    """
    bins = 20
    shares = {name: _binned(values, bins) for name, values in series.items()}
    highest = max((max(share) for share in shares.values()), default=0.0) or 1.0
    width, height = 440.0, 150.0
    slot = width / bins
    bar = (slot - 2) / max(len(shares), 1)
    drawn = []
    for number, share in enumerate(shares.values()):
        for place, value in enumerate(share):
            tall = value / highest * height
            drawn.append(
                f'<rect x="{place * slot + 1 + number * bar:.1f}" y="{height - tall:.1f}" '
                f'width="{bar:.1f}" height="{tall:.1f}" fill="{_colour(number)}"/>'
            )
    if threshold is not None:
        x = threshold * width
        drawn.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}" stroke="var(--ink)" '
            f'stroke-dasharray="4 3"/><text x="{x + 4:.1f}" y="11">threshold {threshold:g}</text>'
        )
    for mark in (0.0, 0.5, 1.0):
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[mark]
        drawn.append(
            f'<text x="{mark * width}" y="{height + 14}" text-anchor="{anchor}">{mark:g}</text>'
        )
    legend = _legend(f"{name} ({len(values)})" for name, values in series.items())
    return _figure(title + legend, width, height + 18, drawn)


def bars(
    title: str,
    values: Mapping[str, float],
    unit: str = "",
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Horizontal bars from zero with their values, as SVG.

    Args:
        title: shown above.
        values: by name; below zero there is no bar.
        unit: behind each value.
        intervals: low and high end by name, drawn as a line across the end of the bar.
    """
    ends = intervals or {}
    highest = max((*values.values(), *(high for _, high in ends.values())), default=0.0) or 1.0
    width, row = 440.0, 26.0
    label = min(max(130.0, 6.2 * max(map(len, values), default=0)), 240.0)
    scale = (width - label - 70) / highest
    drawn = []
    for number, (name, value) in enumerate(values.items()):
        y = number * row
        long = max(value, 0.0) * scale
        low, high = (max(end, 0.0) * scale for end in ends.get(name, (value, value)))
        drawn.append(
            f'<text x="0" y="{y + 16:.1f}">{escape(name)}</text>'
            f'<rect x="{label:.1f}" y="{y + 4:.1f}" width="{long:.1f}" height="16" rx="2" '
            f'fill="{_colour(number)}"/>'
            f'<text x="{label + max(long, high) + 6:.1f}" y="{y + 16:.1f}">'
            f"{value:.1f}{escape(unit)}</text>"
        )
        if name in ends:
            drawn.append(
                f'<line x1="{label + low:.1f}" x2="{label + high:.1f}" y1="{y + 12:.1f}" '
                f'y2="{y + 12:.1f}" stroke="var(--ink)" stroke-width="1.5"/>'
            )
    return _figure(escape(title), width, row * len(values), drawn)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values over steps; a chart of curves gives each its colour by its place."""

    name: str
    """Shown with the values under the pointer."""
    points: Sequence[tuple[float, float]]
    """(place along the axis, value), ascending; drawn as a line."""
    dots: Sequence[tuple[float, float]] = ()
    """(place along the axis, value); drawn one by one."""


def curves(
    title: str,
    lines: Sequence[Curve],
    smoothing: float = 0.0,
    *,
    along: str = "step",
    legend: bool = False,
) -> str:
    """Several curves over the same steps, as SVG; values show under the pointer.

    Args:
        title: shown above.
        lines: the curves; values that are not finite are left out.
        smoothing: weight of the past in an exponential mean, 0 to 1; the values themselves stay
            visible behind it.
        along: what the horizontal axis counts, from 0, said with the values.
        legend: whether the title says which colour is which curve.
    """
    width, height, left = 500.0, 210.0, 48.0
    drawn: list[str] = []
    raw = [_thinned(line.points) for line in lines]
    smooth = [_smoothed(points, smoothing) for points in raw]
    dots = [[dot for dot in line.dots if isfinite(dot[1])] for line in lines]
    xs = [x for points in (*raw, *dots) for x, _ in points] or [0.0]
    # A single outlier shall not flatten the rest: raw values do not decide the range.
    ys = [y for points in (*smooth, *dots) for _, y in points] or [0.0]
    steps, values = _ticks(0.0, max(xs), 5), _ticks(min(ys), max(ys), 4)
    x_end, bottom, top = max(xs) or 1.0, values[0], values[-1]

    def at(point: tuple[float, float]) -> tuple[float, float]:
        y = min(max(point[1], bottom), top)
        along = (width - left - 10) * point[0] / x_end
        return left + along, height - (y - bottom) / (top - bottom) * (height - 8)

    def is_inside(point: tuple[float, float]) -> bool:
        return bottom <= point[1] <= top

    for value in values:
        y = at((0.0, value))[1]
        drawn.append(
            f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>'
        )
    for step in (step for step in steps if step <= x_end):
        x = at((step, bottom))[0]
        drawn.append(
            f'<text x="{x:.1f}" y="{height + 15}" text-anchor="middle">{_short(step)}</text>'
        )
    for number, line in enumerate(lines):
        colour = _colour(number)
        if smoothing > 0:
            # A value outside of the range is not drawn at its edge, which would be another value.
            for inside, part in groupby(raw[number], is_inside):
                if inside:
                    drawn.append(_polyline(map(at, part), colour, 'stroke-opacity="0.25"'))
        drawn.append(_polyline(map(at, smooth[number]), colour, 'stroke-width="1.6"'))
        every = max(1, len(smooth[number]) // 60)
        name = f"{line.name}, {along}"
        # Of a single point the line would not be seen.
        hover = (3.2, colour) if len(smooth[number]) == 1 else (5, "transparent")
        drawn += [_hover(name, p, at(p), *hover) for p in smooth[number][::every]]
        drawn += [_hover(name, p, at(p), 3.2, colour) for p in dots[number]]
    names = _legend(line.name for line in lines) if legend else ""
    return _figure(escape(title) + names, width, height + 20, drawn)


def _thinned(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """Means over neighbours, so that there are not more points than a screen shows."""
    finite = [point for point in points if isfinite(point[1])]
    size = -(-len(finite) // most) or 1
    groups = (finite[at : at + size] for at in range(0, len(finite), size))
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _smoothed(points: Sequence[tuple[float, float]], weight: float) -> list[tuple[float, float]]:
    """The exponential mean, without the pull of its start towards zero."""
    total, share, result = 0.0, 0.0, []
    for x, y in points:
        total, share = weight * total + (1 - weight) * y, weight * share + (1 - weight)
        result.append((x, total / share))
    return result


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About so many round numbers, the first at most `low` and the last at least `high`."""
    # Equal but for rounding is equal: marks so close would be one and the same number.
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        high = low + (abs(low) or 1.0) * 0.1
    rough = (high - low) / count
    size = 10.0 ** floor(log10(rough))
    size *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
    first, last = floor(low / size + 1e-9), ceil(high / size - 1e-9)
    return [number * size for number in range(first, last + 1)]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"


def _exact(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def _polyline(places: Iterable[tuple[float, float]], colour: str, look: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" {look}/>'


def _hover(
    name: str, point: tuple[float, float], place: tuple[float, float], radius: float, colour: str
) -> str:
    return (
        f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="{radius}" fill="{colour}">'
        f"<title>{escape(name)} {_exact(point[0])}: {point[1]:.4g}</title></circle>"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], strong: Sequence[int] = ()) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = []
    for number, row in enumerate(rows):
        kind = ' class="strong"' if number in strong else ""
        cells = (f"<td{_direction(cell)}>{escape(cell)}</td>" for cell in row)
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _direction(text: str) -> str:
    """Lets a text in Arabic or Hebrew run from right to left; its first letter decides."""
    runs_left = not text.isascii() and any(bidirectional(mark) in ("R", "AL") for mark in text)
    return ' dir="auto"' if runs_left else ""


def _binned(values: Sequence[float], bins: int) -> list[float]:
    counts = [0] * bins
    for value in values:
        counts[min(max(int(value * bins), 0), bins - 1)] += 1
    return [count / max(len(values), 1) for count in counts]


def _colour(number: int) -> str:
    return f"var(--{_COLOURS[number % len(_COLOURS)]})"


def _legend(names: Iterable[str]) -> str:
    return "".join(
        f' <span style="color:{_colour(number)}">&#9632;</span> {escape(name)}'
        for number, name in enumerate(names)
    )


def _figure(caption: str, width: float, height: float, drawn: Sequence[str]) -> str:
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img">{"".join(drawn)}</svg></figure>'
    )


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
