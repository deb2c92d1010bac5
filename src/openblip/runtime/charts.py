"""Charts of report pages, drawn as SVG: no script, no library, light and dark with the page.

All are drawn about as wide as a phone is, and scale with their column, so that what is written on
them stays legible.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import ceil, floor, isfinite, log10

_COLOURS = ("blue", "orange", "green", "red", "violet", "teal", "pink", "brown")
_WIDTH = 400.0
_BINS = 20
# Of the scores; those that lie further out are counted in the outermost bars where the rest would
# be squeezed into a few.
_OUTLIERS = 0.001


def histogram(
    title: str,
    series: Mapping[str, Sequence[float]],
    threshold: float | None = None,
    axis: str = "",
) -> str:
    """Shares of scores in twenty bins over the range that they have, one colour a series, as SVG.

    Args:
        title: shown above.
        series: scores by name, at most four series.
        threshold: a line at this score; told in words where no score is near.
        axis: what the scores are, below them.
    """
    low, high, beyond = _range([value for values in series.values() for value in values])
    ticks = _ticks(low, high, 5)
    first, last = ticks[0], ticks[-1]
    counts = {name: _binned(values, first, last) for name, values in series.items()}
    shares = {name: [n / max(sum(own), 1) for n in own] for name, own in counts.items()}
    highest = max((max(share) for share in shares.values()), default=0.0) or 1.0
    height, top = 150.0, 16.0

    def across(value: float) -> float:
        return _WIDTH * (value - first) / (last - first)

    drawn = [
        f'<line x1="0" x2="{_WIDTH:g}" y1="{top}" y2="{top}" stroke="var(--line)"/>'
        f'<text x="{_WIDTH:g}" y="{top - 4}" text-anchor="end">highest: {_percent(highest)}</text>'
    ]
    slot = _WIDTH / _BINS
    bar = (slot - 2) / max(len(shares), 1)
    for number, (name, share) in enumerate(shares.items()):
        for place, value in enumerate(share):
            tall = value / highest * (height - top)
            edges = (first + (last - first) * edge / _BINS for edge in (place, place + 1))
            drawn.append(
                f'<rect x="{place * slot + 1 + number * bar:.1f}" y="{height - tall:.1f}" '
                f'width="{bar:.1f}" height="{tall:.1f}" fill="{_colour(number)}">'
                f"<title>{escape(name)}, {' to '.join(f'{edge:.4g}' for edge in edges)}: "
                f"{counts[name][place]:,} ({_percent(value)})</title></rect>"
            )
    for mark in ticks:
        anchor = "start" if mark == first else "end" if mark == last else "middle"
        drawn.append(
            f'<text x="{across(mark):.1f}" y="{height + 14}" text-anchor="{anchor}">'
            f"{_short(mark)}</text>"
        )
    notes = [f"{beyond:,} further out are in the outermost bars"] if beyond else []
    if threshold is not None:
        if first <= threshold <= last:
            drawn.append(_threshold_line(threshold, across(threshold), height))
        else:
            side = "above" if threshold > last else "below"
            notes.append(f"the threshold {threshold:g} is {side} all of them")
    drawn.append(
        f'<text x="{_WIDTH / 2:g}" y="{height + 30}" text-anchor="middle">{escape(axis)}</text>'
    )
    key = colour_key(f"{name} ({len(values):,})" for name, values in series.items())
    said = f"<br>{escape('; '.join(notes))}" if notes else ""
    return _figure(title, height + 34, drawn, key + said)


def _threshold_line(threshold: float, x: float, height: float) -> str:
    at, anchor = (x + 4, "start") if x < 0.7 * _WIDTH else (x - 4, "end")
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}" stroke="var(--ink)" '
        f'stroke-dasharray="4 3"/><text x="{at:.1f}" y="28" text-anchor="{anchor}" '
        f'class="ink" paint-order="stroke" stroke="var(--paper)" stroke-width="3">'
        f"threshold {threshold:g}</text>"
    )


def _range(values: Sequence[float]) -> tuple[float, float, int]:
    """From where to where scores lie, and how many of them further out."""
    finite = sorted(value for value in values if isfinite(value))
    if not finite:
        return 0.0, 1.0, 0
    few = int(_OUTLIERS * len(finite))
    inner = finite[few : len(finite) - few]
    # A handful far off shall not make one bar of all the others.
    if inner[-1] - inner[0] < 0.5 * (finite[-1] - finite[0]):
        return inner[0], inner[-1], 2 * few
    return finite[0], finite[-1], 0


def _binned(values: Sequence[float], first: float, last: float) -> list[int]:
    counts = [0] * _BINS
    for value in values:
        if isfinite(value):
            place = int((value - first) / (last - first) * _BINS)
            counts[min(max(place, 0), _BINS - 1)] += 1
    return counts


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def bars(
    title: str,
    values: Mapping[str, float],
    unit: str = "",
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Horizontal bars from zero, each below its name and value, as SVG.

    Args:
        title: shown above.
        values: by name; below zero there is no bar.
        unit: behind each value.
        intervals: low and high end by name, said in brackets behind the value and drawn as a line
            with ends over the bar.
    """
    ends = intervals or {}
    highest = max((*values.values(), *(high for _, high in ends.values())), default=0.0) or 1.0
    row = 44.0
    scale = (_WIDTH - 2) / highest
    drawn = []
    for number, (name, value) in enumerate(values.items()):
        y = number * row
        said = f"{value:.1f}{unit}"
        if name in ends:
            said += " ({:.1f} to {:.1f})".format(*ends[name])
        drawn.append(
            f'<text x="0" y="{y + 13:.1f}" class="ink">{escape(_cut(name, said))}</text>'
            f'<text x="{_WIDTH:g}" y="{y + 13:.1f}" text-anchor="end" class="ink">'
            f"{escape(said)}</text>"
            f'<rect x="0.0" y="{y + 19:.1f}" width="{max(value, 0.0) * scale:.1f}" height="16" '
            f'rx="2" fill="{_colour(number)}"><title>{escape(name)}</title></rect>'
        )
        if name in ends:
            low, high = (max(end, 0.0) * scale for end in ends[name])
            drawn.append(_whiskers(low, high, y + 27))
    return _figure(title, row * len(values), drawn)


