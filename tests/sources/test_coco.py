import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openblip.runtime.errors import DataError
from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport
from openblip.table.table import PairTable


def _write(file: Path, document: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    return file


def _images(folder: Path, jpeg: Callable[..., bytes], names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(jpeg(number))


def _import(source: Path, **options: object) -> tuple[ImportReport, list[dict[str, object]]]:
    uri = source.parent / "out.lance"
    report = import_pairs(source, uri, show_progress=False, **options)
    return report, PairTable.open(uri).take(range(report.num_rows)).to_pylist()


COCO = {
    "images": [
        {"id": 9, "file_name": "a.jpg", "license": 3},
        {"id": 7, "file_name": "b.jpg"},
        {"id": 5, "file_name": "gone.jpg"},
        {"id": 4, "file_name": "../../secret.jpg"},
        {"id": 3, "file_name": "c.jpg"},
        {"file_name": "d.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "b one"},
        {"id": 2, "image_id": 9, "caption": "a one"},
        {"id": 3, "image_id": 9, "caption": "a two"},
        {"id": 4, "image_id": 5, "caption": "gone"},
        {"id": 5, "image_id": 4, "caption": "climbs"},
        {"id": 6, "image_id": 123, "caption": "of no image"},
        {"id": 7, "image_id": 7},
    ],
}


def test_coco_captions_are_joined_to_their_images(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    # The usual layout: annotations/captions_val2014.json beside val2014/.
    _images(tmp_path / "coco" / "val2014", jpeg, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    file = _write(tmp_path / "coco" / "annotations" / "captions_val2014.json", COCO)
    report, rows = _import(file, origin="human")
    assert report.format == "coco"
    assert [(row["id"], row["captions"], row["split"]) for row in rows] == [
        ("9", ["a one", "a two"], "val"),
        ("7", ["b one"], "val"),
    ]
    assert json.loads(str(rows[0]["meta"])) == {"file_name": "a.jpg", "license": 3}
    assert report.skipped == {
        "missing image": 1,
        "unsafe path": 1,
        "missing caption": 1,
        "bad record": 3,
    }


def test_the_images_of_coco_may_lie_anywhere(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    file = _write(tmp_path / "one" / "my.json", COCO)
    _images(tmp_path / "two", jpeg, ["a.jpg", "b.jpg"])
    with pytest.raises(DataError, match="image-root"):
        _import(file)
    report, _ = _import(file, image_root=tmp_path / "two")
    assert report.splits == {"train": 2}


def _karpathy(name: str, split: str, **more: object) -> dict[str, object]:
    return {"filename": name, "split": split, "sentences": [{"raw": f"{name} text"}], **more}


def test_a_karpathy_split_keeps_its_splits(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg"]
    _images(tmp_path / "images" / "val2014", jpeg, names)
    images = [
        _karpathy("a.jpg", "restval", filepath="val2014", cocoid=42, imgid=0),
        _karpathy("b.jpg", "val", filepath="val2014", cocoid=43, imgid=1),
        _karpathy("c.jpg", "test", filepath="val2014", imgid=2),
        _karpathy("x.jpg", "test", filepath="../.."),
        {"filename": "c.jpg", "filepath": "val2014", "split": "test", "sentences": [{}]},
    ]
    file = _write(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})
    report, rows = _import(file)
    assert report.format == "karpathy"
    assert [(row["id"], row["split"], row["captions"]) for row in rows] == [
        ("42", "train", ["a.jpg text"]),
        ("43", "val", ["b.jpg text"]),
        ("c.jpg", "test", ["c.jpg text"]),
    ]
    meta = {"filename": "a.jpg", "filepath": "val2014", "cocoid": 42, "imgid": 0}
    assert json.loads(str(rows[0]["meta"])) == meta
    assert report.skipped == {"unsafe path": 1, "bad record": 1}


def test_the_annotations_in_a_folder_of_images_are_found(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _images(tmp_path / "flickr8k", jpeg, ["a.jpg", "b.jpg"])
    document = {"images": [_karpathy("a.jpg", "train"), _karpathy("b.jpg", "test")]}
    _write(tmp_path / "flickr8k" / "dataset_flickr8k.json", document)
    report, _ = _import(tmp_path / "flickr8k")
    assert (report.format, report.splits) == ("karpathy", {"train": 1, "test": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"foo": 1}', "its keys are foo"),
        ('{"images": [5]}', "its keys are images"),
        ('{"images": {}, "annotations": []}', "'images' is not a list"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        _import(tmp_path / "a.json")


def test_another_kind_than_the_wanted_one_is_refused(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _images(tmp_path, jpeg, ["a.jpg"])
    file = _write(tmp_path / "captions.json", COCO)
    with pytest.raises(DataError, match="holds coco annotations, not karpathy"):
        _import(file, format="karpathy")


def _split_coco(jpeg: Callable[..., bytes], folder: Path, name: str, **more: Any) -> Path:
    """Two images with a caption each; `more` replaces parts of the file."""
    _images(folder, jpeg, ["a.jpg", "b.jpg"])
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    annotations = [{"id": n, "image_id": n, "caption": f"text {n}"} for n in (1, 2)]
    return _write(folder / name, {"images": images, "annotations": annotations, **more})


def test_images_annotations_and_info_say_the_split(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    images = [
        {"id": 1, "file_name": "a.jpg", "split": "test"},
        {"id": 2, "file_name": "b.jpg", "set_name": "restval"},
    ]
    report, rows = _import(_split_coco(jpeg, tmp_path / "1", "labels.json", images=images))
    assert [row["split"] for row in rows] == ["test", "train"]
    assert report.split_from["test"] == {"a field of the record": 1}
    annotations = [{"id": 1, "image_id": 1, "caption": "a", "split": "val"}]
    report, _ = _import(_split_coco(jpeg, tmp_path / "2", "x.json", annotations=annotations))
    assert report.splits == {"val": 1}
    report, _ = _import(_split_coco(jpeg, tmp_path / "3", "x.json", info={"split": "test"}))
    assert report.splits == {"test": 2}


def test_an_image_of_two_splits_is_a_contradiction_that_names_both(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    images = [
        {"id": 1, "file_name": "a.jpg", "split": "train"},
        {"id": 2, "file_name": "b.jpg", "split": "train"},
    ]
    annotations = [
        {"id": 1, "image_id": 1, "caption": "a", "split": "test"},
        {"id": 2, "image_id": 2, "caption": "b"},
    ]
    changed = {"images": images, "annotations": annotations}
    report, rows = _import(_split_coco(jpeg, tmp_path / "1", "x.json", **changed))
    assert [row["id"] for row in rows] == ["2"]
    assert report.skipped == {"contradiction": 1}
    (example,) = report.examples["contradiction"]
    assert "'train and test'" in example.detail
    report, _ = _import(_split_coco(jpeg, tmp_path / "2", "x.json", **changed), split="val")
    assert report.splits == {"val": 2}


def test_one_id_of_two_files_is_a_contradiction(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}] * 2
    images += [{"id": 2, "file_name": "b.jpg"}] * 2
    report, rows = _import(_split_coco(jpeg, tmp_path, "x.json", images=images))
    assert [row["captions"] for row in rows] == [["text 2"]]
    assert (report.num_seen, report.num_used, report.skipped) == (6, 2, {"contradiction": 4})


def test_ids_that_pandas_made_floats_are_the_same(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    annotations = [{"id": n, "image_id": float(n), "caption": f"text {n}"} for n in (1, 2)]
    report, rows = _import(_split_coco(jpeg, tmp_path, "x.json", annotations=annotations))
    assert [(row["id"], row["captions"]) for row in rows] == [("1", ["text 1"]), ("2", ["text 2"])]
    assert report.num_skipped == 0


def test_of_a_long_list_with_few_images_each_missing_one_has_its_reason(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(30)]
    annotations = [{"id": n, "image_id": n, "caption": f"text {n}"} for n in range(30)]
    file = _split_coco(jpeg, tmp_path, "x.json", images=images, annotations=annotations)
    _images(tmp_path / "images", jpeg, [f"{n}.jpg" for n in range(25, 30)])
    report, rows = _import(file)
    assert [row["id"] for row in rows] == [str(n) for n in range(25, 30)]
    assert (report.num_seen, report.skipped) == (30, {"missing image": 25})


def test_absolute_paths_inside_the_folder_of_images_are_taken(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _images(tmp_path / "test" / "images", jpeg, ["a.jpg"])
    images = [
        {"id": 1, "file_name": str(tmp_path / "test" / "images" / "a.jpg")},
        {"id": 2, "file_name": str(tmp_path / "b.jpg")},
    ]
    file = _split_coco(jpeg, tmp_path, "x.json", images=images)
    report, rows = _import(file, image_root=tmp_path / "test" / "images")
    # The folders above are no words of the source.
    assert [(row["id"], row["split"]) for row in rows] == [("1", "train")]
    assert report.skipped == {"unsafe path": 1}


def test_records_that_are_none_and_annotations_of_another_kind_are_left_out_by_name(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    annotations: list[object] = [
        {"id": 1, "image_id": 1, "caption": None, "captions": ["a", "b"]},
        {"id": 2, "image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 1},
        {"id": 3, "image_id": 1, "caption": 3},
        {"id": 4, "image_id": None, "caption": "of nothing"},
        None,
    ]
    images: list[object] = [{"id": 1, "file_name": "a.jpg"}, None, {"id": None, "file_name": "b"}]
    file = _split_coco(jpeg, tmp_path, "x.json", images=images, annotations=annotations)
    report, rows = _import(file)
    assert [row["captions"] for row in rows] == [["a", "b"]]
    assert (report.num_seen, report.num_used, report.skipped) == (7, 1, {"bad record": 6})
    details = [example.detail for example in report.examples["bad record"]]
    assert "is a box, and no caption" in details


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"bbox": [1, 2, 3, 4], "category_id": 1}, "a box"),
        ({"segmentation": [], "bbox": []}, "a segmentation"),
        ({"keypoints": [], "segmentation": []}, "keypoints"),
        ({"segments_info": []}, "a panoptic segmentation"),
    ],
)
def test_a_file_of_another_kind_of_annotation_is_refused_for_what_it_is(
    tmp_path: Path, jpeg: Callable[..., bytes], fields: dict[str, object], kind: str
) -> None:
    annotations = [{"id": 1, "image_id": 1, **fields}]
    file = _split_coco(jpeg, tmp_path, "instances_val2014.json", annotations=annotations)
    with pytest.raises(DataError, match=rf"has no captions: each of its 1 annotations is {kind};"):
        _import(file)
    assert not (tmp_path / "out.lance").exists()


def test_a_karpathy_split_of_images_in_one_folder(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _images(tmp_path / "images", jpeg, ["a.jpg", "b.jpg"])
    images = [
        _karpathy("a.jpg", "test", filepath="val2014", cocoid=1.0),
        # Two of one name: which the one in the folder is nobody says.
        _karpathy("b.jpg", "test", filepath="val2014", cocoid=2),
        _karpathy("b.jpg", "test", filepath="train2014", cocoid=3),
    ]
    report, rows = _import(_write(tmp_path / "dataset_coco.json", {"images": images}))
    assert [row["id"] for row in rows] == ["1"]
    assert report.skipped == {"missing image": 2}


def test_sentences_without_text_are_noted_and_images_of_two_splits_left_out(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _images(tmp_path, jpeg, ["a.jpg", "b.jpg"])
    sentences = [{"raw": None, "tokens": ["two", "dogs"]}, {"raw": "a cat"}, {}, 5]
    images = [
        {"filename": "a.jpg", "split": "val", "sentences": sentences},
        _karpathy("b.jpg", "train"), _karpathy("b.jpg", "test"), 7,
    ]  # fmt: skip
    report, rows = _import(_write(tmp_path / "dataset_x.json", {"images": images}))
    assert [row["captions"] for row in rows] == [["two dogs", "a cat"]]
    assert (report.noted, report.num_seen) == ({"bad record": 2}, 4)
    assert report.skipped == {"contradiction": 2, "bad record": 1}


def test_a_file_without_images_makes_no_table(tmp_path: Path) -> None:
    file = _write(tmp_path / "x.json", {"images": [], "annotations": []})
    report = import_pairs(file, tmp_path / "t", show_progress=False)
    assert (report.num_rows, report.skipped) == (0, {"empty file": 1})
    assert not (tmp_path / "t").exists()


def test_an_id_that_is_none_is_told_as_it_stands(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _images(tmp_path, jpeg, ["a.jpg"])
    annotations = [{"image_id": 1, "caption": "a"}, {"image_id": True, "caption": "b"}]
    document = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations}
    report, _ = _import(_write(tmp_path / "x.json", document))
    assert "the image true, which" in report.examples["bad record"][0].detail


def test_a_text_is_one_also_if_it_looks_like_a_list(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _images(tmp_path, jpeg, ["a.jpg"])
    annotations = [{"image_id": 1, "caption": '["a", "b"]'}]
    document = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations}
    _, rows = _import(_write(tmp_path / "x.json", {**document, "split": "test"}))
    assert [(row["captions"], row["split"]) for row in rows] == [(['["a", "b"]'], "test")]
