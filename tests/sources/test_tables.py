import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from openblip.runtime.errors import DataError
from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport
from openblip.table.table import PairTable


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


Texts = Callable[..., dict[str, list[str]]]
Splits = Callable[..., dict[str, str]]
LeftOut = Callable[..., list[tuple[str, str, str]]]


class TestSplits:
    def test_are_the_words_of_a_column(self, folder: Path, splits: Splits) -> None:
        lines = ["image,caption,Split", "0.jpg,a,restval", "1.jpg,b,TEST", "2.jpg,c,validation"]
        (folder / "a.csv").write_text("\n".join([*lines, "3.jpg,d,", "4.jpg,e,nan"]))
        assert splits(folder / "a.csv") == {
            **{"a": "train", "b": "test", "c": "val"},
            **{"d": "train", "e": "train"},
        }

    def test_of_two_columns_must_agree(self, folder: Path) -> None:
        lines = ["image,caption,split,set_name", "0.jpg,a,val,dev", "1.jpg,b,train,test"]
        (folder / "a.csv").write_text("\n".join(lines))
        report, _ = _import(folder / "a.csv")
        assert report.splits == {"val": 1}
        (example,) = report.examples["contradiction"]
        assert "'train and test' (split, set_name)" in example.detail

    def test_of_a_row_and_its_file_must_agree(self, folder: Path) -> None:
        (folder / "test.csv").write_text("image,caption,split\n0.jpg,a,train\n1.jpg,b,test\n")
        report, _ = _import(folder / "test.csv")
        assert report.splits == {"test": 1}
        (example,) = report.examples["contradiction"]
        assert "the record says 'train', but test.csv says 'test'" in example.detail

    def test_of_an_unknown_word_are_refused(self, folder: Path) -> None:
        (folder / "a.csv").write_text("image,caption,split\n0.jpg,a,some\n1.jpg,b,dev\n")
        report, _ = _import(folder / "a.csv")
        assert (report.splits, report.skipped) == ({"val": 1}, {"bad record": 1})

    @pytest.mark.parametrize(
        "names",
        [
            "data/{}-00000-of-00001.parquet",
            "default/{}-00000-of-00001.parquet",
            "{}/0000.parquet",
            "{}.parquet",
        ],
    )
    @pytest.mark.parametrize("pattern", ["", "**/*.parquet"])
    def test_are_the_names_of_files_and_folders_as_the_hub_leaves_them(
        self,
        tmp_path: Path,
        jpeg: Callable[..., bytes],
        splits: Splits,
        names: str,
        pattern: str,
    ) -> None:
        words = ("train", "validation", "test")
        for number, word in enumerate(words):
            file = tmp_path / "hub" / names.format(word)
            file.parent.mkdir(parents=True, exist_ok=True)
            images = [{"bytes": jpeg(number), "path": None}]
            parquet.write_table(pa.table({"image": images, "text": [word]}), file)
        found = splits(f"{tmp_path}/hub/{pattern}".removesuffix("/"))
        assert found == {"train": "train", "validation": "val", "test": "test"}

    def test_of_one_file_by_a_pattern(
        self, tmp_path: Path, jpeg: Callable[..., bytes], splits: Splits
    ) -> None:
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            table = pa.table({"image": [jpeg(0)], "text": [folder]})
            parquet.write_table(table, tmp_path / folder / "test-0.parquet")
        assert splits(f"{tmp_path}/*/test-*.parquet") == {"a": "test", "b": "test"}
        assert splits(f"{tmp_path}/{{a,b}}/test-{{0..0}}.parquet") == {"a": "test", "b": "test"}


class TestWithoutRows:
    @pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
    def test_there_is_no_table_and_it_is_said(self, tmp_path: Path, name: str) -> None:
        file = tmp_path / name
        if name.endswith("parquet"):
            kinds = [("image", pa.binary()), ("caption", pa.string())]
            parquet.write_table(pa.schema(kinds).empty_table(), file)
        else:
            file.write_text("image,caption\n" if name.endswith("csv") else "image\tcaption\n")
        report, _ = _import(file)
        assert (report.num_rows, report.skipped) == (0, {"empty file": 1})
        assert not (tmp_path / "out.lance").exists()

    def test_beside_others_it_is_said_too(self, folder: Path) -> None:
        (folder / "0.csv").write_text("image,caption\n")
        (folder / "1.csv").write_text("")
        (folder / "2.csv").write_text("image,caption\n0.jpg,a\n")
        report, rows = _import(Path(f"{folder}/*.csv"))
        assert [row["captions"] for row in rows] == [["a"]]
        assert report.skipped == {"empty file": 1, "bad record": 1}


