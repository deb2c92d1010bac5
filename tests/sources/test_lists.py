"""Lists and vocabularies as people save them."""

import json
import warnings
from pathlib import Path

import pytest

from openblip.batches.tokenizer import TextTokenizer
from openblip.runtime.documents import read_text
from openblip.runtime.errors import DataError, OpenBlipWarning
from openblip.sources.text_files import distinct, read_list

BOM = "\ufeff"


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("mark", ["", BOM])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_mark_and_the_ends_of_lines_are_no_part_of_a_text(tmp_path: Path, mark, end) -> None:
    file = tmp_path / "answers.txt"
    file.write_bytes(end.join([f"{mark}yes", " no ", "", "two\u2028lines", ""]).encode())
    assert read_list(file, "answer") == ["yes", "no", "two\u2028lines"]


@pytest.mark.parametrize("mark", ["", BOM])
def test_json_may_have_a_mark(tmp_path: Path, mark) -> None:
    file = tmp_path / "answers.JSON"
    file.write_text(mark + json.dumps(["yes", "no"]), encoding="utf-8")
    assert read_list(file, "answer") == ["yes", "no"]


@pytest.mark.parametrize("name", ["answers.txt", "answers", "answers.json"])
def test_a_list_in_json_is_one_by_its_content(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('["yes", "no"]')
    assert read_list(tmp_path / name, "answer") == ["yes", "no"]


def test_json_lines_are_texts_in_json(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('"yes"\n"no"\n')
    assert read_list(tmp_path / "answers.jsonl", "answer") == ["yes", "no"]


def test_lines_that_are_json_by_chance_are_lines(tmp_path: Path) -> None:
    for text, expected in (("[UNK]\n[SEP]", ["[UNK]", "[SEP]"]), ("12", ["12"]), ('"a', ['"a'])):
        (tmp_path / "answers.txt").write_text(text)
        assert read_list(tmp_path / "answers.txt", "answer") == expected


@pytest.mark.parametrize("name", ["answers.csv", "answers.TSV", "answers.parquet"])
def test_a_table_is_no_list(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("yes,3\nno,2\n")
    with pytest.raises(DataError, match=r"a table, and no list: .* one a line"):
        read_list(tmp_path / name, "answer")


def test_repeated_ones_count_once_and_empty_ones_not_with_a_note(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(["yes", "", "no", " yes", "no", "  "]))
    told = r"answers\.json: answers: 2 empty, dropped; 2 repeated, counted once \(such as 'yes'\)"
    with pytest.warns(OpenBlipWarning, match=told):
        assert read_list(file, "answer") == ["yes", "no"]


@pytest.mark.parametrize("texts", [[], [""], [" ", "\t"]])
def test_where_nothing_is_left_it_is_said(texts) -> None:
    with pytest.raises(DataError, match="there is no answer"):
        distinct(texts, "answer")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_another_encoding_is_named_with_its_line(tmp_path: Path, encoding) -> None:
    file = tmp_path / "answers.txt"
    file.write_bytes("yes\nno\ncafé\n".encode(encoding))
    line = {"cp1252": 3, "utf-16": 1}[encoding]
    with pytest.raises(DataError, match=rf"answers\.txt, line {line}: .*byte 0x\w\w is not UTF-8"):
        read_text(file)


@pytest.mark.parametrize("text", ["{}", "3", '["yes", 3]', "[" * 100_000, '["yes"'])
def test_what_is_no_list_of_texts_is_refused(tmp_path: Path, text) -> None:
    file = tmp_path / "answers.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"answers\.json: the answers (are no list|cannot be read)"):
        read_list(file, "answer")


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_a_vocabulary_may_have_a_mark(tmp_path: Path, name) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    expected = TextTokenizer.from_file(tmp_path)
    if name == "tokenizer.json":
        expected.save(tmp_path)
    text = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(BOM + text, encoding="utf-8")
    found = TextTokenizer.from_file(tmp_path / name)
    assert found.special == expected.special
    assert found.pieces(["a dog"]) == expected.pieces(["a dog"])
