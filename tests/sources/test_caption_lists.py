"""Lists of captions as BLIP's authors distribute them, and NoCaps."""

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
    with pytest.raises(DataError, match="--image-root"):
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


def test_each_record_says_its_split(tmp_path: Path, jpeg: Jpeg) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    write_images(tmp_path, jpeg, names)
    splits = ["train", "val", "test", None]
    records = [{"image": n, "caption": n, "split": s} for n, s in zip(names, splits, strict=True)]
    records.append({"image": "d.jpg", "caption": "more"})
    report, rows = imported(write(tmp_path / "annotations.json", records))
    assert [row["split"] for row in rows] == ["train", "val", "test", "train"]
    assert rows[3]["captions"] == ["d.jpg", "more"]
    assert (report.num_seen, report.num_used) == (5, 5)


def test_records_of_one_image_must_say_one_split(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, ["a.jpg", "b.jpg"])
    records = [
        {"image": "a.jpg", "caption": "a", "split": "train"},
        {"image": "a.jpg", "caption": "b", "split": "val"},
        {"image": "b.jpg", "caption": "c", "split": "train", "set_name": "test"},
        {"image": "b.jpg", "caption": "d"},
    ]
    report = import_pairs(write(tmp_path / "x.json", records), tmp_path / "t", show_progress=False)
    assert (report.num_rows, report.skipped) == (0, {"contradiction": 4})
    said = [example.detail for example in report.examples["contradiction"]]
    assert ["'train and val'" in said[0], "'train and test'" in said[1]] == [True, True]


def test_a_field_that_says_nothing_is_passed_over(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, ["a.jpg", "b.jpg"])
    records = [
        {"image": "a.jpg", "caption": None, "captions": ["x", "y"], "split": ""},
        {"image": None, "file_name": "b.jpg", "caption": " ", "text": "z", "licence": 3},
    ]
    _, rows = imported(write(tmp_path / "metadata.json", records))
    assert [row["captions"] for row in rows] == [["x", "y"], ["z"]]
    assert json.loads(rows[1]["meta"]) == {"caption": " ", "licence": 3}


def test_absolute_paths_of_another_machine_are_found_below_the_list(
    tmp_path: Path, jpeg: Jpeg
) -> None:
    write_images(tmp_path, jpeg, ["image/0.jpg", "image/1.jpg"])
    there = "/export/share/datasets/vision/visual-genome/image"
    records = [
        {"image": f"{there}/{n}.jpg", "caption": f"text {n}", "image_id": f"vg_{n}"} for n in (0, 1)
    ]
    report, rows = imported(write(tmp_path / "vg_caption.json", records))
    assert [(row["id"], row["captions"]) for row in rows] == [
        ("image/0.jpg", ["text 0"]), ("image/1.jpg", ["text 1"]),
    ]  # fmt: skip
    assert report.num_skipped == 0


def test_text_caps_has_all_texts_of_an_image_in_each_record(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, ["train_images/0054c9.jpg"])
    data = [
        {
            "caption_str": text, "caption_id": number, "image_id": "0054c9", "set_name": "val",
            "image_path": "train/0054c9.jpg", "reference_strs": ["a watch", "a clock"],
        }
        for number, text in enumerate(("a watch", "a clock"))
    ]  # fmt: skip
    document = {"dataset_name": "textcaps", "dataset_type": "val", "data": data}
    report, (row,) = imported(write(tmp_path / "TextCaps_0.1_val.json", document))
    assert (row["id"], row["captions"], row["split"]) == ("0054c9", ["a watch", "a clock"], "val")
    assert (report.num_seen, report.num_used) == (2, 2)


def test_localized_narratives_and_results_name_images_by_their_ids(
    tmp_path: Path, jpeg: Jpeg
) -> None:
    write_images(tmp_path, jpeg, ["val2017/000000000042.jpg", "7.jpg"])
    narrative = {
        "dataset_id": "mscoco_val2017", "image_id": "42", "annotator_id": 9, "caption": "In this",
        "timed_caption": [{"utterance": "In"}], "traces": [[{"x": 0.1, "y": 0.2, "t": 0.0}]],
    }  # fmt: skip
    lines = tmp_path / "coco_val_localized_narratives.jsonl"
    lines.write_text(f"{json.dumps(narrative)}\n\n{json.dumps(narrative)}\n")
    _, (row,) = imported(lines)
    assert (row["id"], row["captions"], row["split"]) == ("42", ["In this", "In this"], "val")
    assert json.loads(row["meta"]) == {"dataset_id": "mscoco_val2017"}
    results = write(tmp_path / "r.json", [{"image_id": 7.0, "caption": "a dog"}])
    report = import_pairs(results, tmp_path / "t", show_progress=False)
    assert (report.num_rows, report.splits) == (1, {"train": 1})


def test_a_hidden_file_is_no_second_image_of_a_number(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, ["a/7.jpg", "a/._7.jpg", ".thumbnails/7.jpg"])
    results = write(tmp_path / "r.json", [{"image_id": 7, "caption": "a dog"}])
    _, rows = imported(results)
    assert [row["captions"] for row in rows] == [["a dog"]]


def test_captions_under_the_names_of_images(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, ["1.jpg", "x/2.png"])
    document = {
        "1": {"caption": "a boat", "tags": "1boat, sea"},
        "x/2.png": {"caption": "a ship"},
        "3": {"tags": "1girl"},
    }
    report, rows = imported(write(tmp_path / "meta_cap.json", document))
    assert [(row["id"], row["captions"]) for row in rows] == [
        ("1", ["a boat"]), ("x/2.png", ["a ship"]),
    ]  # fmt: skip
    assert report.skipped == {"bad record": 1}


def test_a_list_of_unusable_records_makes_no_table(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, ["a.jpg"])
    records = [
        {"image": "a.jpg", "caption": None},
        {"image": "a.jpg", "caption": "x", "deep": json.loads("[" * 500 + "]" * 500)},
        {"image": "https://a.example/a.jpg", "caption": "x"},
    ]
    report = import_pairs(write(tmp_path / "c.json", records), tmp_path / "t", show_progress=False)
    assert (report.num_rows, report.num_seen) == (0, 3)
    assert report.skipped == {"bad record": 2, "unsafe path": 1}
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("field", [None, "annotations", "captions", "data"])
@pytest.mark.parametrize(
    "document",
    [
        {"a.jpg": "a", "sub/b.jpg": ["b", "c"], "gone.jpg": "d"},
        {"./a.jpg": ["a"], "sub/b": ["b", None, "c"], "gone": ["d"]},
        {"a.jpg": {"captions": ["a"]}, "sub/b.jpg": {"caption": ["b", "c"]}, "gone": {"text": "d"}},
    ],
)
def test_captions_may_stand_under_the_names_of_their_images(
    tmp_path: Path, jpeg: Jpeg, document: dict[str, object], field: str | None
) -> None:
    (tmp_path / "sub").mkdir()
    write_images(tmp_path, jpeg, ["a.jpg", "sub/b.jpg"])
    content = document if field is None else {"info": {}, field: document}
    report, rows = imported(write(tmp_path / "captions.json", content))
    assert report.format == "captions"
    assert [row["captions"] for row in rows] == [["a"], ["b", "c"]]
    assert report.skipped == {"missing image": 1}


def test_results_may_stand_in_annotations(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path, jpeg, ["7.jpg"])
    content = {"annotations": [{"image_id": 7, "caption": "a"}]}
    _, rows = imported(write(tmp_path / "captions.json", content))
    assert [row["captions"] for row in rows] == [["a"]]
