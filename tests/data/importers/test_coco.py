import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openblip.data.importers.driver import import_pairs
from openblip.data.report import ImportReport
from openblip.data.table import PairTable
from openblip.errors import DataError


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
    with pytest.raises(DataError, match="image_root"):
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
