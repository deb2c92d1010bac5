"""Report pages: self-contained, escaped, whole or absent."""

import base64
import hashlib
import re
from pathlib import Path

from PIL import Image

from openblip.runtime.charts import bars, histogram
from openblip.runtime.page import CardText, Page


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


def test_a_verdict_is_a_word_and_a_colour(tmp_path: Path) -> None:
    page = Page("t", "l")
    texts = [CardText("a", "no. 1", "wrong"), CardText("b", "", "right"), CardText("c", "")]
    page.cards([(Image.new("RGB", (8, 8)), texts)])
    html = page.save(tmp_path / "p.html").read_text(encoding="utf-8")
    assert 'class="text wrong"' in html
    assert "<b>right</b>" in html
    assert html.count('class="tag"') == 2


def test_tables_stand_side_by_side_below_their_names(tmp_path: Path) -> None:
    page = Page("t", "l")
    page.tables(["", "n"], {"often <b>": [["x", "1"]], "seldom": [["y", "2"]]})
    page.quote("somebody's <i>words</i>")
    html = page.save(tmp_path / "p.html").read_text(encoding="utf-8").split("<main>")[1]
    assert html.count("<table>") == 2
    assert "often &lt;b&gt;" in html
    assert "<i>" not in html


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


def test_a_long_table_can_be_sorted_and_nothing_else_can_run(tmp_path: Path) -> None:
    rows = [[f"row {n}", f"{n:,}", "<script>alert(1)</script>"] for n in range(12)]
    short, long = Page("t", "l"), Page("t", "l")
    short.table(["name", "n", ""], rows[:11])
    long.table(["name", "n", ""], rows)
    html = short.save(tmp_path / "short.html").read_text("utf-8")
    assert "<script" not in html
    assert "default-src 'none'" in html
    assert "script-src" not in html
    html = long.save(tmp_path / "long.html").read_text("utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)[0]
    assert f"script-src 'sha256-{digest}';" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_columns_of_numbers_stand_to_the_right_and_texts_to_the_left(tmp_path: Path) -> None:
    page = Page("t", "l")
    page.table(
        ["text", "count", "share", "interval", "empty", "words"],
        [["b", "1,200", "36 %", "4.1 [3, 5]", "", "a b " * 9], ["2a?", "-", "-0.5", "", "", "3"]],
    )
    html = page.save(tmp_path / "p.html").read_text("utf-8")
    kinds = re.findall(r'<th scope="col" class="(\w*)">', html)
    assert kinds == ["", "number", "number", "number", "", "prose"]
    assert '<div class="scroll number-2 number-3 number-4 prose-6" tabindex="0"' in html
    assert ".number-2 td:nth-child(2) { text-align: end; }" in html


def test_a_table_is_reached_with_the_keyboard_and_has_a_name(tmp_path: Path) -> None:
    page = Page("t", "l")
    page.table(["", 'a "name"', "n"], [["x", "y", "1"]])
    html = page.save(tmp_path / "p.html").read_text("utf-8")
    told = 'class="scroll number-3" tabindex="0" role="region" aria-label="a &quot;name&quot;, n"'
    assert told in html


def test_a_row_with_fewer_cells_is_shown(tmp_path: Path) -> None:
    page = Page("t", "l")
    page.table(["a", "b"], [["1"]])
    html = page.save(tmp_path / "p.html").read_text("utf-8")
    assert html.count("<td") == 2


def test_rejected_words_are_as_legible_as_others(tmp_path: Path) -> None:
    page = Page("t", "l")
    page.warning("<b>beware</b>")
    page.cards([(Image.new("RGB", (8, 8)), [CardText("words", "", "rejected")])])
    html = page.save(tmp_path / "p.html").read_text("utf-8")
    assert "line-through" not in html
    assert not re.search(r"\.rejected[^{]*\.words", html)
    assert '<p class="warning" role="note">&lt;b&gt;beware' in html
