"""Report pages: self-contained, escaped, whole or absent."""

import re
from pathlib import Path

import pytest
from PIL import Image

from openblip.page import CardText, Page, bars, histogram


def test_a_page_is_one_file_without_scripts_or_network(tmp_path: Path) -> None:
    page = Page("Title", "lead")
    page.section("Part", "text")
    page.table(["name", "n"], [["a", "1"], ["b", "2"]], strong=[1])
    page.facts({"seed": 3})
    page.charts([histogram("scores", {"web": [0.1, 0.9]}, 0.5), bars("R@1", {"a": 1.0, "b": 2.0})])
    page.cards([(Image.new("RGB", (64, 64)), [CardText("words", "tag", kept=True)])])

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
