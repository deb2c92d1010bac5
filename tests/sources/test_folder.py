import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport
from openblip.table.table import PairTable

Jpeg = Callable[..., bytes]


def _import(source: Path, **options: object) -> tuple[ImportReport, list[dict[str, object]]]:
    uri = source.with_name("out.lance")
    report = import_pairs(source, uri, show_progress=False, **options)
    return report, PairTable.open(uri).take(range(report.num_rows)).to_pylist()


def _write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def _png(number: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def _tar(members: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _facts(rows: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(row["id"], row["captions"]) for row in rows]


def test_text_files_beside_images_are_their_captions(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    source = tmp_path / "pictures"
    (source / "b").mkdir(parents=True)
    for name in ("a", "b/1", "b/2", "c"):
        (source / f"{name}.jpg").write_bytes(jpeg(len(name)))
    (source / "a.txt").write_text("\ufeffone\ntwo\n\n", encoding="utf-8")
    (source / "b" / "1.txt").write_text("three")
    (source / "b" / "1.json").write_text('{"url": "http://x", "split": "validation"}')
    (source / "d.jpg").write_bytes(jpeg(9))
    (source / "d.json").write_text('{"caption": "four"}')
    (source / "c.txt").write_bytes(b"\xff\xfe")
    (source / "notes.txt").write_text("of no image")
    report, rows = _import(source)
    assert report.format == "folder"
    assert [(row["id"], row["captions"], row["split"]) for row in rows] == [
        ("a", ["one", "two"], "train"),
        ("b/1", ["three"], "val"),
        ("d", ["four"], "train"),
    ]
    assert json.loads(str(rows[1]["meta"])) == {"url": "http://x"}
    # An image and the text beside it are two files.
    assert report.skipped == {"missing caption": 1, "bad record": 2, "other file": 1}
    assert report.examples["missing caption"][0].where == "b/2.jpg"
    assert report.examples["other file"][0].where == "notes.txt"
    assert (report.num_used, report.num_seen) == (7, 11)


def test_a_circle_of_links_ends(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    (source / "loop").symlink_to(source)
    (source / "a.jpg").write_bytes(jpeg(0))
    (source / "a.txt").write_text("one")
    report, _ = _import(source)
    assert report.num_rows == 1


class TestWhatIsAnImage:
    @pytest.mark.parametrize(
        "name", ["a.jfif", "a.jpe", "a.pjpeg", "a.JPG_large", "a", "a.upload", "a.heic", "a.apng"]
    )
    def test_shows_in_its_content(self, tmp_path: Path, jpeg: Jpeg, name: str) -> None:
        files = {name: jpeg(0), "a.txt": "first", "b.jpg": jpeg(1), "b.txt": "second"}
        report, rows = _import(_write(tmp_path / "p", files))
        assert _facts(rows) == [("a", ["first"]), ("b", ["second"])]
        assert (report.num_used, report.num_skipped) == (4, 0)

    def test_a_raw_photograph_is_named_and_not_read(self, tmp_path: Path, jpeg: Jpeg) -> None:
        files = {"a.nef": _png(), "a.txt": "x", "b.jpg": jpeg(1), "b.txt": "y"}
        report, rows = _import(_write(tmp_path / "p", files))
        assert _facts(rows) == [("b", ["y"])]
        assert report.skipped == {"other file": 2}
        assert "raw file of a camera" in report.to_text()


class TestTextsBeside:
    @pytest.mark.parametrize(
        "name", ["a.caption", "a.TXT", "a.jpg.txt", "a.jpg.caption", "a.caption.txt", "a.text"]
    )
    def test_have_several_names(self, tmp_path: Path, jpeg: Jpeg, name: str) -> None:
        _, rows = _import(_write(tmp_path / "p", {"a.jpg": jpeg(0), name: "a dog"}))
        assert _facts(rows) == [("a", ["a dog"])]

    @pytest.mark.parametrize("name", ["a.json", "a.jpg.json", "a.JSON"])
    def test_may_be_a_record(self, tmp_path: Path, jpeg: Jpeg, name: str) -> None:
        record = {"caption": None, "captions": ["a", "b"], "set_name": "test", "url": "u"}
        files = {"a.jpg": jpeg(0), name: json.dumps(record)}
        _, rows = _import(_write(tmp_path / "p", files))
        assert _facts(rows) == [("a", ["a", "b"])]
        assert rows[0]["split"] == "test"
        assert json.loads(str(rows[0]["meta"])) == {"url": "u"}

    def test_what_a_record_says_besides_the_text_is_kept(self, tmp_path: Path, jpeg: Jpeg) -> None:
        files = {
            "a.jpg": jpeg(0),
            "a.txt": "one\ntwo\n",
            "a.json": '{"caption": "of the web", "text": "one\\ntwo"}',
        }
        _, rows = _import(_write(tmp_path / "p", files))
        assert rows[0]["captions"] == ["one", "two"]
        assert json.loads(str(rows[0]["meta"])) == {"caption": "of the web"}

    def test_a_line_ends_where_files_have_their_line_ends(self, tmp_path: Path, jpeg: Jpeg) -> None:
        text = "\ufeffone\u2028still\x0bone\x85and\x0cone\r\ntwo\rthree\n\n"
        _, rows = _import(_write(tmp_path / "p", {"a.jpg": jpeg(0), "a.txt": text}))
        assert rows[0]["captions"] == ["one\u2028still\x0bone\x85and\x0cone", "two", "three"]

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
    def test_of_another_encoding_are_named(self, tmp_path: Path, jpeg: Jpeg, encoding: str) -> None:
        files = {"a.jpg": jpeg(0), "a.txt": "ein H\xfcndchen".encode(encoding)}
        _write(tmp_path / "p", files)
        report = import_pairs(tmp_path / "p", tmp_path / "t", show_progress=False)
        assert report.skipped == {"bad record": 2}
        assert "save it as UTF-8" in report.to_text()

    def test_are_read_in_the_encoding_that_is_said(self, tmp_path: Path, jpeg: Jpeg) -> None:
        pair = {"0.jpg": jpeg(0), "0.txt": "Grüße\n\nein Hund".encode("cp1252")}
        folder = _write(tmp_path / "p", {**pair, "s/a.tar": _tar(pair)})
        _, rows = _import(folder, encoding="cp1252")
        assert [row["captions"] for row in rows] == [["Grüße", "ein Hund"]] * 2

    def test_of_two_that_differ_the_first_counts_and_the_other_is_noted(
        self, tmp_path: Path, jpeg: Jpeg
    ) -> None:
        files = {
            **{"a.jpg": jpeg(0), "a.txt": "a dog", "a.caption": "tags"},
            **{"b.jpg": jpeg(1), "b.txt": "a cat", "b.caption": "a cat\n"},
        }
        report, rows = _import(_write(tmp_path / "p", files))
        assert _facts(rows) == [("a", ["a dog"]), ("b", ["a cat"])]
        assert report.noted == {"other member of a sample": 1}
        assert "a.caption: says something else than a.txt" in report.to_text()
        assert report.num_used == 6

    def test_between_two_images_are_a_contradiction(self, tmp_path: Path, jpeg: Jpeg) -> None:
        files = {
            **{"a.jpg": jpeg(0), "a.png": _png(), "a.txt": "of which?", "a.json": "{}"},
            **{"b.jpg": jpeg(1), "b.png": _png(1), "b.jpg.txt": "one", "b.png.txt": "two"},
            **{"c.jpg": jpeg(2), "c.thumb": _png(2), "c.txt": "three"},
        }
        report, rows = _import(_write(tmp_path / "p", files))
        assert _facts(rows) == [("b.jpg", ["one"]), ("b.png", ["two"]), ("c.jpg", ["three"])]
        assert report.skipped == {"contradiction": 4, "missing caption": 1}
        assert "a.jpg and a.png have a.txt and a.json between them" in report.to_text()

    def test_of_masks_there_are_none(self, tmp_path: Path, jpeg: Jpeg) -> None:
        files = {"a.jpg": jpeg(0), "a_mask.png": _png(), "a.txt": "a dog"}
        report, rows = _import(_write(tmp_path / "p", files))
        assert _facts(rows) == [("a", ["a dog"])]
        assert report.skipped == {"missing caption": 1}


class TestEverythingInAFolder:
    def test_is_used_or_left_out_with_its_reason(self, tmp_path: Path, jpeg: Jpeg) -> None:
        files = {
            **{"a.jpg": jpeg(0), "a.txt": "a", ".DS_Store": b"", "__MACOSX/._a.jpg": b""},
            **{"Thumbs.db": b"", "notes.docx": b"PK\x03\x04", "alone.txt": "x", "b.zip": b""},
            **{"old.jsonl": "{}", "numbers.json": "[]", "film.mp4": b"\0\0\0\x18ftypmp42"},
        }
        folder = _write(tmp_path / "p", files)
        (folder / "lost.jpg").symlink_to("nowhere")
        PairTable.create(folder / "t.lance", [])
        report, _ = _import(folder)
        assert report.skipped == {"other file": 7, "hidden file": 3, "unreadable file or folder": 1}
        assert report.num_seen == 13
        text = report.to_text()
        for line in (
            "b.zip: an archive of a kind that is not read",
            "film.mp4: a video",
            "lost.jpg: a link to nothing",
            "notes.docx: a ZIP archive",
            "old.jsonl: a list whose name is not captions.jsonl",
            "alone.txt: a text of no image here",
            "t.lance: a pair table",
        ):
            assert line in text

    def test_lists_at_every_depth_have_the_splits_of_their_folders(
        self, tmp_path: Path, jpeg: Jpeg
    ) -> None:
        files = {
            **{
                "train/0.jpg": jpeg(0),
                "train/metadata.jsonl": '{"file_name": "0.jpg", "text": "a"}',
            },
            **{"test/0.jpg": jpeg(1), "test/metadata.csv": "file_name,text\n0.jpg,b\n"},
            **{"test/extra.jpg": jpeg(2), "val.jsonl": '{"image": "v/0.jpg", "text": "c"}'},
            "v/0.jpg": jpeg(3),
        }
        report, rows = _import(_write(tmp_path / "p", files))
        assert sorted((row["id"], row["captions"], row["split"]) for row in rows) == [
            ("test/0.jpg", ["b"], "test"),
            ("train/0.jpg", ["a"], "train"),
            ("v/0.jpg", ["c"], "val"),
        ]
        assert report.skipped == {"missing caption": 1}

    def test_a_list_hides_no_pairs_and_counts_before_texts_beside(
        self, tmp_path: Path, jpeg: Jpeg
    ) -> None:
        files = {
            **{"a.jpg": jpeg(0), "a.txt": "beside", "b.jpg": jpeg(1), "b.txt": "b"},
            "captions.jsonl": '{"image": "./a.jpg", "caption": "listed"}',
        }
        report, rows = _import(_write(tmp_path / "p", files))
        assert report.format == "jsonl"
        assert _facts(rows) == [("a.jpg", ["listed"]), ("b", ["b"])]
        assert report.skipped == {"other file": 1}
        assert "beside an image of a list, which counts: a.txt" in report.to_text()

    def test_a_table_without_images_hides_no_pairs(self, tmp_path: Path, jpeg: Jpeg) -> None:
        files = {"a.jpg": jpeg(0), "a.txt": "a", "prices.csv": "day,price\n1,2\n"}
        report, rows = _import(_write(tmp_path / "p", files))
        assert _facts(rows) == [("a", ["a"])]
        assert report.skipped == {"other file": 1}
        assert "no column of images" in report.to_text()

    def test_archives_are_read_at_every_depth(self, tmp_path: Path, jpeg: Jpeg) -> None:
        shard = _tar({"0.jpg": jpeg(0), "0.txt": b"x"})
        files = {"train/0.tar": shard, "deep/er/test/0.tar": shard, "a.jpg": jpeg(1), "a.txt": "a"}
        report, rows = _import(_write(tmp_path / "p", files))
        assert [(row["id"], row["split"]) for row in rows] == [
            ("a", "train"),
            ("deep/er/test/0", "test"),
            ("train/0", "train"),
        ]
        assert report.num_used == 6

    def test_only_what_the_format_says_is_read_and_the_rest_is_left_out(
        self, tmp_path: Path, jpeg: Jpeg
    ) -> None:
        files = {"a.jpg": jpeg(0), "a.txt": "a", "0.tar": _tar({"0.jpg": jpeg(1), "0.txt": b"x"})}
        report, rows = _import(_write(tmp_path / "p", files), format="webdataset")
        assert _facts(rows) == [("0", ["x"])]
        assert report.skipped == {"other file": 2}
        assert "left out by --format webdataset" in report.to_text()

    def test_names_that_are_no_utf_8_are_read(self, tmp_path: Path, jpeg: Jpeg) -> None:
        folder = tmp_path / "p"
        folder.mkdir()
        names = [b"caf\xe9", b"caf\xe8"]
        for number, name in enumerate(names):
            (folder / (name + b".jpg").decode("utf-8", "surrogateescape")).write_bytes(jpeg(number))
            (folder / (name + b".txt").decode("utf-8", "surrogateescape")).write_text(str(number))
        report, rows = _import(folder)
        assert [row["captions"] for row in rows] == [["1"], ["0"]]
        assert report.num_used == 4

    def test_is_imported_alike_in_one_go_and_in_steps(self, tmp_path: Path, jpeg: Jpeg) -> None:
        shard = {
            f"{n}{end}": jpeg(n) if end == ".jpg" else b"x"
            for n in range(3)
            for end in (".jpg", ".txt")
        }
        lines = [json.dumps({"image": f"{n}.jpg", "text": "t"}) for n in range(3)]
        files: dict[str, bytes | str] = {
            **{f"l/{n}.jpg": jpeg(10 + n) for n in range(4)},
            **{f"{n}.jpg": jpeg(20 + n) for n in range(3)},
            **{f"{n}.txt": "beside" for n in range(3)},
            **{"l/captions.jsonl": "\n".join([*lines, "{"]), "m/captions.jsonl": "{\n{"},
            **{
                "s/0.tar": _tar(shard),
                "z.tar": _tar(shard),
                "t/metadata.csv": "file_name,text\n0.jpg,u\n",
            },
            **{"t/0.jpg": jpeg(30), "notes.md": "x", "y.csv": "no,images\n"},
        }
        folder = _write(tmp_path / "p", files)
        whole = import_pairs(folder, tmp_path / "whole", show_progress=False)
        assert (whole.num_rows, whole.num_seen) == (10, whole.num_used + whole.num_skipped)
        report = whole
        for limit in (*range(1, whole.num_rows + 1), None):
            report = import_pairs(
                folder, tmp_path / "t", limit=limit, commit_rows=1, show_progress=False
            )
        tables = [
            PairTable.open(tmp_path / name).take(range(10), ["id"]) for name in ("whole", "t")
        ]
        assert tables[0] == tables[1]
        assert (report.skipped, report.num_seen) == (whole.skipped, whole.num_seen)
        assert report.complete


def test_a_blank_text_hides_no_text_beside_it(tmp_path: Path, jpeg: Jpeg) -> None:
    files = {
        **{"a.jpg": jpeg(0), "a.txt": "", "a.json": '{"caption": "real", "SPLIT": "test"}'},
        **{"b.jpg": jpeg(1), "b.txt": "\ufeff\n", "b.caption": "real"},
        **{"c.jpg": jpeg(2), "c.json": '{"caption": "", "captions": ["real", null]}'},
    }
    report, rows = _import(_write(tmp_path / "p", files))
    assert [(row["id"], row["split"], row["captions"]) for row in rows] == [
        ("a", "test", ["real"]),
        ("b", "train", ["real"]),
        ("c", "train", ["real"]),
    ]
    assert (report.num_seen, report.num_skipped, report.noted) == (8, 0, {})


def test_a_linked_folder_has_the_split_of_its_target(tmp_path: Path, jpeg: Jpeg) -> None:
    _write(tmp_path / "far" / "test", {"a.jpg": jpeg(0), "a.txt": "a"})
    source = _write(tmp_path / "p", {"b.jpg": jpeg(1), "b.txt": "b"})
    (source / "more").symlink_to(tmp_path / "far" / "test")
    report, _ = _import(source)
    assert report.splits == {"train": 1, "test": 1}


def test_a_linked_image_has_the_split_of_its_target(tmp_path: Path, jpeg: Jpeg) -> None:
    files = {"test/0.jpg": jpeg(0), "test/0.txt": "a", "train/zero.txt": "b", "more/one.txt": "c"}
    source = _write(tmp_path / "p", files)
    (source / "train" / "zero.jpg").symlink_to("../test/0.jpg")
    (source / "more" / "one.jpg").symlink_to("../test/0.jpg")
    report, _ = _import(source)
    assert report.splits == {"test": 2}
    (example,) = report.examples["contradiction"]
    assert example.where == "train/zero.jpg"


@pytest.mark.parametrize(
    ("folder", "split"),
    [("validate", "val"), ("tests", "test"), ("evals", "test"), ("held_out", "test")],
)
def test_folders_may_have_other_words_for_a_split(
    tmp_path: Path, jpeg: Jpeg, folder: str, split: str
) -> None:
    files = {f"{folder}/0.jpg": jpeg(0), f"{folder}/0.txt": "a"}
    report, _ = _import(_write(tmp_path / "p", files))
    assert report.splits == {split: 1}


@pytest.mark.parametrize("name", ["out.csv", "captions.jsonl", "captions.json"])
def test_what_a_captioner_wrote_there_is_not_what_people_say(tmp_path: Path, name: str) -> None:
    row = {"out.csv": "image,caption,logprob\na.png,machine,-1\n"}.get(name)
    row = row or json.dumps({"image": "a.png", "caption": "machine"})
    files = {"a.png": _png(), "a.txt": "a person's", name: row, f"{name}.settings.json": "{}"}
    report, rows = _import(_write(tmp_path / "photos", files))
    assert [row["captions"] for row in rows] == [["a person's"]]
    assert "import it itself" in str(report.examples["other file"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", "image,caption,split\na.png,x,test\nb.png,y,test,oops\n"),
        ("captions.csv", 'image,caption,split\na.png,x,test\nb.png,"y" z"",test\n'),
        ("captions.csv", b"image,caption,split\na.png,x,test\nb.png,caf\xe9,test\n"),
        ("captions.tsv", "caption\timage\tsplit\nx\ta.png\ttest\ny\tb.png\n"),
        (
            "captions.jsonl",
            '{"image": "a.png", "caption": "x", "split": "test"}\n'
            '{"image": "b.png", "caption": "y", "split": "te\n',
        ),
    ],
)
@pytest.mark.parametrize("processes", [None, 1])
def test_the_image_of_a_record_that_cannot_be_read_does_not_come_from_elsewhere(
    tmp_path: Path, name: str, content: str | bytes, processes: int | None
) -> None:
    files = {f"{key}.png": _png(number) for number, key in enumerate("abc")}
    texts = {f"{key}.txt": f"own {key}" for key in "abc"}
    more = {"one.tar": _tar({"k.png": _png(9), "k.txt": b"k"})}
    source = _write(tmp_path / "photos", {**files, **texts, **more, name: content})
    report, rows = _import(source, processes=processes)
    told = {str(row["id"]).removesuffix(".png"): row["split"] for row in rows}
    assert told == {"a": "test", "c": "train", "k": "train"}
    assert report.skipped["bad record"] == 1


_ROW = b'{"image": "pictures/%s.png", "caption": "x", "split": "test"}'


def _cut_short(content: bytes) -> bytes:
    """Packed, with more behind it of which only a part is there."""
    return gzip.compress(content + random.Random(0).randbytes(1 << 16))[: 1 << 15]


def _damaged_parquet() -> bytes:
    """Two row groups, of which the second cannot be read."""
    columns = {"image": ["pictures/a.png", "pictures/b.png"], "caption": ["x", "y"]}
    stream, table = io.BytesIO(), pa.table({**columns, "split": ["test", "test"]})
    parquet.write_table(table, stream, row_group_size=1, compression="none", use_dictionary=False)
    length = len("pictures/b.png").to_bytes(4, "little")
    return stream.getvalue().replace(length + b"pictures/b.png", b"\xff" * 18)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", b"[" + _ROW % b"a" + b"," + _ROW % b"b" + b", {"),
        ("metadata.jsonl.gz", _cut_short(_ROW % b"a" + b"\n")),
        ("metadata.jsonl", (_ROW % b"a").decode().encode("utf-16")),
        ("metadata.csv", "image,caption,split\npictures/a.png,x,test\n".encode("utf-16")),
        ("some.csv.gz", _cut_short(b"image,caption,split\npictures/a.png,x,test\n")),
        ("some.parquet", _damaged_parquet()),
        ("metadata.jsonl", _ROW % b"a" + b'\n{"im'),
        ("metadata.jsonl", _ROW % b"a" + b"\n" + (_ROW % b"b")[:-12]),
        ("some.csv", b"image,caption,split\npictures/a.png,x,test\npictures/b.png,y"),
        ("captions.jsonl.zst", b"\x28\xb5\x2f\xfd"),
    ],
    ids=[
        *("array", "packed", "encoding", "table", "packed table", "parquet"),
        *("a line", "a name in a line", "a row", "what is not unpacked"),
    ],
)
@pytest.mark.parametrize("processes", [None, 1])
def test_what_a_list_may_have_said_before_it_breaks_off_is_not_made_up(
    tmp_path: Path, name: str, content: bytes, processes: int | None
) -> None:
    files = {f"pictures/{key}.png": _png(number) for number, key in enumerate("abc")}
    texts = {f"pictures/{key}.txt": f"own {key}" for key in "abc"}
    more = {"other/one.tar": _tar({"k.png": _png(9), "k.txt": b"k"})}
    source = _write(tmp_path / "photos", {**files, **texts, **more, name: content})
    report, rows = _import(source, processes=processes)
    assert {row["split"] for row in rows if "pictures" in str(row["id"])} <= {"test"}
    assert report.skipped["beside a list that breaks off"] >= 2
    (example, *_) = report.examples["beside a list that breaks off"]
    assert f"{name} may say more of it" in example.detail


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.json"])
def test_a_list_that_is_not_there_or_cut_short_may_have_said_something_of_images(
    tmp_path: Path, name: str
) -> None:
    source = _write(tmp_path / "photos", {"a.png": _png(), "a.txt": "own"})
    if name == "captions.jsonl":
        (source / name).symlink_to(tmp_path / "gone.jsonl")
    else:
        (source / name).write_bytes(b"[" + _ROW % b"a" + b', {"image": "pic')
    report = import_pairs(source, tmp_path / "out.lance", show_progress=False)
    assert report.skipped["beside a list that breaks off"] == 2


@pytest.mark.parametrize(
    "name",
    [
        *("in/a.PNG", "in/A.png", "in/a.jpg", "in/a", "more/in/a.png", "/gone/in/a.png"),
        *("../photos/in/a.png", "in\\A.png", "http://x/in/a.png"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("processes", [None, 1])
def test_an_image_that_a_record_may_mean_does_not_come_in_without_it(
    tmp_path: Path, name: str, form: str, processes: int | None
) -> None:
    record = json.dumps({"image": name, "caption": "x", "split": "test"})
    lists = {"jsonl": record, "csv": f"image,caption,split\n{name},x,test\n"}
    files = {"in/a.png": _png(), "in/a.txt": "own", "in/b.png": _png(1), "in/b.txt": "own"}
    more = {
        "one.tar": _tar({"k.png": _png(9), "k.txt": b"k"}),
        f"metadata.{form}": lists[form],
    }
    report, rows = _import(_write(tmp_path / "photos", {**files, **more}), processes=processes)
    assert [row["id"] for row in rows] == ["in/b", "k"]
    assert report.skipped["like a missing image of a list"] == 2


def test_a_missing_image_of_the_same_name_in_another_folder_means_no_other(tmp_path: Path) -> None:
    files = {"in/a.png": _png(), "in/a.txt": "own"}
    record = json.dumps({"image": "out/a.png", "caption": "x", "split": "test"})
    _, rows = _import(_write(tmp_path / "photos", {**files, "metadata.jsonl": record}))
    assert [row["id"] for row in rows] == ["in/a"]


def test_labels_beside_images_with_texts_are_no_captions(tmp_path: Path) -> None:
    files = {"in/a.png": _png(), "in/a.txt": "a text", "labels.json": '{"in/a.png": "dog"}'}
    _, rows = _import(_write(tmp_path / "photos", files))
    assert [row["captions"] for row in rows] == [["a text"]]