def test_a_second_column_of_one_name_is_noted(folder: Path) -> None:
    (folder / "a.csv").write_text("image,caption,caption\n0.jpg,a,b\n1.jpg,c,d\n")
    report, rows = _import(folder / "a.csv")
    assert [row["captions"] for row in rows] == [["a"], ["c"]]
    assert json.loads(str(rows[0]["meta"])) == {"caption_2": "b"}
    assert report.noted == {"several columns of one name": 1}


def test_a_known_text_that_is_null_falls_through(folder: Path, texts: Texts) -> None:
    lines = ["image,caption,title,description", "0.jpg,nan,b,c", "1.jpg,,,d", "2.jpg,a,b,c"]
    (folder / "a.csv").write_text("\n".join(lines))
    assert texts(folder / "a.csv") == {"0.jpg": ["b"], "1.jpg": ["d"], "2.jpg": ["a"]}
    table = {"image": ["0.jpg", "1.jpg"], "captions": [["a", None], [None]], "text": ["b", "c"]}
    parquet.write_table(pa.table(table), folder / "a.parquet")
    assert texts(folder / "a.parquet") == {"0.jpg": ["a"], "1.jpg": ["c"]}


def test_flickr30k_has_a_list_in_each_cell(folder: Path, texts: Texts) -> None:
    lines = ["raw,split,filename,img_id", '"[""a, b"", ""say \\""hi\\""""]",train,0.jpg,0']
    (folder / "a.csv").write_text("\n".join(lines))
    assert texts(folder / "a.csv") == {"0.jpg": ["a, b", 'say "hi"']}


@pytest.mark.parametrize("name", ["captions.txt", "Flickr8k.token.txt"])
def test_flickr8k(tmp_path: Path, jpeg: Callable[..., bytes], texts: Texts, name: str) -> None:
    folder = tmp_path / "flickr8k"
    (folder / "Images").mkdir(parents=True)
    (folder / "Images" / "1_a.jpg").write_bytes(jpeg(0))
    csv, token = "image,caption\n1_a.jpg,A .\n1_a.jpg,B .\n", "1_a.jpg#0\tA .\n1_a.jpg#1\tB .\n"
    (folder / name).write_text(csv if name == "captions.txt" else token)
    assert texts(folder) == texts(folder / name) == {"1_a.jpg": ["A .", "B ."]}


