"""Records in lines or in one array."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from openblip.sources.json_files import is_array, json_records, num_records

_RECORDS: list[dict[str, Any]] = [{"a": 1}, {"b": "é, ]"}, {"c": [{"d": None}]}]


def _read(file: Path, encoding: str | None = None) -> list[tuple[str, Any]]:
    """Names and records; read on from each, the rest is the same."""

    def shown(record: Any) -> Any:
        return str(record) if isinstance(record, ValueError) else record

    found = list(json_records(file, encoding, None))
    told = [(name, shown(record)) for name, _, record in found]
    for number, (_, cursor, _) in enumerate(found, 1):
        rest = json_records(file, encoding, cursor)
        assert [(name, shown(record)) for name, _, record in rest] == told[number:]
    return told


@pytest.mark.parametrize("encoding", [None, "utf-16", "cp1252"])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_array_is_read_as_its_records(
    tmp_path: Path, encoding: str | None, indent: int | None, suffix: str
) -> None:
    file = tmp_path / f"a.jsonl{suffix}"
    text = json.dumps(_RECORDS, indent=indent, ensure_ascii=False).encode(encoding or "utf-8")
    file.write_bytes(gzip.compress(text) if suffix else text)
    assert is_array(file, encoding)
    assert num_records(file, encoding) is None
    assert _read(file, encoding) == [
        (f"{file.name} record {number}", record) for number, record in enumerate(_RECORDS, 1)
    ]


@pytest.mark.parametrize("encoding", [None, "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_read_as_their_records(tmp_path: Path, encoding: str | None, end: str) -> None:
    file = tmp_path / "a.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for record in _RECORDS]
    lines.insert(1, "")
    file.write_bytes(end.join(lines).encode(encoding or "utf-8"))
    assert _read(file, encoding) == [
        (f"a.jsonl line {number}", record)
        for number, record in zip((1, 3, 4), _RECORDS, strict=True)
    ]


def test_a_damaged_record_of_an_array_costs_itself_and_damage_of_the_array_the_rest(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.jsonl"
    long = "9" * 5000
    file.write_text(f'[{{"a": NaN}}, 5, {{"b": 1, "b": 2}}, {{"n": {long}}}, {{"c": 3}}, {{"d": ')
    assert _read(file) == [
        ("a.jsonl record 1", {"a": None}),
        ("a.jsonl record 2", "no JSON object"),
        ("a.jsonl record 3", "the key 'b' stands twice in one object, with two values"),
        ("a.jsonl record 4", "a number of more than 4,300 digits"),
        ("a.jsonl record 5", {"c": 3}),
        ("a.jsonl", "cannot be read from here on: Expecting value: line 1 column 5060 (char 5059)"),
    ]
    file.write_text('[{"a": 1},')
    assert _read(file)[1:] == [("a.jsonl", "cannot be read from here on: the array breaks off")]
    file.write_text('[{"a": ' + "[" * 1_000_000)
    assert _read(file) == [("a.jsonl", "cannot be read from here on: nested too deep")]


def test_what_is_no_utf8_is_named_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": "gr\xfcn"}\n{"a": "good"}\n')
    remedy = "no text in UTF-8: name the encoding that it is in, as --encoding cp1252"
    assert _read(file) == [("a.jsonl line 1", remedy), ("a.jsonl line 2", {"a": "good"})]
    assert _read(file, "cp1252")[0] == ("a.jsonl line 1", {"a": "grün"})
    file.write_text('{"a": 1}\n', encoding="utf-16")
    assert _read(file) == [("a.jsonl", "looks like UTF-16: say --encoding utf-16")]


def test_a_file_that_breaks_off_is_named_after_its_records(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b"".join(b'{"a": %d}\n' % number for number in range(20_000)))
    file.write_bytes(whole[: len(whole) // 2])
    *records, (name, detail) = ((n, r) for n, _, r in json_records(file, None, None))
    assert len(records) > 100
    assert (name, str(detail)[:30]) == ("a.jsonl.gz", "cannot be read from here on: C")
