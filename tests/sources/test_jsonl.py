import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport
from openblip.table.table import PairTable


def _import(source: Path, **options: object) -> tuple[ImportReport, list[dict[str, object]]]:
    uri = source.with_name("out.lance")
    report = import_pairs(source, uri, show_progress=False, **options)
    return report, PairTable.open(uri).take(range(report.num_rows)).to_pylist()


def test_captions_jsonl_gives_a_row_per_line(
    write_jsonl: Callable[..., Path], jpeg: Callable[..., bytes]
) -> None:
    source = write_jsonl(
        [
            {"image": "images/0.jpg", "captions": ["a", "b"], "split": "val", "label": [1, "x"]},
            {"image": "images/1.jpg", "captions": [" c "], "split": "test", "source": "s"},
            {"image": "images/2.jpg", "captions": ["d"]},
        ]
    )
    report, rows = _import(source, origin="human")
    assert (report.num_rows, report.num_captions, report.num_skipped) == (3, 4, 0)
    assert report.splits == {"val": 1, "test": 1, "train": 1}
    assert report.format == "jsonl"
    assert report.complete
    assert rows[0] == {
        "id": "images/0.jpg",
        "image": jpeg(0),
        "image_uri": None,
        "width": 24,
        "height": 16,
        "captions": ["a", "b"],
        "origin": "human",
        "split": "val",
        "meta": '{"label": [1, "x"]}',
    }
    assert rows[1]["captions"] == ["c"]
    assert json.loads(str(rows[1]["meta"])) == {"source": "s"}


def test_ids_and_other_field_names_are_understood(write_jsonl: Callable[..., Path]) -> None:
    source = write_jsonl(
        [
            {"id": 7, "file_name": "images/0.jpg", "text": "a"},
            {"id": "k", "path": "images/1.jpg", "caption": "b", "split": "restval"},
        ]
    )
    _, rows = _import(source / "captions.jsonl")
    assert [(row["id"], row["captions"], row["split"]) for row in rows] == [
        ("7", ["a"], "train"),
        ("k", ["b"], "train"),
    ]


def test_the_split_can_be_overridden(write_jsonl: Callable[..., Path]) -> None:
    source = write_jsonl([{"image": "images/0.jpg", "captions": ["a"], "split": "train"}])
    report, rows = _import(source, split="test")
    assert report.splits == {"test": 1}
    assert rows[0]["split"] == "test"


def test_only_the_place_of_an_image_can_be_stored(write_jsonl: Callable[..., Path]) -> None:
    source = write_jsonl([{"image": "images/0.jpg", "captions": ["a"]}])
    _, rows = _import(source, store="uri")
    assert rows[0]["image"] is None
    assert rows[0]["image_uri"] == str(source / "images" / "0.jpg")
    assert rows[0]["width"] == 24


def test_damaged_lines_are_reported_with_their_number(write_jsonl: Callable[..., Path]) -> None:
    source = write_jsonl(
        [
            {"image": "images/0.jpg", "captions": ["good"]},
            '{"image": "images/1.jpg", "captions": ["broken',
            "[1, 2]",
            {"captions": ["no image"]},
            {"image": "images/2.jpg", "captions": [1]},
            {"image": "images/3.jpg", "captions": ["x"], "split": "extra"},
            "",
            "[" * 100_000,
            {"image": "images/4.jpg", "captions": ["good too"]},
        ]
    )
    report, rows = _import(source)
    assert [row["id"] for row in rows] == ["images/0.jpg", "images/4.jpg"]
    # The image that a broken line names is of that line, and is not looked for elsewhere.
    assert report.skipped == {"bad record": 6}
    places = [example.where for example in report.examples["bad record"]]
    assert [place.split(",")[0] for place in places] == [
        f"captions.jsonl line {number}" for number in (2, 3, 4, 5, 6, 8)
    ]
    assert "unknown split 'extra'" in report.to_text()


def test_missing_captions_are_left_out_but_an_empty_list_is_an_answer(
    write_jsonl: Callable[..., Path],
) -> None:
    source = write_jsonl(
        [
            {"image": "images/0.jpg"},
            {"image": "images/1.jpg", "captions": ["  ", ""]},
            {"image": "images/2.jpg", "captions": [], "questions": [{"question": "?"}]},
        ]
    )
    report, rows = _import(source)
    assert report.skipped == {"missing caption": 2}
    assert report.noted == {"imported without captions": 1}
    assert [row["captions"] for row in rows] == [[]]
    assert json.loads(str(rows[0]["meta"])) == {"questions": [{"question": "?"}]}


