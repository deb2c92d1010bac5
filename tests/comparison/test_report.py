"""The report: Markdown, CSV and a page, which say the same."""

import csv
import re
from pathlib import Path

import pytest

from openblip.comparison.run import Compared
from openblip.comparison.tables import signed
from openblip.metrics.bootstrap import Difference


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table_of(text: str, title: str) -> list[list[str]]:
    part = text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_line_for_each_model(compared: Compared) -> None:
    header, _, *rows = table_of(compared.text, "CapFilt")
    assert header == ["model", "retrieval.R@1", "caption.CIDEr", "FLOP", "time"]
    assert [row[0] for row in rows] == ["the noise", "CapFilt"]
    assert re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", rows[0][1])


def test_a_line_for_each_figure(compared: Compared) -> None:
    header, _, *rows = table_of(compared.text, "Models")
    assert header == ["task", "metric", "the noise", "CLIP"]
    assert [row[:2] for row in rows[:2]] == [["retrieval", "TR@1"], ["caption", "CIDEr"]]
    assert rows[1][3] == "-"
    assert "\nCLIP has no caption.CIDEr: this checkpoint has no lm head" in compared.text
    assert [row[1] for row in rows[2:]] == ["FLOP", "time"]


def test_gains_over_another_model(compared: Compared) -> None:
    header, _, row = table_of(compared.text, "Domains")
    assert header[:2] == ["domain", "data set"]
    assert header[-3:] == ["gain over CLIP", "images", "needed"]
    assert row[:4] == ["drawn", "world", "CapFilt", "retrieval.R@5"]
    assert re.match(r"[+-]\d", row[-3])
    assert re.fullmatch(r"[\d,]+", row[-2])
    assert re.fullmatch(r"enough|more seeds|(over )?[\d,]+", row[-1])
    assert "how many test images would decide" in compared.text


def test_the_files_hold_the_same_figures(compared: Compared) -> None:
    text = (compared.folder / "report.md").read_text(encoding="utf-8")
    assert text == compared.text
    figures = rows_of(compared.folder / "figures.csv")
    (found,) = [
        row
        for row in figures
        if (row["table"], row["model"], row["figure"]) == ("CapFilt", "both", "retrieval.R@1")
    ]
    assert table_of(text, "CapFilt")[3][1] == (
        f"{float(found['value']):.1f} [{float(found['low']):.1f}, {float(found['high']):.1f}]"
    )
    assert (found["seeds"], found["images"], found["baseline"]) == ("2", "16", "noise")
    mean = sum(map(float, found["by_seed"].split())) / 2
    assert mean == pytest.approx(float(found["value"]), abs=0.01)
    (claim,) = rows_of(compared.folder / "claims.csv")
    assert float(claim["difference"]) == pytest.approx(float(found["difference"]))
    assert claim["verdict"] in ("holds", "does not hold", "not decided")


def test_the_page_has_every_table_and_bars_with_their_intervals(compared: Compared) -> None:
    page = (compared.folder / "report.html").read_text(encoding="utf-8")
    for title in ("Claims", "CapFilt", "Models", "Domains"):
        assert f"<h2>{title}</h2>" in page
    assert "CapFilt &gt; none" in page
    assert "<p>CLIP has no caption.CIDEr: this checkpoint has no lm head" in page
    # Two figures of two tables, one of the third; CLIP has no captions.
    assert page.count("<figure>") == 5
    assert page.count('stroke-width="1.5"') == 2 + 2 + 2 + 1 + 2


def test_a_difference_says_how_sure_it_is() -> None:
    assert signed(Difference(2.0, 0.5, 3.0, 0.012)) == "+2.0 [+0.5, +3.0]* p 0.012"
    assert signed(Difference(-2.0, -5.0, 1.0, 0.3)) == "-2.0 [-5.0, +1.0] p 0.300"
