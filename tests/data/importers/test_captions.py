"""Lists of captions as BLIP's authors distribute them, and NoCaps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openblip.data.importers.driver import import_pairs
from openblip.data.report import ImportReport
from openblip.data.table import PairTable
from openblip.errors import DataError

Jpeg = Callable[..., bytes]
VAL = "val2014/COCO_val2014_000000391895.jpg"
TRAIN = "train2014/COCO_train2014_000000000009.jpg"


def write(file: Path, document: object) -> Path:
    file.write_text(json.dumps(document))
    return file


def write_images(folder: Path, jpeg: Jpeg, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number))


def imported(source: Path, **options: Any) -> tuple[ImportReport, list[dict[str, Any]]]:
    uri = source.parent / "out.lance"
    report = import_pairs(source, uri, show_progress=False, **options)
    return report, PairTable.open(uri).take(range(report.num_rows)).to_pylist()


def test_a_record_for_each_caption_becomes_a_row_for_each_image(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, [VAL, TRAIN])
    file = write(
        tmp_path / "coco_karpathy_train.json",
        [
            {"caption": "a man on a bike", "image": VAL, "image_id": "coco_391895"},
            {"caption": "a plate of food", "image": TRAIN, "image_id": "coco_9"},
            {"caption": "a man rides", "image": VAL, "image_id": "coco_391895"},
        ],
    )
    report, rows = imported(file, origin="human")
    assert (report.format, report.num_skipped) == ("captions", 0)
    assert [(row["id"], row["captions"], row["split"]) for row in rows] == [
        ("391895", ["a man on a bike", "a man rides"], "train"),
        ("9", ["a plate of food"], "train"),
    ]


def test_a_record_for_each_image_has_all_its_captions(tmp_path: Path, jpeg: Jpeg) -> None:
    name = "flickr30k-images/1007129816.jpg"
    write_images(tmp_path / "images", jpeg, [name])
    file = write(tmp_path / "flickr30k_test.json", [{"image": name, "caption": ["a", "b", "c"]}])
    _, (row,) = imported(file)
    assert (row["id"], row["captions"], row["split"]) == (name, ["a", "b", "c"], "test")


def test_nocaps_of_the_original_keeps_its_ids_and_domains(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, ["val/a.jpg", "val/b.jpg"])
    file = write(
        tmp_path / "nocaps_val.json",
        [
            {"image": "val/a.jpg", "img_id": 0, "captions": ["a", "b"], "domain": "out-domain"},
            {"image": "val/b.jpg", "img_id": 1},
        ],
    )
    _, rows = imported(file)
    assert [(row["id"], row["captions"], row["split"]) for row in rows] == [
        ("0", ["a", "b"], "val"), ("1", [], "val"),
    ]  # fmt: skip
    assert json.loads(rows[0]["meta"])["domain"] == "out-domain"


def test_official_nocaps_is_read_as_coco(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, ["val/0013ea.jpg"])
    image = {"id": 0, "file_name": "0013ea.jpg", "domain": "near-domain", "open_images_id": "0013"}
    annotations = [{"id": n, "image_id": 0, "caption": f"caption {n}"} for n in range(10)]
    document = {"licenses": [], "info": {}, "images": [image], "annotations": annotations}
    file = write(tmp_path / "nocaps_val_4500_captions.json", document)
    report, (row,) = imported(file)
    assert (report.format, row["id"], row["split"]) == ("coco", "0", "val")
    assert len(row["captions"]) == 10
    assert json.loads(row["meta"])["domain"] == "near-domain"


def test_what_is_malformed_stands_in_the_report(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, ["a.jpg"])
    records = [
        {"image": "a.jpg", "caption": "a"}, {"caption": "b"}, "c",
        {"image": "a.jpg", "caption": 3}, {"image": "d.jpg"}, {"image": "../a.jpg", "caption": "e"},
    ]  # fmt: skip
    report, rows = imported(write(tmp_path / "flickr30k_val.json", records))
    assert [row["captions"] for row in rows] == [["a"]]
    assert report.skipped == {"bad record": 4, "unsafe path": 1}


def test_missing_images_are_named_with_the_remedy(tmp_path: Path) -> None:
    file = write(tmp_path / "coco_karpathy_test.json", [{"image": VAL, "caption": ["a"]}])
    with pytest.raises(DataError, match="image_root"):
        imported(file)


def test_a_split_within_another_word_of_the_name_is_none(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, ["a.jpg"])
    records = [{"image": "a.jpg", "caption": "a"}]
    report, _ = imported(write(tmp_path / "latest_retrieval.json", records))
    assert report.splits == {"train": 1}


def test_a_path_that_the_system_refuses_is_a_missing_image(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, ["a.jpg"])
    records = [
        {"image": f"{'x' * 300}.jpg", "caption": "too long for a name"},
        {"image": f"{'x/' * 4000}.jpg", "caption": "too long for a path"},
        {"image": "a.jpg", "caption": "a"},
    ]
    report, rows = imported(write(tmp_path / "captions.json", records))
    assert [row["id"] for row in rows] == ["a.jpg"]
    assert report.skipped == {"missing image": 2}
