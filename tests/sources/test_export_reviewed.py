"""What people have judged leaves a table with their verdicts, and comes back as people's."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from openblip.cli import main
from openblip.sources import import_pairs
from openblip.sources.export import FORMATS, export_pairs
from openblip.table.reviews import ReviewLog, ReviewRecord, Verdict
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView


@pytest.fixture
def table(tmp_path: Path, jpeg: Any) -> PairTable:
    """Texts of which one was judged right, one corrected, one wrong; the others not at all."""
    rows = [
        PairRow("a", jpeg(0), captions=["a dog", "a cat"]),
        PairRow("b", jpeg(1), captions=["a red bus"]),
        PairRow("c", jpeg(2), captions=["a car"], origin="human"),
        PairRow("v", jpeg(3), captions=["a bird"], split="val"),
    ]
    table = PairTable.create(tmp_path / "pairs.lance", rows)
    scores = [[0.5, 0.25], [0.75], [0.5], [0.5]]
    table.add_columns(pa.table({"captions_itm": scores, "synthetic": [["a pet"], [], None, []]}))
    judge(table, "a", "web", 0, "a dog", "right")
    judge(table, "a", "web", 0, "a dog", "right", reviewer="ben")
    judge(table, "a", "web", 1, "a cat", "wrong")
    judge(table, "a", "synthetic", 0, "a pet", "partly", edited="a dog\u2028asleep")
    judge(table, "b", "web", 0, "a red bus", "partly", edited="a green bus")
    judge(table, "b", "web", 0, "a red bus", "right", reviewer="ben")
    judge(table, "v", "web", 0, "a bird", "right", edited="a bird, flying")
    return table


def judge(
    table: PairTable, row: str, source: str, place: int, text: str, verdict: Verdict, **more: Any
) -> None:
    values = {"reviewer": "ada", "table_version": table.version, **more}
    record = ReviewRecord(row=row, source=source, place=place, text=text, verdict=verdict, **values)
    ReviewLog.of(table.uri).append([record])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


REVIEWED = CaptionView(sources=("reviewed",))


def test_reviewed_texts_are_written_with_their_verdicts(table: PairTable, tmp_path: Path) -> None:
    export_pairs(table, tmp_path / "out", "jsonl", REVIEWED, show_progress=False)
    (line,) = lines(tmp_path / "out" / "captions.jsonl")
    assert {name: value for name, value in line.items() if name.startswith("caption")} == {
        "captions": ["a dog", "a dog\u2028asleep"],
        "caption_sources": ["reviewed", "reviewed"],
        "caption_itm": [0.5, None],
        "caption_captioners": [None, None],
        "caption_verdicts": ["right", "partly"],
        "caption_given": [None, "a pet"],
        "caption_reviewers": [2, 1],
    }
    # An export without them is as it was.
    export_pairs(table, tmp_path / "given", "jsonl", CaptionView(), show_progress=False)
    assert "caption_verdicts" not in lines(tmp_path / "given" / "captions.jsonl")[0]


@pytest.mark.parametrize("form", FORMATS)
def test_an_import_takes_them_for_texts_of_people(
    form: str, table: PairTable, tmp_path: Path
) -> None:
    view = CaptionView(sources=("human", "reviewed"))
    export_pairs(table, tmp_path / "out", form, view, with_edits=True, show_progress=False)
    origin = "human" if form == "coco" else None  # COCO has no place for it
    again = tmp_path / "again.lance"
    report = import_pairs(tmp_path / "out", again, origin=origin, show_progress=False)
    assert set(report.skipped) <= {"other file"}
    assert not report.noted
    rows = PairTable.open(again).take([0, 1], ["id", "origin", "captions", "meta"]).to_pylist()
    assert [(row["id"], row["origin"], row["captions"]) for row in rows] == [
        ("a", "human", ["a dog", "a dog\u2028asleep"]),
        ("c", "human", ["a car"]),
    ]
    if form in ("jsonl", "parquet", "huggingface"):
        assert json.loads(rows[0]["meta"])["caption_verdicts"] == ["right", "partly"]


def test_columns_have_their_types_and_the_card_names_them(table: PairTable, tmp_path: Path) -> None:
    view = CaptionView(sources=("web", "reviewed"))
    export_pairs(table, tmp_path / "out", "huggingface", view, show_progress=False)
    (file,) = (tmp_path / "out" / "data").glob("*.parquet")
    found = parquet.read_table(file)
    assert found.schema.field("caption_reviewers").type.value_type == pa.int32()
    assert found["caption_verdicts"].to_pylist() == [["right", "partly"], [None]]
    assert found["caption_reviewers"].to_pylist() == [[2, 1], [None]]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| caption_given | of each reviewed text that people have corrected" in card
    assert "name: caption_verdicts" in card


def test_annotations_of_coco_have_them_too(table: PairTable, tmp_path: Path) -> None:
    export_pairs(table, tmp_path / "out", "coco", REVIEWED, show_progress=False)
    notes = json.loads((tmp_path / "out" / "captions_train.json").read_text())["annotations"]
    assert [(n["source"], n["verdict"], n["given"], n["reviewers"]) for n in notes] == [
        ("reviewed", "right", None, 2),
        ("reviewed", "partly", "a pet", 1),
    ]


def test_corrections_are_pairs_of_texts(table: PairTable, tmp_path: Path) -> None:
    report = export_pairs(
        table, tmp_path / "out", "jsonl", CaptionView(), with_edits=True, show_progress=False
    )
    edits = lines(tmp_path / "out" / "edits.jsonl")
    told = ("id", "source", "given", "corrected", "reviewer", "counts", "split")
    assert [tuple(edit[name] for name in told) for edit in edits] == [
        ("a", "synthetic", "a pet", "a dog\u2028asleep", "ada", True, "train"),
        # Another reviewer has found it right as it is: nothing is decided.
        ("b", "web", "a red bus", "a green bus", "ada", False, "train"),
    ]
    assert report.num_edits == 2
    assert "corrections of reviewers, in edits.jsonl: 2" in report.to_text()


def test_the_command_exports_reviewed_texts_corrections_and_what_was_wrong(
    table: PairTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    flags = ["--format", "jsonl", "--reviewed", "--edits", "--rejected"]
    assert main(["data", "export", table.uri, out, *flags]) == 0
    said = capsys.readouterr().out
    assert "1 images with 2 reviewed texts exported" in said
    assert "rejected texts: 1 judged wrong, 1 reviewers undecided" in said
    reasons = {line["text"]: line["reason"] for line in lines(tmp_path / "out" / "rejected.jsonl")}
    assert reasons == {"a cat": "judged wrong", "a red bus": "reviewers undecided"}
    assert len(lines(tmp_path / "out" / "edits.jsonl")) == 2
    clash = ["data", "export", table.uri, f"{out}2", "--reviewed", "--sources", "synthetic"]
    assert main(clash) == 2
    assert "--reviewed is --sources reviewed" in capsys.readouterr().err


def test_the_command_shows_how_many_were_judged(
    table: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "show", table.uri]) == 0
    told = "texts that people have judged: 5 judged, 1 right, 2 corrected, 1 wrong, 1 undecided\n"
    assert told in capsys.readouterr().out
    judge(table, "a", "web", 0, "a text that was there before", "right")
    assert main(["data", "show", table.uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdicts"] == {
        "judged": 5,
        "right": 1,
        "corrected": 2,
        "wrong": 1,
        "undecided": 1,
        "stale": 1,
    }
