"""Lists of names by which a folder says the splits of its images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport
from openblip.table.table import PairTable

Jpeg = Callable[..., bytes]


@pytest.fixture
def photos(tmp_path: Path, jpeg: Jpeg) -> Path:
    """A folder with `img/a.jpg` to `img/d.jpg`, a text beside each."""
    folder = tmp_path / "photos"
    (folder / "img").mkdir(parents=True)
    for number, name in enumerate("abcd"):
        (folder / "img" / f"{name}.jpg").write_bytes(jpeg(number))
        (folder / "img" / f"{name}.txt").write_text(f"text {name}")
    return folder


def _import(folder: Path, **told: Any) -> tuple[ImportReport, dict[str, str]]:
    """The report, and the split of each row by its text."""
    uri = folder.parent / "t"
    report = import_pairs(folder, uri, show_progress=False, **told)
    table = PairTable.open_if_any(uri)
    rows = [] if table is None else table.take(range(len(table))).to_pylist()
    return report, {row["captions"][0][-1]: row["split"] for row in rows}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("splits/test.txt", "b.jpg\nd.jpg\n"),
        ("test.txt", "img/b.jpg\r\nimg/d.jpg\r\n"),
        ("test.txt", "b\nd"),
        ("ImageSets/Main/test.txt", "b -1\nd  1\n"),
        ("my.testImages.txt", "./img/b.jpg\n/home/you/photos/img/d.jpg\n"),
        ("test.lst", "img\\b.jpg\nimg\\d.jpg"),
        ("test_list.txt", "0,b.jpg,cat\n1,d.jpg,dog\n"),
        ("test.csv", "filename,label\nb.jpg,1\nd.jpg,2\n"),
        ("splits/test.json", '["b.jpg", "d.jpg"]'),
        ("splits.json", '{"train": ["a.jpg"], "test": ["b.jpg", "d"], "version": 1}'),
        ("splits.json", '{"b.jpg": "test", "img/d.jpg": "testing"}'),
        ("splits/test.txt", "# held out\nb.jpg\nd.jpg\n# end\n"),
    ],
)
def test_a_list_with_the_name_of_a_split_says_it_of_its_images(
    photos: Path, name: str, content: str
) -> None:
    (photos / name).parent.mkdir(parents=True, exist_ok=True)
    (photos / name).write_text(content)
    report, splits = _import(photos)
    assert splits == {"a": "train", "b": "test", "c": "train", "d": "test"}
    assert report.split_from["test"] == {"a list of the names of its images": 2}
    (example,) = report.examples["other file"]
    assert (example.where, example.detail) == (name, "a list of images, whose split it says")
    assert report.num_seen == 9


def test_several_processes_know_of_the_lists(photos: Path) -> None:
    (photos / "test.txt").write_text("b.jpg\nd.jpg\n")
    for name, images in [("one.csv", "ab"), ("two.csv", "cd")]:
        rows = [f"img/{image}.jpg,more {image}" for image in images]
        (photos / name).write_text("\n".join(["image,caption", *rows]))
    one, _ = _import(photos)
    several = import_pairs(photos, photos.parent / "u", processes=1, show_progress=False)
    assert several.splits == one.splits == {"train": 2, "test": 2}
    assert several.examples == one.examples
    assert several.skipped == one.skipped == {"other file": 5}


def test_what_several_lists_say_must_go_together(photos: Path) -> None:
    (photos / "train.txt").write_text("a.jpg\nb.jpg\n")
    (photos / "val.txt").write_text("b.jpg\nc.jpg\nlost.jpg\n")
    report, splits = _import(photos)
    assert splits == {"a": "train", "c": "val", "d": "train"}
    (example,) = report.examples["contradiction"]
    assert "b.jpg is in 'train' and 'val' here" in example.detail
    details = {example.where: example.detail for example in report.examples["other file"]}
    assert details["val.txt"].endswith("; no image of 1 of its 3 names is here")


def test_a_list_and_the_folder_of_an_image_must_not_contradict_each_other(photos: Path) -> None:
    (photos / "img").rename(photos / "train")
    (photos / "test.txt").write_text("b.jpg\n")
    report, splits = _import(photos)
    assert splits == {"a": "train", "c": "train", "d": "train"}
    (example,) = report.examples["contradiction"]
    assert "'test' and 'train'" in example.detail


def test_records_of_lists_are_told_too_and_the_option_comes_first(photos: Path) -> None:
    for text in photos.glob("img/*.txt"):
        text.unlink()
    records = [{"image": f"img/{name}.jpg", "caption": name} for name in "abcd"]
    records[0]["split"] = "val"
    lines = [json.dumps(record) for record in records]
    (photos / "captions.jsonl").write_text("\n".join(lines))
    (photos / "test.txt").write_text("a.jpg\nb.jpg\n")
    report, splits = _import(photos)
    assert splits == {"b": "test", "c": "train", "d": "train"}
    assert report.skipped["contradiction"] == 1
    told = import_pairs(photos, photos.parent / "u", split="val", show_progress=False)
    assert told.splits == {"val": 4}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.txt", "a dog\na cat on a mat\n"),
        ("test.txt", "x.jpg\ny.jpg\n"),
        ("latest.txt", "b.jpg\nd.jpg\n"),
        ("train_val.txt", "a.jpg\nb.jpg\n"),
        ("img/test.txt", "b.jpg\n"),
        ("test.txt", "\xff\xfe"),
        ("test.json", '{"a": ["b.jpg"]}'),
    ],
)
def test_other_texts_say_nothing(photos: Path, jpeg: Jpeg, name: str, content: str) -> None:
    (photos / "img" / "test.jpg").write_bytes(jpeg(7))
    if name != "img/test.txt":
        (photos / "img" / "test.txt").write_text("text e")
    (photos / name).write_text(content, encoding="latin-1")
    report, _ = _import(photos)
    assert report.splits == {"train": 5}


def test_a_list_of_a_split_that_names_nothing_here_is_told_as_that(photos: Path) -> None:
    (photos / "splits").mkdir()
    (photos / "splits" / "test.txt").write_text("x.jpg\ny.jpg\n")
    report, _ = _import(photos)
    (example,) = report.examples["list of a split that was not understood"]
    assert example.detail.startswith("it names no image here: if it says the split of images")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.txt", "b.png\nd.tif\n"),
        ("test.txt", "B.JPG\nimg/D\n"),
        ("test.csv", "filename,label\nb.png,cat\nd.png,dog\n"),
    ],
)
def test_names_with_another_suffix_or_capitals_count_where_none_is_there_as_it_stands(
    photos: Path, name: str, content: str
) -> None:
    (photos / name).write_text(content)
    report, splits = _import(photos)
    assert splits == {"a": "train", "b": "test", "c": "train", "d": "test"}
    (example,) = report.examples["other file"]
    assert "2 images have its names with another suffix" in example.detail


def test_a_name_as_it_stands_comes_before_one_that_is_alike(photos: Path, jpeg: Jpeg) -> None:
    (photos / "more").mkdir()
    (photos / "more" / "b.png").write_bytes(jpeg(9))
    (photos / "more" / "b.txt").write_text("text e")
    (photos / "test.txt").write_text("b.jpg\n")
    report, _ = _import(photos)
    assert report.splits["test"] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("split.csv", "image,split\na.jpg,train\nb.jpg,test\nc.jpg,train\nd.jpg,testing\n"),
        ("meta.tsv", "file_name\tset_name\nb.jpg\ttest\nd.jpg\ttest\n"),
        ("splits.json", '{"test": [{"file_name": "b.jpg"}, {"image": "img/d.jpg"}]}'),
    ],
)
def test_tables_and_objects_without_texts_say_splits_too(
    photos: Path, name: str, content: str
) -> None:
    (photos / name).write_text(content)
    _, splits = _import(photos)
    assert splits == {"a": "train", "b": "test", "c": "train", "d": "test"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("split.json", '[{"image": "b.jpg", "split": "test"}, {"image": "d", "is_test": true}]'),
        ("split.jsonl", '{"image": "b.jpg", "split": "test"}\n{"image": "d.jpg", "split": "test"}'),
        ("splits.json", '{"b.jpg": {"split": "test"}, "d.jpg": {"split": "test"}}'),
        ("splits.json", '{"version": 1, "splits": {"test": ["b", "d"], "train": ["a"]}}'),
        ("split.txt", "a.jpg train\nb.jpg test\nd.jpg\ttest\n"),
        ("split.txt", "image split\nb.jpg test\nd.jpg test\n"),
        ("splits.txt", "b,test\nd,test\na,train\n"),
        ("train_test_split.txt", "b.jpg 0 test\nd.jpg 1 test\n"),
        ("split.csv", "b.jpg,test\nd.jpg,test\n"),
        ("flags.csv", "image,train,val,test\na.jpg,1,0,0\nb.jpg,0,0,1\nd.jpg,0,0,1\n"),
        ("test.csv", "image,split\nb.jpg,test\nd.jpg,\n"),
    ],
)
def test_each_name_may_have_the_word_for_its_split(photos: Path, name: str, content: str) -> None:
    (photos / name).write_text(content)
    report, splits = _import(photos)
    assert splits == {"a": "train", "b": "test", "c": "train", "d": "test"}
    assert report.skipped == {"other file": 1}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.json", '[{"image": "b.jpg", "split": "train"}]'),
        ("test.csv", "image,split\nb.jpg,train\n"),
        ("test.txt", "b.jpg train\n"),
        ("splits.json", '{"test": [{"image": "b.jpg", "split": "train"}]}'),
    ],
)
def test_a_list_of_a_test_that_calls_an_image_training_is_a_contradiction(
    photos: Path, name: str, content: str
) -> None:
    (photos / name).write_text(content)
    report, splits = _import(photos)
    assert splits == {"a": "train", "c": "train", "d": "train"}
    assert report.skipped["contradiction"] == 2


def test_training_with_validation_data_contradicts_no_list_of_these(photos: Path) -> None:
    (photos / "splits.json").write_text('{"trainval": ["a", "b"], "val": ["b"], "test": ["d"]}')
    (photos / "trainval.txt").write_text("a.jpg\nb.jpg\n")
    _, splits = _import(photos)
    assert splits == {"a": "train", "b": "val", "c": "train", "d": "test"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("split.txt", "a.jpg 0\nb.jpg 1\n"),
        ("train_test_split.txt", "1 0\n2 1\n"),
        ("split.txt", "a.jpg\nb.jpg\n"),
        ("split.csv", "image,part_of\na.jpg,1\n"),
        ("split.json", '{"a.jpg": 0, "b.jpg": 1}'),
        ("folds.json", '{"train": [0, 1], "test": [2]}'),
        ("splits.yaml", "test: [b.jpg]"),
        ("splits.pkl", "x"),
        ("split.mat", "x"),
        ("test.npy", "x"),
        ("val_idx.npy", "x"),
        ("held_out.yml", "- b.jpg"),
    ],
)
def test_what_is_called_like_a_list_and_not_understood_is_told(
    photos: Path, name: str, content: str
) -> None:
    (photos / name).write_text(content)
    report, _ = _import(photos)
    (example,) = report.examples["list of a split that was not understood"]
    assert example.where == name
    assert example.detail.endswith("or import the images of each split with --split")


@pytest.mark.parametrize(
    "name",
    ["data.yaml", "train.npy", "test.py", "test_photos.md", "latest.pkl", "banana_split.txt"],
)
def test_files_of_other_names_and_kinds_are_no_lists(photos: Path, name: str) -> None:
    (photos / name).write_text("x")
    report, _ = _import(photos)
    assert report.skipped == {"other file": 1}


def test_features_of_an_image_are_no_list(photos: Path, jpeg: Jpeg) -> None:
    (photos / "img" / "test.jpg").write_bytes(jpeg(7))
    (photos / "img" / "test.npy").write_text("x")
    report, _ = _import(photos)
    assert report.skipped["other file"] == 1


def test_a_list_that_is_a_link_to_nothing_is_told(photos: Path) -> None:
    (photos / "test.txt").symlink_to("gone.txt")
    report, _ = _import(photos)
    (example,) = report.examples["list of a split that was not understood"]
    assert example.detail.startswith("a link to nothing: if it says the split of images")


def test_texts_in_a_list_that_are_not_taken_are_told(photos: Path, jpeg: Jpeg) -> None:
    # Texts beside images at the top come before what a file of no usual name says.
    (photos / "e.jpg").write_bytes(jpeg(9))
    (photos / "e.txt").write_text("text e")
    (photos / "mine.json").write_text('{"test": [{"image": "b.jpg", "caption": "other"}]}')
    report, splits = _import(photos)
    assert splits == {"a": "train", "b": "test", "c": "train", "d": "train", "e": "train"}
    (example,) = report.examples["other file"]
    assert example.detail.endswith("; its texts are not taken: import it itself for them")


def test_an_image_in_a_split_that_nobody_knows_is_left_out(photos: Path) -> None:
    (photos / "splits.json").write_text('{"test": ["a.jpg"], "extra": ["b.jpg"]}')
    report, splits = _import(photos)
    assert splits == {"a": "test", "c": "train", "d": "train"}
    (example,) = report.examples["bad record"]
    assert "unknown split 'extra'" in example.detail


def test_a_name_may_have_a_space(photos: Path, jpeg: Jpeg) -> None:
    (photos / "img" / "my dog.jpg").write_bytes(jpeg(8))
    (photos / "img" / "my dog.txt").write_text("text e")
    (photos / "test.txt").write_text("my dog\nb\n")
    _, splits = _import(photos)
    assert splits == {"a": "train", "b": "test", "c": "train", "d": "train", "e": "test"}


def test_a_list_in_another_encoding_is_told(photos: Path) -> None:
    (photos / "test.txt").write_text("b.jpg\n", encoding="utf-16")
    report, _ = _import(photos)
    (example,) = report.examples["list of a split that was not understood"]
    assert "UTF-16" in example.detail.upper()


def test_a_list_of_validation_and_test_says_nothing_that_could_be_believed(photos: Path) -> None:
    (photos / "val_test.txt").write_text("b.jpg\n")
    report, splits = _import(photos)
    assert splits == {"a": "train", "c": "train", "d": "train"}
    assert report.skipped["contradiction"] == 2


def test_flickr8k_says_its_splits_so(tmp_path: Path, jpeg: Jpeg) -> None:
    folder = tmp_path / "flickr8k"
    for part in ("Flicker8k_Dataset", "Flickr8k_text"):
        (folder / part).mkdir(parents=True)
    names = ["1_a.jpg", "2_b.jpg", "3_c.jpg"]
    for number, name in enumerate(names):
        (folder / "Flicker8k_Dataset" / name).write_bytes(jpeg(number))
    text = folder / "Flickr8k_text"
    lines = [f"{name}#{n}\ttext {n} {name[2]}" for name in names for n in range(2)]
    (text / "Flickr8k.token.txt").write_text("\n".join(lines))
    for split, name in zip(("train", "dev", "test"), names, strict=True):
        (text / f"Flickr_8k.{split}Images.txt").write_text(f"{name}\n")
    _, splits = _import(folder, image_root=folder / "Flicker8k_Dataset")
    assert splits == {"a": "train", "b": "val", "c": "test"}
