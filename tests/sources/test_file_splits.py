"""A file has one split, however many records and lists of a source name it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport
from openblip.table.table import PairTable

Jpeg = Callable[..., bytes]
Rows = dict[str, tuple[str, list[str]]]


@pytest.fixture
def folder(tmp_path: Path, jpeg: Jpeg) -> Path:
    (tmp_path / "p" / "images").mkdir(parents=True)
    for number, name in enumerate("abc"):
        (tmp_path / "p" / "images" / f"{name}.png").write_bytes(jpeg(number))
    return tmp_path / "p"


def _imported(source: Path, name: str = "out.lance", **options: Any) -> tuple[ImportReport, Rows]:
    table = (source if source.is_dir() else source.parent).with_name(name)
    report = import_pairs(source, table, show_progress=False, **options)
    found: Rows = {}
    if report.num_rows:
        for row in PairTable.open(table).take(range(report.num_rows)).to_pylist():
            found[row["id"]] = (row["split"], row["captions"])
    return report, found


SPELT = ["./images/a.png", "images//a.png", "images/../images/a.png", "images/./a.png"]


def _as_json(records: list[dict[str, Any]]) -> str:
    return json.dumps(records)


def _as_lines(records: list[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, records))


def _as_csv(records: list[dict[str, Any]]) -> str:
    lines = [f"{r['image']},{r['caption']},{r.get('split', '')}" for r in records]
    return "\n".join(["image,caption,split", *lines])


FORMS = [("list.json", _as_json), ("captions.jsonl", _as_lines), ("list.csv", _as_csv)]


@pytest.mark.parametrize("name", SPELT)
@pytest.mark.parametrize(("file", "write"), FORMS)
def test_an_image_has_one_name_however_it_is_spelt(
    folder: Path, file: str, write: Callable[[Any], str], name: str
) -> None:
    records = [
        {"image": "images/a.png", "caption": "one", "split": "test"},
        {"image": name, "caption": "two"},
    ]
    (folder / file).write_text(write(records))
    _, rows = _imported(folder / file)
    assert rows == {"images/a.png": ("test", ["one", "two"])}


def test_questions_have_one_image_however_it_is_spelt(folder: Path) -> None:
    asked = {"question": "what?", "answer": "it"}
    records = [{"image": name, **asked} for name in ("images/a.png", *SPELT)]
    (folder / "vqa.json").write_text(json.dumps([{**records[0], "Split": "test"}, *records[1:]]))
    report, rows = _imported(folder / "vqa.json")
    assert rows == {"images/a.png": ("test", [])}
    assert report.num_seen == 5


@pytest.mark.parametrize(("file", "write"), FORMS)
@pytest.mark.parametrize("order", [1, -1])
def test_an_image_in_two_splits_is_a_contradiction_that_names_both(
    folder: Path, file: str, write: Callable[[Any], str], order: int
) -> None:
    records = [
        {"image": "images/a.png", "caption": "one", "split": "test"},
        {"image": "images/b.png", "caption": "other", "split": "train"},
        {"image": "./images/a.png", "caption": "two", "split": "train"},
    ][::order]
    (folder / file).write_text(write(records))
    report, rows = _imported(folder / file)
    assert rows == {"images/b.png": ("train", ["other"])}
    assert report.skipped == {"contradiction": 2}
    said = " ".join(example.detail for example in report.examples["contradiction"])
    assert "test" in said
    assert "train" in said
    # The user's word is above all.
    assert _imported(folder / file, "val.lance", split="val")[0].splits == {"val": 2}


@pytest.mark.parametrize("order", [1, -1])
def test_what_one_record_says_of_an_image_holds_for_all_of_its_records(
    folder: Path, order: int
) -> None:
    records = [
        {"image": "images/a.png", "id": "1", "caption": "one", "split": "test"},
        {"image": "images/b.png", "id": "2", "caption": "other"},
        {"image": "images/a.png", "id": "3", "caption": "two"},
    ][::order]
    (folder / "captions.jsonl").write_text(_as_lines(records))
    report, rows = _imported(folder)
    assert {key: split for key, (split, _) in rows.items()} == {
        "1": "test",
        "2": "train",
        "3": "test",
    }
    assert report.split_from["test"]["another record of the same image"] == 1


def test_two_ids_of_one_file_in_coco_are_in_one_split(folder: Path) -> None:
    images = [
        {"id": 8, "file_name": "images/a.png", "split": "test"},
        {"id": 9, "file_name": "./images/a.png"},
        {"id": 10, "file_name": "images/b.png"},
    ]
    annotations = [{"id": n, "image_id": n, "caption": f"text {n}"} for n in (8, 9, 10)]
    document = {"images": images, "annotations": annotations}
    (folder / "x.json").write_text(json.dumps(document))
    _, rows = _imported(folder / "x.json")
    assert {key: split for key, (split, _) in rows.items()} == {
        "8": "test",
        "9": "test",
        "10": "train",
    }
    images[1]["SPLIT"] = "train"
    (folder / "x.json").write_text(json.dumps(document))
    report, _ = _imported(folder / "x.json", "again.lance")
    assert report.skipped["contradiction"] == 2


def test_lists_of_a_folder_that_name_one_image_contradict_each_other(folder: Path) -> None:
    (folder / "train.csv").write_text("image,caption\nimages/a.png,one\nimages/b.png,two\n")
    (folder / "test.jsonl").write_text('{"image": "images/a.png", "caption": "three"}')
    report, rows = _imported(folder)
    assert rows == {"images/b.png": ("train", ["two"])}
    assert report.skipped["contradiction"] == 2


def test_it_holds_over_interruptions(folder: Path) -> None:
    records = [
        {"image": "images/b.png", "caption": "other"},
        {"image": "images/a.png", "caption": "one", "split": "train"},
        {"image": "images/c.png", "caption": "more", "split": "train"},
        {"image": "images/a.png", "caption": "two", "split": "test"},
    ]
    (folder / "captions.jsonl").write_text(_as_lines(records))
    _imported(folder, limit=1)
    report, rows = _imported(folder)
    assert sorted(rows) == ["images/b.png", "images/c.png"]
    assert report.skipped == {"contradiction": 2}
