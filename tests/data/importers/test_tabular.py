import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from openblip.data.importers.driver import import_pairs
from openblip.data.report import ImportReport
from openblip.data.table import PairTable
from openblip.errors import DataError


@pytest.fixture
def folder(tmp_path: Path, jpeg: Callable[..., bytes]) -> Path:
    """A folder with images 0.jpg to 5.jpg."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


def _import(source: Path, **options: object) -> tuple[ImportReport, list[dict[str, object]]]:
    uri = source.parent / "out.lance"
    report = import_pairs(source, uri, show_progress=False, **options)
    rows = PairTable.open(uri).take(range(report.num_rows)).to_pylist() if report.num_rows else []
    return report, rows


def test_parquet_with_bytes_as_img2dataset_writes_it(
    folder: Path, jpeg: Callable[..., bytes]
) -> None:
    columns = {
        "url": ["http://a", "http://b", "http://c"],
        "key": ["k0", "k1", "k2"],
        "caption": ["zero", "one", None],
        "jpg": [jpeg(0), jpeg(1), jpeg(2)],
        "similarity": [0.5, float("nan"), None],
    }
    file = folder / "pairs.parquet"
    parquet.write_table(pa.table(columns), file)
    report, rows = _import(file)
    assert report.format == "table"
    assert [(row["id"], row["captions"]) for row in rows] == [("k0", ["zero"]), ("k1", ["one"])]
    assert rows[0]["image"] == jpeg(0)
    assert json.loads(str(rows[0]["meta"])) == {"url": "http://a", "similarity": 0.5}
    assert json.loads(str(rows[1]["meta"]))["similarity"] is None
    assert report.skipped == {"missing caption": 1}


def test_parquet_with_the_image_struct_and_lists_of_texts(
    folder: Path, jpeg: Callable[..., bytes]
) -> None:
    images = [
        {"bytes": jpeg(0), "path": None},
        {"bytes": None, "path": "1.jpg"},
        {"bytes": None, "path": None},
    ]
    table = pa.table(
        {"image": images, "captions": [["a", "b"], ["c"], ["d"]], "split": ["val"] * 3}
    )
    parquet.write_table(table, folder / "pairs.parquet")
    report, rows = _import(folder / "pairs.parquet")
    assert [(row["captions"], row["split"]) for row in rows] == [
        (["a", "b"], "val"),
        (["c"], "val"),
    ]
    assert len(str(rows[0]["id"])) == 64
    assert rows[1]["id"] == "1.jpg"
    assert report.skipped == {"missing image": 1}


def test_csv_with_a_row_per_caption_is_merged(folder: Path) -> None:
    lines = ["\ufeffimage,caption", "0.jpg,one", '0.jpg,"two, with a comma"', "1.jpg,three"]
    (folder / "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
    report, rows = _import(folder)
    assert [(row["id"], row["captions"]) for row in rows] == [
        ("0.jpg", ["one", "two, with a comma"]),
        ("1.jpg", ["three"]),
    ]
    assert (report.num_rows, report.num_captions) == (2, 3)


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.csv", "|"), ("a.csv", ";")])
def test_other_delimiters(folder: Path, name: str, mark: str) -> None:
    lines = [["filepath", "title", "licence"], ["0.jpg", "one", "CC0"]]
    (folder / name).write_text("\n".join(f" {mark} ".join(line) for line in lines))
    _, rows = _import(folder / name)
    assert rows[0]["captions"] == ["one"]
    assert json.loads(str(rows[0]["meta"])) == {"licence": "CC0"}


def test_columns_can_be_named(folder: Path) -> None:
    (folder / "a.csv").write_text("picture,words,code,title\n0.jpg,one,x9,other\n")
    names = {"image_column": "picture", "caption_column": "words", "id_column": "code"}
    _, rows = _import(folder / "a.csv", **names)
    assert [(row["id"], row["captions"]) for row in rows] == [("x9", ["one"])]
    with pytest.raises(DataError, match="no column 'pictures'; it has picture, words"):
        _import(folder / "a.csv", image_column="pictures")


def test_images_may_lie_in_another_folder(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tables" / "a.csv"
    file.parent.mkdir()
    file.write_text("image,caption\n0.jpg,one\n")
    report, _ = _import(file)
    assert report.skipped == {"missing image": 1}
    report, rows = _import(file, image_root=folder)
    assert report.num_rows == len(rows) == 1


def test_damaged_rows_are_reported_with_their_number(folder: Path) -> None:
    lines = [
        b"image,caption",
        b"0.jpg,one",
        b"1.jpg,one,too many",
        b"../out.jpg,climbs",
        b"/etc/passwd,absolute",
        b"2.jpg,\xff\xfe",
        b",no image",
        b"9.jpg,not there",
        b"3.jpg,",
        b"4.jpg,good",
    ]
    (folder / "a.csv").write_bytes(b"\n".join(lines))
    report, rows = _import(folder / "a.csv")
    assert [row["id"] for row in rows] == ["0.jpg", "4.jpg"]
    assert report.skipped == {
        "bad record": 2,
        "unsafe path": 2,
        "missing image": 2,
        "missing caption": 1,
    }
    assert [e.where for e in report.examples["bad record"]] == ["a.csv row 2", "a.csv row 5"]


def test_one_damaged_parquet_file_does_not_keep_the_others_out(
    folder: Path, jpeg: Callable[..., bytes]
) -> None:
    for number in range(3):
        table = pa.table({"image": [jpeg(number)], "caption": [f"text {number}"]})
        parquet.write_table(table, folder / f"{number}.parquet")
    whole = (folder / "1.parquet").read_bytes()
    (folder / "1.parquet").write_bytes(whole[: len(whole) // 2])
    report, rows = _import(folder)
    assert [row["captions"] for row in rows] == [["text 0"], ["text 2"]]
    # The images of the folder that no table names are told of, too.
    assert report.skipped == {"bad record": 1, "missing caption": 6}
    (example,) = report.examples["bad record"]
    assert (example.where, example.detail[:14]) == ("1.parquet", "cannot be read")


def test_a_table_of_addresses_says_what_to_do(folder: Path) -> None:
    (folder / "a.csv").write_text("url,caption\nhttp://a,one\n")
    with pytest.raises(DataError, match="img2dataset"):
        _import(folder / "a.csv")


@pytest.mark.parametrize(
    ("header", "message"),
    [("x,caption", "no column of images among x, caption"), ("image,x", "no column of texts")],
)
def test_a_table_without_the_needed_columns(folder: Path, header: str, message: str) -> None:
    (folder / "a.csv").write_text(f"{header}\n0.jpg,one\n")
    with pytest.raises(DataError, match=message):
        _import(folder / "a.csv")


def test_reading_goes_on_in_the_middle_of_parquet_row_groups(
    folder: Path, jpeg: Callable[..., bytes]
) -> None:
    columns = {"image": [jpeg(n) for n in range(11)], "caption": [f"t{n}" for n in range(11)]}
    parquet.write_table(pa.table(columns), folder / "a.parquet", row_group_size=4)
    for limit in (3, 4, 9, None):
        report, rows = _import(folder / "a.parquet", limit=limit)
        assert report.num_rows == len(rows) == (limit or 11)
    assert [row["captions"] for row in rows] == [[f"t{n}"] for n in range(11)]


def test_a_column_of_json_metadata_is_unfolded(folder: Path, jpeg: Callable[..., bytes]) -> None:
    columns = {
        "image": [jpeg(0), jpeg(1)],
        "text": ["zero", "one"],
        "meta": ['{"label": "cat", "n": [1]}', "no JSON"],
        "score": [0.5, 0.25],
    }
    parquet.write_table(pa.table(columns), folder / "pairs.parquet")
    _, rows = _import(folder / "pairs.parquet")
    assert [json.loads(str(row["meta"])) for row in rows] == [
        {"label": "cat", "n": [1], "score": 0.5},
        {"meta": "no JSON", "score": 0.25},
    ]
