"""Annotations in a folder, and in several files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openblip.runtime.errors import DataError
from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport
from openblip.table.table import PairTable

Jpeg = Callable[..., bytes]


@pytest.fixture
def folder(tmp_path: Path, jpeg: Jpeg) -> Path:
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("a", "b", "c")):
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(jpeg(number))
    return tmp_path / "photos"


def write(file: Path, content: object) -> None:
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def coco(name: str, key: int) -> dict[str, Any]:
    annotation = {"id": 1, "image_id": key, "caption": f"text of {name}"}
    return {"images": [{"id": key, "file_name": name}], "annotations": [annotation]}


def imported(source: Path | str, table: Path, **options: Any) -> tuple[ImportReport, list[str]]:
    report = import_pairs(source, table, show_progress=False, **options)
    ids = PairTable.open(table).take(range(report.num_rows), ["id"])["id"].to_pylist()
    return report, ids


def test_files_that_differ_in_their_split_are_all_read(folder: Path, tmp_path: Path) -> None:
    write(folder / "captions_train2014.json", coco("a.jpg", 1))
    write(folder / "captions_val2014.json", coco("b.jpg", 2))
    write(folder / "instances_val2014.json", {"images": [], "annotations": []})
    report, ids = imported(folder, tmp_path / "t")
    assert (report.format, ids, report.splits) == ("coco", ["1", "2"], {"train": 1, "val": 1})
    # A file that is not read is not passed over without a word.
    assert report.skipped == {"missing caption": 1, "other file": 1}
    assert report.examples["missing caption"][0].where == "c.jpg"
    assert report.examples["other file"][0].where == "instances_val2014.json"


A, B = {"image": "a.jpg", "caption": "x"}, {"image": "b.jpg", "caption": "y"}


@pytest.mark.parametrize("name", ["captions.json", "annotations.json"])
@pytest.mark.parametrize(
    "document",
    [
        {"train": [A], "test": [B]},
        {"train": [A], "test": [B], "version": 1, "info": {"by": "me"}},
        {"train": [A], "test": [{**B, "split": "test"}]},
        {"train": {"a.jpg": "x"}, "test": {"b.jpg": ["y"]}},
        {"training": {"a.jpg": {"caption": "x"}}, "holdout": {"b": {"caption": "y"}}},
        {"captions": {"train": {"a.jpg": "x"}, "test": {"b.jpg": "y"}}},
    ],
)
def test_records_may_stand_under_their_splits(
    folder: Path, tmp_path: Path, name: str, document: object
) -> None:
    for image in "ab":
        (folder / f"{image}.txt").write_text("beside")
    write(folder / name, document)
    for number, source in enumerate((folder / name, folder)):
        report, _ = imported(source, tmp_path / f"t{number}")
        assert (report.splits, report.num_captions) == ({"train": 1, "test": 1}, 2)


def test_what_stands_under_another_word_or_says_another_split_is_left_out(
    folder: Path, tmp_path: Path
) -> None:
    c = {"image": "c.jpg", "caption": "z"}
    write(folder / "captions.json", {"test": [{**A, "split": "train"}], "val": [B], "extra": [c]})
    report, _ = imported(folder / "captions.json", tmp_path / "t")
    assert (report.splits, report.skipped) == ({"val": 1}, {"contradiction": 1, "bad record": 1})
    assert "unknown split 'extra'" in report.examples["bad record"][0].detail


@pytest.mark.parametrize(
    "document",
    [
        {"split": "test", "annotations": {"a.jpg": "x", "b.jpg": "y"}},
        {"split": "test", "captions": {"a.jpg": "x", "b.jpg": "y"}},
        {"info": {"split": "test"}, "captions": {"a.jpg": "x", "b.jpg": "y"}},
        {"split": "test", "data": [A, B]},
        {"split": "test", "annotations": [A, B]},
        {"split": "test", "a.jpg": "x", "b.jpg": "y"},
        {"info": {"split": "test"}, "a.jpg": {"caption": "x"}, "b.jpg": {"caption": "y"}},
    ],
)
def test_what_a_file_says_of_the_split_holds_for_all_of_its_images(
    folder: Path, tmp_path: Path, document: object
) -> None:
    write(folder / "captions.json", document)
    report, _ = imported(folder / "captions.json", tmp_path / "t")
    assert (report.splits, report.skipped) == ({"test": 2}, {})


def test_a_pattern_names_several_files(folder: Path, tmp_path: Path) -> None:
    write(folder / "captions_train2014.json", coco("a.jpg", 1))
    write(folder / "captions_val2014.json", coco("b.jpg", 2))
    report, ids = imported(f"{folder}/captions_*.json", tmp_path / "t")
    assert (ids, report.num_skipped) == (["1", "2"], 0)


def test_an_import_of_several_files_goes_on_after_any_row(folder: Path, tmp_path: Path) -> None:
    for name, key in (("train", 1), ("val", 2), ("test", 3)):
        write(folder / f"captions_{name}.json", coco(f"{'abc'[key - 1]}.jpg", key))
    write(folder / "other.json", {})
    for limit in (1, 2, 3, None):
        report, ids = imported(folder, tmp_path / "t", limit=limit)
        assert len(ids) == min(limit or 3, 3)
    assert (sorted(ids), report.complete) == (["1", "2", "3"], True)
    assert (report.num_seen, report.skipped) == (4, {"other file": 1})


def test_a_later_file_that_is_damaged_does_not_stop_the_others(
    folder: Path, tmp_path: Path
) -> None:
    write(folder / "captions_test.json", coco("a.jpg", 1))
    write(folder / "captions_train.json", "{")
    write(folder / "captions_val.json", coco("b.jpg", 2))
    report, ids = imported(folder, tmp_path / "t")
    assert (ids, report.skipped) == (["1", "2"], {"bad record": 1, "missing caption": 1})
    assert "captions_train.json" in report.examples["bad record"][0].where


def test_of_several_kinds_one_must_be_named(folder: Path, tmp_path: Path) -> None:
    write(folder / "captions_val2014.json", coco("a.jpg", 1))
    write(folder / "dataset_coco.json", {"images": []})
    with pytest.raises(DataError, match=r"captions_val2014\.json, dataset_coco\.json: name one"):
        import_pairs(folder, tmp_path / "t", show_progress=False)


@pytest.mark.parametrize("name", ["labels.json", "val.json", "anything.json"])
def test_the_one_json_file_of_a_folder_is_read(folder: Path, tmp_path: Path, name: str) -> None:
    # FiftyOne writes labels.json beside data/.
    (folder / "data").mkdir()
    (folder / "a.jpg").rename(folder / "data" / "d.jpg")
    write(folder / name, coco("d.jpg", 1))
    report, ids = imported(folder, tmp_path / "t")
    assert (report.format, ids) == ("coco", ["1"])


def test_questions_and_the_annotations_beside_them_are_one_source(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "a.jpg").rename(folder / "COCO_val2014_000000000042.jpg")
    question = {"image_id": 42, "question": "What?", "question_id": 1}
    write(folder / "OpenEnded_mscoco_val2014_questions.json", {"questions": [question]})
    annotation = {"question_id": 1, "answers": [{"answer": "tail", "answer_confidence": "yes"}]}
    write(folder / "mscoco_val2014_annotations.json", {"annotations": [annotation]})
    report, ids = imported(folder, tmp_path / "t")
    assert (report.format, ids, report.skipped) == ("vqa", ["42"], {"missing caption": 2})


def test_images_that_no_annotation_names_are_not_passed_over(folder: Path, tmp_path: Path) -> None:
    write(folder / "captions_train.json", coco("a.jpg", 1))
    (folder / "c.txt").write_text("text of c")
    report, ids = imported(folder, tmp_path / "t")
    assert (ids, report.skipped) == (["1", "c"], {"missing caption": 1})
    assert report.examples["missing caption"][0].where == "b.jpg"
    # The file of annotations itself is as many as the records in it.
    assert (report.num_seen, report.num_used) == (4, 3)
    report, ids = imported(folder, tmp_path / "all", without_captions=True)
    assert (ids, report.skipped) == (["1", "b", "c"], {})


def test_an_import_of_annotations_and_what_is_beside_goes_on_after_any_row(
    folder: Path, tmp_path: Path
) -> None:
    write(folder / "captions_train.json", coco("a.jpg", 1))
    for limit in (1, 2, None):
        report, ids = imported(folder, tmp_path / "t", limit=limit, without_captions=True)
        assert ids == ["1", "b", "c"][:limit]
    assert (report.num_seen, report.skipped) == (3, {})


def test_an_image_that_two_files_put_into_two_splits_is_in_none(
    folder: Path, tmp_path: Path
) -> None:
    write(folder / "captions_train.json", coco("a.jpg", 1))
    write(folder / "captions_val.json", coco("a.jpg", 2))
    write(folder / "captions_test.json", coco("b.jpg", 3))
    report, ids = imported(folder, tmp_path / "t", without_captions=True)
    assert (ids, report.splits["test"], report.skipped) == (["3", "c"], 1, {"contradiction": 2})
    assert "'train' and 'val'" in report.examples["contradiction"][0].detail


@pytest.mark.parametrize(
    "files",
    [
        {"a.txt": "one", "b.txt": "two", "stats.json": {"count": 2}},
        {"a.txt": "one", "b.txt": "two", "list.json": [{"image": "c.jpg", "caption": "x"}]},
        {"a.json": {"caption": "one"}, "b.json": {"caption": "two"}},
        {"a.txt": "one", "b.txt": "two", "dataset_info.json": {"x": 1}},
    ],
)
def test_texts_beside_images_are_not_passed_over_for_a_json_file(
    folder: Path, tmp_path: Path, files: dict[str, object]
) -> None:
    for name, content in files.items():
        write(folder / name, content)
    report, ids = imported(folder, tmp_path / "t")
    assert (report.format, ids) == ("folder", ["a", "b"])


def test_what_caption_writes_about_its_settings_is_no_annotation(
    folder: Path, tmp_path: Path
) -> None:
    write(folder / "captions.json", [{"image_id": "a.jpg", "caption": "x"}])
    write(folder / "captions.json.settings.json", {"num_beams": 3})
    report, ids = imported(folder, tmp_path / "t")
    assert (ids, report.skipped) == (["a.jpg"], {"missing caption": 2, "other file": 1})


def test_an_id_that_two_files_have_for_two_images_hides_neither(
    folder: Path, tmp_path: Path
) -> None:
    for name, image in (("train", "a.jpg"), ("val", "./b.jpg"), ("test", "c.jpg")):
        write(folder / f"captions_{name}.json", coco(image, 1))
    for limit in (1, 2, None):
        report, ids = imported(folder, tmp_path / "t", limit=limit)
        assert ids == ["1", "a.jpg", "b.jpg"][:limit]
    assert (report.splits, report.skipped) == ({"test": 1, "train": 1, "val": 1}, {})
