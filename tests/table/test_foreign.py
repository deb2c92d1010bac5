"""Lance tables of other programs, and damaged ones: one line names column, row or file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from openblip.cli import main
from openblip.runtime.errors import DataError
from openblip.table.columns import column_state
from openblip.table.rows import read_meta
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView

_ROWS = 4
_GOOD: dict[str, Any] = {
    "id": pa.array(["a", "b", "c", "d"]),
    "image": pa.array([b"x"] * _ROWS, pa.large_binary()),
    "image_uri": pa.array([None] * _ROWS, pa.string()),
    "width": pa.array([1] * _ROWS, pa.int32()),
    "height": pa.array([1] * _ROWS, pa.int32()),
    "captions": pa.array([["one"], ["two"], [], ["four"]]),
    "origin": pa.array(["web"] * _ROWS),
    "split": pa.array(["train"] * _ROWS),
    "meta": pa.array(["{}"] * _ROWS),
}
Foreign = Callable[..., str]


@pytest.fixture
def foreign(tmp_path: Path) -> Foreign:
    """The path of a table of somebody else with other columns; None leaves one out."""

    def write(**columns: Any) -> str:
        every = _GOOD | columns
        table = pa.table({name: of for name, of in every.items() if of is not None})
        lance.write_dataset(table, str(tmp_path / "t.lance"))
        return str(tmp_path / "t.lance")

    return write


def test_a_table_of_the_same_columns_is_as_good_as_ours(foreign: Foreign) -> None:
    table = PairTable.open(foreign(id=_GOOD["id"].cast(pa.large_string())))
    assert [batch["captions"].to_pylist() for batch in table.scan(["captions"])] == [
        [["one"], ["two"], [], ["four"]]
    ]


_NUMBERS = pa.array(range(_ROWS))
_WRONG_TYPES = {
    "integer ids": ({"id": _NUMBERS}, "the column id is int64, and must be string"),
    "no captions": ({"captions": None}, "no pair table: it has no column captions"),
    "captions as text": ({"captions": pa.array(["x"] * _ROWS)}, "must be list<string>"),
    "meta as object": ({"meta": pa.array([{"a": 1}] * _ROWS)}, "the column meta is struct"),
    "scores as numbers": ({"captions_itm": _NUMBERS}, "must be list<float>"),
    "image as numbers": ({"image": _NUMBERS}, "must be large_binary"),
    "width as text": ({"width": pa.array(["1"] * _ROWS)}, "must be int32"),
}
_WRONG_ROWS = {
    "null id": ({"id": pa.array(["a", None, "c", "d"])}, "row 1 of .* has no id"),
    "unknown split": (
        {"split": pa.array(["train", "train", "dev", "train"])},
        "row 2 of .*: split is 'dev', none of train, val, test",
    ),
    "null split": ({"split": pa.nulls(_ROWS, pa.string())}, "row [03] of .*: split is None"),
    "unknown origin": ({"origin": pa.array(["?"] * _ROWS)}, "row [03] of .*: origin is '\\?'"),
    "null caption": (
        {"captions": pa.array([["a"], [], ["b", None], []])},
        "row 2 of .*: a text in captions is null",
    ),
}


@pytest.mark.parametrize("case", _WRONG_TYPES)
def test_a_column_of_another_type_is_named_when_the_table_is_opened(
    case: str, foreign: Foreign
) -> None:
    columns, message = _WRONG_TYPES[case]
    with pytest.raises(DataError, match=message):
        PairTable.open(foreign(**columns))


@pytest.mark.parametrize("case", _WRONG_ROWS)
def test_a_value_that_no_pair_table_has_is_named_with_its_row(case: str, foreign: Foreign) -> None:
    columns, message = _WRONG_ROWS[case]
    table = PairTable.open(foreign(**columns))
    with pytest.raises(DataError, match=message):
        list(table.scan())
    with pytest.raises(DataError, match=message):
        table.take([3, 2, 1, 0])


@pytest.mark.parametrize("meta", ["[]", "3", "{", "NaN", "[" * 100_000])
def test_meta_must_be_an_object(meta: str) -> None:
    with pytest.raises(DataError, match="row 7: its meta is"):
        read_meta("7", meta)


def test_a_view_that_needs_meta_names_the_row_whose_meta_is_no_object(foreign: Foreign) -> None:
    scores = pa.array([[0.5], [0.5], [], [0.5]], pa.list_(pa.float32()))
    metas = pa.array(["{}", "[]", "{}", "{}"])
    table = PairTable.open(foreign(meta=metas, captions_itm=scores))
    with pytest.raises(DataError, match="row 1: its meta is '\\[\\]', no JSON object"):
        CaptionView(itm_of=("cc/web=0.5",)).resolve(table)


def test_an_export_names_the_row_whose_meta_is_no_object(
    foreign: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = foreign(meta=pa.array(["{}", "no JSON", "{}", "{}"]))
    assert main(["data", "export", table, str(tmp_path / "out"), "--format", "webdataset"]) == 1
    assert "its meta is no JSON" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    ["data show T", "data export T OUT", "data duplicates T", "capfilt select T", "caption T"],
)
def test_every_command_says_it_in_one_line(
    words: str, foreign: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"T": foreign(id=_NUMBERS), "OUT": str(tmp_path / "out")}
    assert main([given.get(word, word) for word in words.split()]) == 1
    *begins, told = capsys.readouterr().err.splitlines()
    assert all(line.endswith(": loading ...") for line in begins)
    assert "the column id is int64, and must be string in a pair table" in told


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [PairRow(id=f"r{n}", image=b"x" * 3000, captions=[f"text {n}"]) for n in range(50)]
    PairTable.create(tmp_path / "ours.lance", rows)
    return tmp_path / "ours.lance"


@pytest.mark.parametrize("how", ["gone", "cut", "empty", "zeros"])
def test_a_damaged_data_file_is_told_without_a_path_in_rust(
    how: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = (table / "data").iterdir()
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        damaged = {"cut": content[: len(content) // 2], "empty": b"", "zeros": bytes(len(content))}
        file.write_bytes(damaged[how])
    assert main(["data", "show", str(table)]) == 1
    told = capsys.readouterr().err
    assert "a file of this table is missing or damaged" in told
    assert told.count("\n") == 1
    assert ".rs:" not in told


@pytest.mark.parametrize("at", ["end", "place", "length"])
def test_the_damaged_file_of_a_version_is_named_before_lance_panics(
    at: str, table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (file,) = (table / "_versions").glob("*.manifest")
    content = bytearray(file.read_bytes())
    place = int.from_bytes(content[-16:-8], "little")
    where = {"end": len(content) - 2, "place": len(content) - 13, "length": place + 3}[at]
    content[where] ^= 0x40
    file.write_bytes(content)
    assert main(["data", "show", str(table)]) == 1
    told = capfd.readouterr().err
    assert f"_versions/{file.name} is damaged" in told
    assert told.count("\n") == 1


def test_what_json_has_no_form_for_is_shown_in_words(
    foreign: Foreign, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = pa.array([b"12345678"] * _ROWS, pa.binary(8))
    assert main(["data", "show", foreign(image_hash=hashes), "--rows", "1"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["image_hash"] == "8 bytes"


def test_a_table_is_shown_after_its_duplicates_were_flagged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from openblip.world import WorldConfig, create_world

    place = str(tmp_path / "w.lance")
    create_world(place, WorldConfig(web_rows=3, human_rows=1, val_rows=1, test_rows=1))
    assert main(["data", "duplicates", place]) == 0
    assert main(["data", "show", place]) == 0
    assert "8 bytes" in capsys.readouterr().out


@pytest.mark.parametrize("note", ["no JSON", "[]", "3"])
def test_notes_of_another_program_are_named(note: str, table: Path) -> None:
    opened = PairTable.open(table)
    opened.update_metadata({"capfilt": note})
    with pytest.raises(DataError, match="metadata under 'capfilt' is no JSON object"):
        column_state(opened, "capfilt")
