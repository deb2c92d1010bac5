"""Text of other people: compressed, and in other encodings."""

import bz2
import gzip
import io
import lzma
from pathlib import Path

import pytest

from openblip.runtime.errors import DataError
from openblip.sources import text_files
from openblip.sources.text_files import (
    FILE_DAMAGE,
    check_encoding,
    in_one_line,
    is_text,
    known_encoding,
    open_text,
    plain_name,
    short_lines,
)


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".BZ2", bz2.compress), (".xz", lzma.compress)]
)
def test_what_its_name_says_is_compressed_is_decompressed(
    tmp_path: Path, suffix: str, pack: object
) -> None:
    assert callable(pack)
    file = tmp_path / f"A.csv{suffix}"
    file.write_bytes(pack("é\r\nb\rc".encode()))
    assert plain_name(file) == "a.csv"
    with open_text(file, None) as stream:
        assert list(stream) == ["é\r\n", "b\r", "c"]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(FILE_DAMAGE), open_text(file, None) as stream:
        stream.read()


@pytest.mark.parametrize(
    ("encoding", "to_say"),
    [
        ("utf-16", "UTF-16: say --encoding utf-16"),
        ("utf-32", "UTF-32: say --encoding utf-32"),
        ("utf-16-le", "UTF-16-LE: say --encoding utf-16-le"),
        ("utf-16-be", "UTF-16-BE: say --encoding utf-16-be"),
    ],
)
def test_wide_encodings_are_named_and_read_where_they_are_said(
    tmp_path: Path, encoding: str, to_say: str
) -> None:
    file = tmp_path / "a.csv"
    file.write_text("image,caption\n0.jpg,été\n", encoding=encoding)
    with pytest.raises(DataError, match=f"a.csv looks like {to_say}"):
        check_encoding(file, None)
    with open_text(file, encoding) as stream:
        assert stream.read() == "image,caption\n0.jpg,été\n"


def test_zeros_behind_a_text_are_no_wide_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"image,caption\n0.jpg,a dog\n" + bytes(400))
    check_encoding(tmp_path / "a.csv", None)


@pytest.mark.parametrize("encoding", [None, "utf-8", "UTF8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, encoding: str | None) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfimage")
    with open_text(tmp_path / "a", encoding) as stream:
        assert stream.read() == "image"


def test_bytes_that_are_no_text_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("gut\ngrün\n雪\n".encode() + b"gr\xfcn\n")
    with open_text(tmp_path / "a", None) as stream:
        assert [is_text(line) for line in stream] == [True, True, True, False]


@pytest.mark.parametrize("name", ["cp9999", "base64", "", "utf-8\0"])
def test_an_encoding_that_is_not_known_is_named(name: str) -> None:
    with pytest.raises(DataError, match=r"unknown encoding .*cp1252"):
        known_encoding(name)


def test_a_long_line_is_cut_and_its_rest_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE", 4)
    lines = short_lines(io.StringIO("ab\n0123456789\ncd\n", newline=""))
    assert list(lines) == ["ab\n", "0123", "cd\n"]


def test_an_error_has_one_line_that_is_not_long() -> None:
    assert in_one_line(ValueError("a\n  b")) == "a b"
    assert in_one_line(EOFError()) == "EOFError"
    assert len(in_one_line(ValueError("x" * 999))) == 300
