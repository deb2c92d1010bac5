"""Sentences about two images, in the layouts that they are published in."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from openblip.batches.image_pairs import ImagePair, ImagePairIndex
from openblip.runtime.errors import DataError
from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport
from openblip.table.table import PairTable

Jpeg = Callable[..., bytes]


def example(identifier: str, sentence: str, label: str, **others: Any) -> dict[str, Any]:
    """An object as in the official files."""
    urls = {"left_url": "https://a.example/1.jpg", "right_url": "https://a.example/2.jpg"}
    return {
        "validation": {"77": label}, "sentence": sentence, **urls, "writer": "103",
        "label": label, "synset": "bottle", "identifier": identifier, **others,
    }  # fmt: skip


DEV = [
    example("dev-850-0-0", "There are two bottles.", "True"),
    example("dev-850-1-0", "There are two bottles.", "False"),
    example("dev-850-0-1", "The left bottle is full.", "False"),
]


def write_lines(file: Path, records: Sequence[object]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def write_images(folder: Path, jpeg: Jpeg, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number))


def sides(*pairs: str) -> list[str]:
    return [f"{pair}-img{side}.png" for pair in pairs for side in (0, 1)]


def imported(source: Path, **options: Any) -> tuple[ImportReport, PairTable]:
    uri = source.parent / "out.lance"
    return import_pairs(source, uri, show_progress=False, **options), PairTable.open(uri)


@pytest.mark.parametrize("folder", ["images", "images/dev", "../dev", "."])
def test_official_lines_become_pairs_of_images(tmp_path: Path, jpeg: Jpeg, folder: str) -> None:
    write_images(tmp_path / "nlvr2" / folder, jpeg, sides("dev-850-0", "dev-850-1"))
    file = write_lines(tmp_path / "nlvr2" / "dev.json", DEV)

    report, table = imported(file, origin="human")

    assert (report.format, report.num_rows, report.num_skipped) == ("nlvr", 4, 0)
    index = ImagePairIndex.resolve(table, "val")
    assert index.pairs == [
        ImagePair("There are two bottles.", "dev-850-0-img1.png", True, "dev-850-0-0"),
        ImagePair("The left bottle is full.", "dev-850-0-img1.png", False, "dev-850-0-1"),
        ImagePair("There are two bottles.", "dev-850-1-img1.png", False, "dev-850-1-0"),
    ]
    ids = table.take(range(4), ["id"])["id"].to_pylist()
    assert [ids[row] for row in index.first_rows] == [
        "dev-850-0-img0.png", "dev-850-0-img0.png", "dev-850-1-img0.png",
    ]  # fmt: skip


def test_training_images_lie_in_their_directory(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path / "images/train/41", jpeg, sides("train-10-2"))
    lines = [example("train-10-2-0", "One dog.", "True", directory=41)]
    report, table = imported(write_lines(tmp_path / "train.json", lines))
    assert report.num_skipped == 0
    assert ImagePairIndex.resolve(table, "train").pairs[0].key == "train-10-2-0"


def test_lists_of_the_original_become_pairs(tmp_path: Path, jpeg: Jpeg) -> None:
    names = [f"test1/{name}" for name in sides("test1-1-0")]
    write_images(tmp_path, jpeg, names)
    records = [
        {"sentence": "One dog.", "label": "True", "images": names},
        {"sentence": "Two dogs.", "label": False, "images": names},
    ]
    file = tmp_path / "nlvr_test.json"
    file.write_text(json.dumps(records))

    report, table = imported(file)

    assert (report.format, report.num_rows) == ("nlvr", 2)
    pairs = ImagePairIndex.resolve(table, "test").pairs
    assert [(pair.sentence, pair.label, pair.second) for pair in pairs] == [
        ("One dog.", True, names[1]), ("Two dogs.", False, names[1]),
    ]  # fmt: skip


def test_what_is_malformed_stands_in_the_report(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path / "images", jpeg, sides("dev-850-0"))
    lines = [
        DEV[0],
        {"sentence": "s", "identifier": "850", "label": "True"},
        example("dev-850-0-1", "s", "maybe"),
        DEV[1],
    ]
    report, _ = imported(write_lines(tmp_path / "dev.jsonl", lines), format="nlvr")
    assert report.num_rows == 2
    # Two records, and two images that are not there.
    assert report.skipped == {"bad record": 2, "missing image": 2}


def test_missing_images_and_cut_files_are_named(tmp_path: Path, jpeg: Jpeg) -> None:
    with pytest.raises(DataError, match="--image-root"):
        imported(write_lines(tmp_path / "dev.json", DEV))
    cut = write_lines(tmp_path / "cut.json", DEV)
    cut.write_text(cut.read_text()[:-20])
    with pytest.raises(DataError, match=r"cut\.json cannot be read as JSON"):
        imported(cut)


def test_each_identifier_says_the_split_of_its_images(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path / "images", jpeg, sides("dev-850-0", "test1-1-0"))
    mixed = [DEV[0], example("test1-1-0-0", "s", "True")]
    report, table = imported(write_lines(tmp_path / "all.json", mixed))
    assert report.splits == {"val": 2, "test": 2}
    assert report.split_from["test"] == {"a field of the record": 2}
    assert len(ImagePairIndex.resolve(table, "test").pairs) == 1


def test_a_file_that_names_another_split_than_its_identifiers_is_believed_in_nothing(
    tmp_path: Path, jpeg: Jpeg
) -> None:
    write_images(tmp_path / "images/train/41", jpeg, sides("train-10-2"))
    lines = [example("train-10-2-0", "One dog.", "True", directory=41)]
    report = import_pairs(
        write_lines(tmp_path / "test1.json", lines), tmp_path / "t", show_progress=False
    )
    assert (report.num_rows, report.skipped) == (0, {"contradiction": 2})


def test_every_sentence_is_counted_once(tmp_path: Path, jpeg: Jpeg) -> None:
    write_images(tmp_path / "images", jpeg, sides("dev-850-0", "dev-850-1"))
    report, _ = imported(write_lines(tmp_path / "dev.json", [*DEV, 5, None]))
    # Three sentences of two first images, two second images without any, and two lines.
    assert (report.num_seen, report.num_used, report.skipped) == (7, 5, {"bad record": 2})
