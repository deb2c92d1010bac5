"""The tables that img2dataset leaves beside what it fetched."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from openblip.sources.columns import NoColumn
from openblip.sources.importing import import_pairs

Texts = Callable[..., dict[str, list[str]]]
LeftOut = Callable[..., list[tuple[str, str, str]]]


@pytest.fixture
def folder(tmp_path: Path, jpeg: Callable[..., bytes]) -> Path:
    """The format `files`: two images that were fetched, one that was not, one that is gone."""
    images = tmp_path / "out" / "00000"
    images.mkdir(parents=True)
    for number in range(2):
        (images / f"00000000{number}.jpg").write_bytes(jpeg(number))
        (images / f"00000000{number}.txt").write_text(f"text {number}")
        record = f'{{"caption": "text {number}", "status": "success"}}'
        (images / f"00000000{number}.json").write_text(record)
    log = {
        "url": [f"http://x/{number}" for number in range(4)],
        "key": [f"00000000{number}" for number in range(4)],
        "caption": [f"text {number}" for number in range(4)],
        "status": ["success", "success", "failed_to_download", "success"],
        "error_message": [None, None, "HTTP Error 404", None],
    }
    parquet.write_table(pa.table(log), tmp_path / "out" / "00000.parquet")
    return tmp_path / "out"


def test_the_pairs_come_in_and_the_others_with_their_reasons(
    folder: Path, texts: Texts, left_out: LeftOut
) -> None:
    assert texts(folder) == {"000000000.jpg": ["text 0"], "000000001.jpg": ["text 1"]}
    assert left_out(folder) == [
        ("00000.parquet row 3", "missing image", "failed_to_download, HTTP Error 404, http://x/2"),
        ("00000.parquet row 4", "missing image", "fetched, but no image 000000003 is in 00000/"),
        ("00000.parquet", "other file", "img2dataset's table of the images beside it"),
    ]


def test_everything_is_accounted_for(folder: Path) -> None:
    report = import_pairs(folder, folder.with_name("t"), show_progress=False)
    assert (report.num_rows, report.num_used, report.num_skipped) == (2, 6, 3)


def test_the_table_alone_says_what_to_import(folder: Path, texts: Texts) -> None:
    with pytest.raises(NoColumn, match="import the folder that it lies in"):
        texts(folder / "00000.parquet")


def test_a_table_of_other_things_hides_no_pairs(
    folder: Path, texts: Texts, left_out: LeftOut
) -> None:
    scores = pa.table({"key": ["000000000"], "score": [0.5]})
    parquet.write_table(scores, folder / "00000.parquet")
    assert len(texts(folder)) == 2
    assert left_out(folder) == [
        (
            "00000.parquet",
            "other file",
            "no column of images among key, score: name it (--image-column), or all columns of a "
            "file without header (--columns image caption)",
        )
    ]


def test_the_table_says_the_splits_of_images_without_records(folder: Path) -> None:
    for record in (folder / "00000").glob("*.json"):
        record.unlink()
    _with_splits(folder, ["test", "train", "test", "test"])
    report = import_pairs(folder, folder.with_name("t"), show_progress=False)
    assert (report.splits, report.num_skipped) == ({"test": 1, "train": 1}, 3)


def test_the_table_and_a_record_must_say_one_split(folder: Path) -> None:
    record = '{"caption": "text 0", "split": "train"}'
    (folder / "00000" / "000000000.json").write_text(record)
    _with_splits(folder, ["test", "val", None, None])
    report = import_pairs(folder, folder.with_name("t"), show_progress=False)
    assert report.splits == {"val": 1}
    (example,) = report.examples["contradiction"]
    assert "000000000.jpg is in 'test' and 'train' here" in example.detail


@pytest.mark.parametrize("processes", [None, 1])
def test_a_table_of_splits_that_breaks_off_keeps_its_images_out(
    folder: Path, processes: int | None
) -> None:
    _with_splits(folder, ["test", "train", "test", "test"])
    table = parquet.read_table(folder / "00000.parquet")
    file = folder / "00000.parquet"
    parquet.write_table(table, file, row_group_size=1, use_dictionary=False, compression="none")
    content = file.read_bytes()
    length = len("000000001").to_bytes(4, "little")
    assert length + b"000000001" in content
    file.write_bytes(content.replace(length + b"000000001", b"\xff" * 13))
    report = import_pairs(folder, folder.with_name("t"), show_progress=False, processes=processes)
    assert not report.num_rows
    assert report.skipped["beside a list that breaks off"]


def _with_splits(folder: Path, splits: list[str | None]) -> None:
    log = parquet.read_table(folder / "00000.parquet")
    parquet.write_table(log.append_column("split", [splits]), folder / "00000.parquet")
