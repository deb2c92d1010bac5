"""Charts are true to their numbers, and legible at any width."""

import math
import re

import pytest

from openblip.runtime.charts import Curve, bars, curves, histogram


def test_a_histogram_has_a_bar_per_bin_and_series() -> None:
    svg = histogram("s", {"web": [0.0, 0.5, 1.0], "synthetic": [0.2]})
    assert svg.count("<rect") == 40
    assert "web (3)" in svg


@pytest.mark.parametrize("values", [{}, {"a": []}])
def test_a_histogram_of_nothing_is_empty(values: dict[str, list[float]]) -> None:
    assert "<svg" in histogram("s", values)


def test_bars_are_as_long_as_their_values() -> None:
    widths = [
        float(w)
        for w in re.findall(r'width="([\d.]+)" height="16"', bars("t", {"a": 1.0, "b": 4.0}))
    ]
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.01)


def test_curves_draw_lines_dots_and_values() -> None:
    first = Curve(name="a & b", points=[(n, 5.0 - n / 100) for n in range(300)], dots=[(100, 4.2)])
    second = Curve(name="c", points=[(0, 1.0), (200, math.nan), (300, 2.0)])
    svg = curves("loss", [first, second], smoothing=0.5)
    assert svg.count("<polyline") == 4
    assert "<title>a &amp; b, step 100: 4.2</title>" in svg
    assert "nan" not in svg
    assert "var(--orange)" in svg


def test_a_value_outside_of_the_range_is_not_drawn_at_its_edge() -> None:
    points = [(float(step), 10.0 + step % 2) for step in range(30)]
    points[12] = (12.0, 1e6)
    svg = curves("loss", [Curve(name="a", points=points)], smoothing=0.999)
    raw = re.findall(r'<polyline points="([^"]*)"[^>]*stroke-opacity', svg)
    assert [len(part.split()) for part in raw] == [12, 17]


def test_curves_of_nothing_and_of_one_value_are_drawn() -> None:
    assert "<svg" in curves("loss", [Curve(name="a", points=[])])
    one = curves("loss", [Curve(name="a", points=[(3, 0.0)])])
    assert "step 3: 0" in one
    assert 'r="3.2" fill="var(--blue)"' in one


def test_many_points_become_as_many_as_a_screen_shows() -> None:
    points = [(float(n), float(n % 2)) for n in range(10_000)]
    svg = curves("loss", [Curve(name="a", points=points)])
    (path,) = re.findall(r'points="([^"]*)"', svg)
    assert len(path.split()) == 400


@pytest.mark.parametrize("value", [3.68, 3.74, 80.0, 0.0])
def test_a_curve_that_is_flat_but_for_rounding_is_drawn(value: float) -> None:
    points = [(float(step), value) for step in range(30)]
    assert "<polyline" in curves("flat", [Curve(name="a", points=points)], 0.8)


def test_curves_say_what_they_run_along_and_which_is_which() -> None:
    svg = curves("t", [Curve(name="a", points=[(0.25, 1.0)])], along="confidence", legend=True)
    assert "a, confidence 0.25: 1" in svg
    assert "&#9632;</span> a" in svg


def test_an_interval_is_drawn_at_the_scale_of_its_bar() -> None:
    drawn = bars("t", {"a": 4.0}, intervals={"a": (2.0, 8.0)})
    (width,) = map(float, re.findall(r'width="([\d.]+)" height="16"', drawn))
    x1, x2 = map(float, re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)"', drawn)[0])
    (start,) = map(float, re.findall(r'<rect x="([\d.]+)"', drawn))
    assert (x1 - start, x2 - start) == pytest.approx((width / 2, 2 * width), abs=0.2)


def bars_of(svg: str) -> list[tuple[float, str]]:
    """Height of every bar of a histogram, and what it says under the pointer."""
    found = re.findall(r'<rect [^>]*height="([\d.]+)"[^>]*><title>([^<]*)</title>', svg)
    return [(float(height), said) for height, said in found]


def test_a_histogram_covers_the_range_that_the_scores_have() -> None:
    scores = [0.43 + number / 10_000 for number in range(400)]
    svg = histogram("s", {"web": scores}, 0.45, axis="match <probability>")
    marks = re.findall(r'text-anchor="(?:start|middle|end)">([\d.]+)</text>', svg)
    assert marks == ["0.43", "0.44", "0.45", "0.46", "0.47"]
    assert len([height for height, _ in bars_of(svg) if height > 1]) == 20
    assert bars_of(svg)[0][1] == "web, 0.43 to 0.432: 20 (5.0 %)"
    assert "threshold 0.45</text>" in svg
    assert "match &lt;probability&gt;</text>" in svg


def test_scores_below_zero_have_their_bars_too() -> None:
    svg = histogram("s", {"web": [-0.9, -0.8, 0.1], "synthetic": [0.9]})
    assert sum(height > 1 for height, _ in bars_of(svg)) == 4
    assert ">-1</text>" in svg


def test_a_threshold_that_no_score_is_near_is_told_in_words() -> None:
    low = histogram("s", {"web": [0.01, 0.02, 0.03]}, 0.5)
    assert "the threshold 0.5 is above all of them" in low
    assert "stroke-dasharray" not in low
    assert "the threshold 0 is below all" in histogram("s", {"web": [0.91, 0.92, 0.93]}, 0.0)


def test_a_few_scores_far_off_are_told_and_do_not_squeeze_the_rest() -> None:
    scores = [0.5 + number / 100_000 for number in range(3000)]
    svg = histogram("s", {"web": [*scores, 0.99, 0.01]})
    assert "6 further out are in the outermost bars" in svg
    assert sum(height > 1 for height, _ in bars_of(svg)) >= 15
    counts = [int(said.split(": ")[1].split(" ")[0]) for _, said in bars_of(svg)]
    assert sum(counts) == 3002


def test_equal_scores_and_those_that_are_no_numbers_are_drawn() -> None:
    for values in ([0.5] * 9, [math.nan, 0.5], [math.inf]):
        svg = histogram("s", {"web": values}, 0.5)
        assert "nan" not in svg
        assert svg.count("<rect") == 20


def test_a_value_is_said_beside_its_interval_and_not_at_an_end_of_it() -> None:
    drawn = bars("t", {"a": 41.2}, unit=" %", intervals={"a": (38.1, 44.0)})
    (said,) = re.findall(r'text-anchor="end"[^>]*>([^<]*)<', drawn)
    assert said == "41.2 % (38.1 to 44.0)"
    ends = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)"', drawn)
    assert len(ends) == 3  # the interval, and a mark across each of its ends
    text_y = float(re.findall(r'<text x="0" y="([\d.]+)"', drawn)[0])
    line_y = float(re.findall(r'<line [^>]*y1="([\d.]+)"', drawn)[0])
    assert line_y > text_y + 8


def test_a_long_name_does_not_run_into_its_value() -> None:
    drawn = bars("t", {"a model with a very long name that says all of its settings": 1.0})
    assert "a model with a very long name that says all of its s…<" in drawn
    assert "<title>a model with a very long name that says all of its settings</title>" in drawn


def test_a_chart_has_a_name_for_who_cannot_see_it() -> None:
    for drawn in (histogram("a & b", {}), bars("a & b", {}), curves("a & b", [])):
        assert 'role="img" aria-label="a &amp; b"' in drawn
