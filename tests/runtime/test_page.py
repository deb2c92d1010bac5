"""Report pages: self-contained, escaped, whole or absent."""

import math
import re
from pathlib import Path

import pytest
from PIL import Image

from openblip.runtime.page import CardText, Curve, Page, bars, curves, histogram


def test_a_page_is_one_file_without_scripts_or_network(tmp_path: Path) -> None:
    page = Page("Title", "lead")
    page.section("Part", "text")
    page.table(["name", "n"], [["a", "1"], ["b", "2"]], strong=[1])
    page.facts({"seed": 3})
    page.charts([histogram("scores", {"web": [0.1, 0.9]}, 0.5), bars("R@1", {"a": 1.0, "b": 2.0})])
    page.cards([(Image.new("RGB", (64, 64)), [CardText("words", "tag", "kept")])])

    html = page.save(tmp_path / "deep" / "page.html").read_text(encoding="utf-8")

    assert "<script" not in html
    assert not re.search(r"https?://", html)
    assert html.count('<tr class="strong">') == 1
    assert "data:image/png;base64," in html
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_large_pictures_become_small_jpegs(tmp_path: Path) -> None:
    page = Page("t", "l")
    page.cards([(Image.effect_noise((2000, 1000), 50), [])])
    html = page.save(tmp_path / "p.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" in html
    assert len(html) < 100_000


def test_every_text_is_escaped(tmp_path: Path) -> None:
    evil = "<b>&\"'"
    page = Page(evil, evil)
    page.section(evil, evil)
    page.table([evil], [[evil]])
    page.facts({evil: evil})
    page.charts([bars(evil, {evil: 1.0})])
    page.cards([(Image.new("RGB", (8, 8)), [CardText(evil, evil)])])
    body = page.save(tmp_path / "p.html").read_text(encoding="utf-8").split("<main>")[1]
    assert "<b>&" not in body


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


def test_curves_draw_lines_dots_and_values(tmp_path: Path) -> None:
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


def test_a_verdict_is_a_word_and_a_colour(tmp_path: Path) -> None:
    page = Page("t", "l")
    texts = [CardText("a", "no. 1", "wrong"), CardText("b", "", "right"), CardText("c", "")]
    page.cards([(Image.new("RGB", (8, 8)), texts)])
    html = page.save(tmp_path / "p.html").read_text(encoding="utf-8")
    assert 'class="text wrong"' in html
    assert "<b>right</b>" in html
    assert html.count('class="tag"') == 2


@pytest.mark.parametrize("value", [3.68, 3.74, 80.0, 0.0])
def test_a_curve_that_is_flat_but_for_rounding_is_drawn(value: float) -> None:
    assert "<polyline" in curves(
        "flat", [Curve(name="a", points=[(s, value) for s in range(30)])], 0.8
    )


def test_curves_say_what_they_run_along_and_which_is_which() -> None:
    svg = curves("t", [Curve(name="a", points=[(0.25, 1.0)])], along="confidence", legend=True)
    assert "a, confidence 0.25: 1" in svg
    assert "&#9632;</span> a" in svg


def test_tables_stand_side_by_side_below_their_names(tmp_path: Path) -> None:
    page = Page("t", "l")
    page.tables(["", "n"], {"often <b>": [["x", "1"]], "seldom": [["y", "2"]]})
    page.quote("somebody's <i>words</i>")
    html = page.save(tmp_path / "p.html").read_text(encoding="utf-8").split("<main>")[1]
    assert html.count("<table>") == 2
    assert "often &lt;b&gt;" in html
    assert "<i>" not in html


def test_an_interval_is_drawn_at_the_scale_of_its_bar() -> None:
    drawn = bars("t", {"a": 4.0}, intervals={"a": (2.0, 8.0)})
    (width,) = map(float, re.findall(r'width="([\d.]+)" height="16"', drawn))
    x1, x2 = map(float, re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)"', drawn)[0])
    (start,) = map(float, re.findall(r'<rect x="([\d.]+)"', drawn))
    assert (x1 - start, x2 - start) == pytest.approx((width / 2, 2 * width), abs=0.2)


def test_a_text_from_right_to_left_runs_so_and_the_rest_is_as_ever(tmp_path: Path) -> None:
    page = Page("t", "lead")
    page.quote("قطة نائمة")
    page.table(["name", "n"], [["كلب", "3"]])
    page.facts({"ש": "א", "a": "b"})
    page.cards([(Image.new("RGB", (8, 8)), [CardText("كلب يجري", "0.9", "kept")])])
    html = page.save(tmp_path / "page.html").read_text(encoding="utf-8")
    for text in ("h3", "td", "dt", "dd", 'div class="text kept"'):
        assert f'<{text} dir="auto">' in html
    assert html.count('dir="auto"') == 5