def test_images_lie_in_the_one_folder_near_the_table_that_has_them(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tables" / "a.csv"
    file.parent.mkdir()
    file.write_text("image,caption\n0.jpg,a\n")
    (tmp_path / "images").mkdir()
    (folder / "0.jpg").rename(tmp_path / "images" / "0.jpg")
    assert _import(file)[0].num_rows == 1
    # Of two that have one of that name neither can be trusted.
    (tmp_path / "0.jpg").write_bytes((tmp_path / "images" / "0.jpg").read_bytes())
    report = import_pairs(file, tmp_path / "second", show_progress=False)
    assert report.skipped == {"missing image": 1}


def test_a_folder_that_cannot_be_read_is_passed_over_where_images_are_looked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `lost+found` at the top of a disk; root may read it, so that the system is played."""
    (folder / "lost+found").mkdir()
    (folder / "photos").mkdir()
    (folder / "0.jpg").rename(folder / "photos" / "0.jpg")
    (folder / "a.csv").write_text("image,caption\n0.jpg,a\n0.jpg,b\n")
    listed = Path.iterdir

    def refusing(path: Path) -> Iterator[Path]:
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    report, rows = _import(folder / "a.csv")
    assert [row["captions"] for row in rows] == [["a", "b"]]
    assert report.noted == {"unreadable file or folder": 1}
    assert "lost+found" in report.to_text()


def test_absolute_paths_count_inside_the_folder_and_below_the_one_that_is_named(
    folder: Path, texts: Texts, left_out: LeftOut
) -> None:
    lines = ["image,caption", f"{folder}/0.jpg,a", f"{folder}/1.jpg,b", "/etc/passwd,c"]
    (folder / "a.csv").write_text("\n".join(lines))
    assert texts(folder / "a.csv") == {"0.jpg": ["a"], "1.jpg": ["b"]}
    assert [reason for _, reason, _ in left_out(folder / "a.csv")] == ["unsafe path"]
    (folder / "b.csv").write_text("image,caption\n/their/disk/data/0.jpg,a\n")
    assert texts(folder / "b.csv", image_root=folder.parent) == {"0.jpg": ["a"]}
    assert [reason for _, reason, _ in left_out(folder / "b.csv")] == ["unsafe path"]


def test_ids_that_pandas_has_made_floats(folder: Path) -> None:
    (folder / "a.csv").write_text("image,caption,id\n0.jpg,a,7.0\n1.jpg,b,\n")
    _, rows = _import(folder / "a.csv")
    assert [row["id"] for row in rows] == ["7", "1.jpg"]


def test_types_of_arrow_that_hold_texts(folder: Path, jpeg: Callable[..., bytes]) -> None:
    struct = pa.struct([("raw", pa.string()), ("tokens", pa.list_(pa.string()))])
    columns = {
        "a": pa.array(["dictionary"]).dictionary_encode(),
        "b": pa.array(["view"], pa.string_view()),
        "c": pa.array([["fixed", "size"]], pa.list_(pa.string(), 2)),
        "d": pa.array([[{"raw": "struct", "tokens": []}, {"raw": None}]], pa.list_(struct)),
    }
    for number, (name, texts) in enumerate(columns.items()):
        table = pa.table({"image": pa.array([jpeg(number)]), "captions": texts})
        parquet.write_table(table, folder / f"{name}.parquet")
    report, rows = _import(Path(f"{folder}/*.parquet"))
    captions = [["dictionary"], ["view"], ["fixed", "size"], ["struct"]]
    assert [row["captions"] for row in rows] == captions
    assert report.skipped == {}


class TestAnEncoding:
    @pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
    def test_is_read_where_it_is_said_and_named_where_it_is_not(
        self, folder: Path, texts: Texts, encoding: str
    ) -> None:
        file = folder / "a.csv"
        file.write_text("image,caption\n0.jpg,Grüße\n", encoding=encoding)
        assert texts(file, encoding=encoding) == {"0.jpg": ["Grüße"]}
        assert texts(folder, encoding=encoding)["0.jpg"] == ["Grüße"]

    def test_of_two_bytes_is_named(self, folder: Path, texts: Texts, left_out: LeftOut) -> None:
        (folder / "a.csv").write_text("image,caption\n0.jpg,a\n", encoding="utf-16")
        with pytest.raises(DataError, match=r"a\.csv looks like UTF-16: say --encoding utf-16"):
            texts(folder / "a.csv")
        told = {where: detail for where, _, detail in left_out(folder)}
        assert told["a.csv"] == "looks like UTF-16: say --encoding utf-16"

    def test_that_is_not_the_files_is_told(self, folder: Path, left_out: LeftOut) -> None:
        (folder / "a.csv").write_text("image,caption\n0.jpg,a\n")
        told = {where: detail for where, _, detail in left_out(folder, encoding="utf-16")}
        assert "cannot be read" in told["a.csv"]


def test_columns_of_a_file_without_header(folder: Path, texts: Texts) -> None:
    named = ("caption", "id", "image")
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        lines = (mark.join(fields) for fields in (["a", "x", "0.jpg"], ["b", "y", "1.jpg"]))
        (folder / name).write_text("\n".join(lines))
        assert texts(folder / name, columns=named) == {"0.jpg": ["a"], "1.jpg": ["b"]}


def test_a_packed_table_that_breaks_off_keeps_its_rows(folder: Path, left_out: LeftOut) -> None:
    lines = "".join(f"{number % 6}.jpg,text {number}\n" for number in range(5_000))
    whole = gzip.compress(f"image,caption\n{lines}".encode())
    (folder / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    report, _ = _import(folder / "a.csv.gz")
    assert report.num_rows == 6
    (example,) = report.examples["bad record"]
    assert example.detail.startswith("cannot be read from here on: Compressed file ended")


def test_an_import_with_named_columns_is_another_than_without(folder: Path) -> None:
    (folder / "a.csv").write_text("image,caption\n0.jpg,a\n")
    assert not _import(folder / "a.csv")[0].nothing_read
    assert _import(folder / "a.csv")[0].nothing_read
    assert not _import(folder / "a.csv", columns=("image", "caption"))[0].nothing_read