def test_bad_images_are_left_out_with_the_reason(
    write_jsonl: Callable[..., Path], jpeg: Callable[..., bytes]
) -> None:
    names = ["0", "cut", "text", "empty", "gone", "bomb", "1"]
    source = write_jsonl([{"image": f"images/{n}.jpg", "captions": ["x"]} for n in names])
    (source / "images" / "cut.jpg").write_bytes(jpeg(0)[:-300])
    (source / "images" / "text.jpg").write_text("no image")
    (source / "images" / "empty.jpg").touch()
    # A header that promises 60000 x 60000 pixels: nothing may be decoded for it.
    bomb = b"P6 60000 60000 255\n" + bytes(100)
    (source / "images" / "bomb.jpg").write_bytes(bomb)
    report, rows = _import(source)
    assert [row["id"] for row in rows] == ["images/0.jpg", "images/1.jpg"]
    assert report.skipped == {"unreadable image": 3, "missing image": 1, "image too large": 1}
    assert "line 6, images/bomb.jpg" in report.examples["image too large"][0].where


@pytest.mark.parametrize(
    "name",
    [
        *("../outside.jpg", "images/../../outside.jpg", "..\\outside.jpg", "images/.."),
        *("/etc/passwd", "C:\\x.jpg", "\\\\host\\x.jpg"),
        *("file:///etc/passwd", "https://example.com/a.jpg"),
    ],
)
def test_paths_out_of_the_folder_are_refused(
    write_jsonl: Callable[..., Path], jpeg: Callable[..., bytes], name: str
) -> None:
    records = [{"image": path, "captions": ["x"]} for path in (name, "images/../images/0.jpg")]
    source = write_jsonl(records)
    source.with_name("outside.jpg").write_bytes(jpeg(99))
    report, rows = _import(source)
    assert report.skipped == {"unsafe path": 1}
    assert [row["id"] for row in rows] == ["images/0.jpg"]


def test_duplicates_are_left_out(write_jsonl: Callable[..., Path]) -> None:
    names = ["0", "1", "0", "2", "1"]
    source = write_jsonl([{"image": f"images/{n}.jpg", "captions": ["x"]} for n in names])
    report, rows = _import(source)
    assert report.skipped == {"duplicate id": 2}
    assert report.num_rows == len(rows) == 3
    assert "line 3" in report.examples["duplicate id"][0].where


def test_hashes_as_ids_drop_equal_images(write_jsonl: Callable[..., Path]) -> None:
    source = write_jsonl([{"image": f"images/{n}.jpg", "captions": ["x"]} for n in (0, 1, 2)])
    (source / "images" / "2.jpg").write_bytes((source / "images" / "0.jpg").read_bytes())
    report, rows = _import(source, ids="sha256")
    assert report.skipped == {"duplicate id": 1}
    assert [len(str(row["id"])) for row in rows] == [64, 64]


def test_a_field_that_is_null_or_empty_falls_through_to_the_next(
    write_jsonl: Callable[..., Path],
) -> None:
    source = write_jsonl(
        [
            {"image": None, "file_name": "images/0.jpg", "captions": None, "caption": "a"},
            {"image": "images/1.jpg", "captions": [], "text": "b"},
            {"image": "images/2.jpg", "caption": "c", "text": "not this"},
        ]
    )
    _, rows = _import(source)
    assert [row["captions"] for row in rows] == [["a"], ["b"], ["c"]]
    assert json.loads(str(rows[2]["meta"])) == {"text": "not this"}


def test_the_split_may_be_called_set_name_and_must_not_contradict_itself(
    write_jsonl: Callable[..., Path],
) -> None:
    fields = [
        {"set_name": "test"},
        {"split": None, "set_name": "val"},
        {"split": "val", "set_name": "validation"},
        {"split": "train", "set_name": "test"},
    ]
    records = [
        {"image": f"images/{number}.jpg", "caption": "a", **own}
        for number, own in enumerate(fields)
    ]
    report, rows = _import(write_jsonl(records))
    assert [row["split"] for row in rows] == ["test", "val", "val"]
    assert report.skipped == {"contradiction": 1}
    assert "'train and test'" in report.to_text()


def test_an_option_settles_a_contradiction(write_jsonl: Callable[..., Path]) -> None:
    record = {"image": "images/0.jpg", "caption": "a", "split": "train", "set_name": "test"}
    report, _ = _import(write_jsonl([record]), split="val")
    assert report.splits == {"val": 1}


def test_a_mark_of_the_byte_order_before_the_first_line_is_none_of_it(
    write_jsonl: Callable[..., Path],
) -> None:
    source = write_jsonl([{"image": "images/0.jpg", "caption": "a"}])
    file = source / "captions.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert _import(source)[0].num_rows == 1


Texts = Callable[..., dict[str, list[str]]]
LeftOut = Callable[..., list[tuple[str, str, str]]]