def _cut(name: str, said: str) -> str:
    """The name, shortened where it would run into what is said at the other end of its line."""
    room = int(_WIDTH / 6.8) - len(said) - 2
    return name if len(name) <= room else f"{name[: room - 1]}…"


def _whiskers(low: float, high: float, y: float) -> str:
    """A line from one end of an interval to the other, and a short one across each end."""
    across = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 5:.1f}" y2="{y + 5:.1f}"/>' for x in (low, high)
    )
    line = f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'<g stroke="var(--ink)" stroke-width="1.5">{line}{across}</g>'


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
    height, left = 190.0, 56.0
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
        along = (_WIDTH - left - 10) * point[0] / x_end
        return left + along, height - (y - bottom) / (top - bottom) * (height - 8)

    def is_inside(point: tuple[float, float]) -> bool:
        return bottom <= point[1] <= top

    for value in values:
        y = at((0.0, value))[1]
        drawn.append(
            f'<line x1="{left}" x2="{_WIDTH:g}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
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
    key = colour_key(line.name for line in lines) if legend else ""
    return _figure(title, height + 20, drawn, key)


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


def _colour(number: int) -> str:
    return f"var(--{_COLOURS[number % len(_COLOURS)]})"


def colour_key(names: Iterable[str]) -> str:
    """Which colour stands for what, as HTML."""
    return "".join(
        f' <span style="color:{_colour(number)}">&#9632;</span> {escape(name)}'
        for number, name in enumerate(names)
    )


def _figure(title: str, height: float, drawn: Sequence[str], more: str = "") -> str:
    """A drawing below its title; `more` is HTML that is shown behind that."""
    return (
        f"<figure><figcaption>{escape(title)}{more}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" width="{_WIDTH:g}" height="{height:g}" '
        f'role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg></figure>'
    )