@pytest.mark.parametrize(
    "name",
    ["captions.jsonl", "captions.jsonl.gz", "train.jsonl.bz2", "test.ndjson", "val.jsonlines.gz"],
)
@pytest.mark.parametrize("is_array", [False, True])
def test_a_list_may_be_compressed_and_an_array(
    write_jsonl: Callable[..., Path],
    texts: Texts,
    name: str,
    is_array: bool,
) -> None:
    records = [{"image": f"images/{number}.jpg", "text": f"text {number}"} for number in range(3)]
    folder = write_jsonl(records)
    content = (folder / "captions.jsonl").read_bytes()
    if is_array:
        content = json.dumps(records, indent=2).encode()
    (folder / "captions.jsonl").unlink()
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(name).suffix, bytes)
    (folder / name).write_bytes(pack(content))
    expected = {f"{number}.jpg": [f"text {number}"] for number in range(3)}
    assert texts(folder) == texts(folder / name) == expected


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_a_list_of_nothing_is_said_to_be_empty(
    write_jsonl: Callable[..., Path], left_out: LeftOut, content: str
) -> None:
    folder = write_jsonl([])
    (folder / "captions.jsonl").write_text(content)
    expected = [("captions.jsonl", "empty file", "it has no records")]
    assert left_out(folder) == left_out(folder / "captions.jsonl") == expected


def test_texts_that_are_null_or_blank_fall_through_and_lists_keep_the_others(
    write_jsonl: Callable[..., Path], texts: Texts
) -> None:
    records: list[dict[str, Any]] = [
        {"captions": ["a", None]},
        {"captions": [None, " "], "text": "b"},
        {"captions": [], "caption": None, "text": "['c', \"d's\"]"},
        {"caption": [{"raw": "e"}, {"raw": None}]},
        {"captions": [float("nan"), "f"]},
    ]
    named = [{"image": f"images/{number}.jpg", **r} for number, r in enumerate(records)]
    found = texts(write_jsonl(named))
    assert list(found.values()) == [["a", None][:1], ["b"], ["c", "d's"], ["e"], ["f"]]


def test_a_record_that_is_nested_too_deep_costs_itself(
    write_jsonl: Callable[..., Path], texts: Texts, left_out: LeftOut
) -> None:
    deep = '{"image": "images/0.jpg", "text": "a", "x": ' + "[" * 200 + "]" * 200 + "}"
    folder = write_jsonl([deep, {"image": "images/1.jpg", "text": "b"}])
    assert texts(folder) == {"1.jpg": ["b"]}
    told = ("captions.jsonl line 1", "bad record", "nested more than 100 deep")
    assert left_out(folder / "captions.jsonl") == [told]


def test_a_record_without_image_is_told_with_its_fields(
    write_jsonl: Callable[..., Path], left_out: LeftOut
) -> None:
    folder = write_jsonl([{"images": ["1.jpg"], "text": "a boat"}])
    ((_, _, detail),) = left_out(folder)
    assert detail.startswith("none of its fields (images, text) is image, file_name,")


def test_what_a_list_in_utf16_may_say_of_images_is_not_made_up(
    write_jsonl: Callable[..., Path], texts: Texts, left_out: LeftOut
) -> None:
    folder = write_jsonl([{"image": "images/0.jpg", "text": "grün"}])
    (folder / "images" / "1.jpg").write_bytes((folder / "images" / "0.jpg").read_bytes())
    (folder / "images" / "1.txt").write_text("one")
    content = (folder / "captions.jsonl").read_text(encoding="utf-8")
    (folder / "captions.jsonl").write_text(content, encoding="utf-16")
    told = ("captions.jsonl", "bad record", "looks like UTF-16: say --encoding utf-16")
    assert told in left_out(folder)
    assert [name for name, why, _ in left_out(folder) if "list that breaks off" in why] == [
        "images/0.jpg",
        "images/1.jpg",
    ]
    assert texts(folder / "captions.jsonl", encoding="utf-16") == {"0.jpg": ["grün"]}


@pytest.mark.parametrize("word", ["nan", "None", "NULL", "\\N"])
def test_how_tools_write_that_there_is_no_text_is_none(
    write_jsonl: Callable[..., Path], texts: Texts, word: str
) -> None:
    lines = [{"image": "images/0.jpg", "caption": word, "text": "a boat"}]
    lines.append({"image": "images/1.jpg", "caption": [word, "one of a list"]})
    assert texts(write_jsonl(lines)) == {"0.jpg": ["a boat"], "1.jpg": [word, "one of a list"]}


def test_neighbouring_lines_of_an_image_are_one_row(write_jsonl: Callable[..., Path]) -> None:
    texts = ["one", ["two", None], "three"]
    lines = [{"image": "images/0.jpg", "caption": text} for text in texts]
    source = write_jsonl([*lines, {"image": "images/1.jpg", "caption": "b", "n": 1}])
    report, rows = _import(source)
    assert [(row["id"], row["captions"]) for row in rows] == [
        ("images/0.jpg", ["one", "two", "three"]),
        ("images/1.jpg", ["b"]),
    ]
    assert (report.num_seen, report.num_used, report.skipped) == (4, 4, {})
