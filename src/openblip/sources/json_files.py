"""JSON files: the one value in a file, or its records, one a line or one array of all."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from openblip.runtime.errors import DataError
from openblip.sources.source import (
    IMAGE_FIELDS,
    Cursor,
    DamagedRecord,
    in_utf8,
    is_file,
    parse_json,
    parse_object,
)
from openblip.sources.text_files import (
    FILE_DAMAGE,
    MAX_LINE,
    check_encoding,
    in_one_line,
    is_packed,
    is_text,
    no_text,
    open_binary,
    open_text,
    plain_name,
    short_lines,
)

Shorten = Callable[[dict[str, Any]], Any]
"""Is given every object while a file is parsed, and returns what stands for it."""


def read_document(file: Path, shorten: Shorten, encoding: str | None = None) -> Any:
    """The JSON value of a file; the list of them where each line has one, as in NLVR2.

    Args:
        file: compressed or not.
        shorten: is given every object while the file is parsed.
        encoding: of a file that is no UTF-8.

    Raises:
        DataError: it is no regular file, or no JSON.
    """
    if not is_file(file):
        raise DataError(f"{file} is no regular file: give a JSON file on a disk")
    try:
        with open_binary(file) as stream:
            content = in_utf8(stream.read(), encoding)
        lines = content.splitlines()
        if not plain_name(file).endswith(".jsonl"):
            try:
                return parse_json(content, shorten)
            except ValueError:
                # A first line that is a whole object, and not the end of the file: other damage is
                # told as that of the file.
                if len(lines) < 2 or not lines[0].rstrip().endswith(b"}"):
                    raise
        return [parse_json(line, shorten) for line in lines if line.strip()]
    except json.JSONDecodeError as error:
        reason = (
            f"{error}; if it is cut off, copy it again" if file.stat().st_size else "it is empty"
        )
        raise DataError(f"{file} cannot be read as JSON: {reason}") from error
    except FILE_DAMAGE as error:
        raise DataError(f"{file} cannot be read as JSON: {str(error)[:200]}") from error


def first_line(file: Path, most: int = 1 << 20) -> Any:
    """The JSON value of the first line of a file that has one a line; None if there is none."""
    try:
        with open_binary(file) as lines:
            return parse_json(lines.readline(most))
    except FILE_DAMAGE:
        return None


Numbered = tuple[str, Cursor, dict[str, Any] | ValueError]
"""What to call a record, where to read on after it, and the record or what is wrong with it."""
_ARRAY = re.compile(r"\s*\[\s*(\{|\])")
_IMAGE_FIELD = re.compile(rb'"(?:%s)"\s*:\s*("(?:[^"\\]|\\.)+")' % "|".join(IMAGE_FIELDS).encode())
_GAP = re.compile(r"[\s,]*")
_HEAD = 1 << 16
END: Cursor = {"record": -1}
"""Behind the last record of a file."""


def json_records(file: Path, encoding: str | None, cursor: Cursor | None) -> Iterator[Numbered]:
    """Yields the records after a cursor; of a damaged array those before the damage.

    The last is what is wrong with the file, if it is damaged, or of another encoding.
    """
    if cursor == END:
        return
    try:
        check_encoding(file, encoding)
        records = _of_array if is_array(file, encoding) else _of_lines
        yield from records(file, encoding, cursor)
    except DataError as error:
        yield file.name, END, ValueError(str(error).removeprefix(f"{file} "))
    except FILE_DAMAGE as error:
        detail = ValueError(f"cannot be read from here on: {in_one_line(error)}")
        yield file.name, END, detail


def num_records(file: Path, encoding: str | None) -> int | None:
    """Number of lines; None for an array, and for what would have to be decompressed."""
    if is_packed(file) or is_array(file, encoding):
        return None
    with file.open("rb") as stream:
        return sum(1 for _ in _lines(stream))


def is_array(file: Path, encoding: str | None = None) -> bool:
    """Whether a file is one array of objects."""
    try:
        with open_text(file, encoding) as stream:
            return _ARRAY.match(stream.read(_HEAD)) is not None
    except FILE_DAMAGE:
        return False


def _of_lines(file: Path, encoding: str | None, cursor: Cursor | None) -> Iterator[Numbered]:
    at = cursor or {"offset": 0, "line": 0}
    number = int(at["line"])
    for line, offset in _from(file, encoding, int(at["offset"]), number):
        number += 1
        if line.strip():
            here: Cursor = {"offset": offset, "line": number}
            record = _object(line, encoding)
            if isinstance(record, ValueError) and not line.endswith((b"\n", b"\r")):
                # The file may be cut off there.
                image = record.image if isinstance(record, DamagedRecord) else ""
                record = DamagedRecord(record, image, breaks_off=True)
            yield f"{file.name} line {number}", here, record


def _from(file: Path, encoding: str | None, offset: int, done: int) -> Iterator[tuple[bytes, int]]:
    """Lines in UTF-8 after the first `done`, and where the next begins in the file."""
    if encoding is None:
        with open_binary(file) as stream:
            stream.seek(offset)
            for line in _lines(stream):
                yield line, stream.tell()
        return
    # What is not read as it lies cannot be read on from an offset.
    with open_text(file, encoding) as text:
        for recoded in islice(short_lines(text), done, None):
            yield recoded.encode(errors="surrogateescape"), 0


def _of_array(file: Path, encoding: str | None, cursor: Cursor | None) -> Iterator[Numbered]:
    done = int(cursor["record"]) if cursor else 0
    with open_text(file, encoding) as stream:
        text = stream.read()
    for number, found in enumerate(_elements(text), 1):
        if number > done:
            record = _object(found.encode(errors="surrogateescape"), encoding)
            yield f"{file.name} record {number}", {"record": number}, record


def _elements(array: str) -> Iterator[str]:
    """The texts of the elements of an array.

    Raises:
        ValueError: it is damaged here, or breaks off.
    """
    # It finds where they end, whatever they are; a long number, too.
    decoder = json.JSONDecoder(parse_int=lambda _: None, parse_constant=lambda _: None)
    at = _after_gap(array, array.index("[") + 1)
    while at < len(array) and array[at] != "]":
        try:
            _, end = decoder.raw_decode(array, at)
        except RecursionError as error:
            raise ValueError("nested too deep") from error
        yield array[at:end]
        at = _after_gap(array, end)
    if at >= len(array):
        raise ValueError("the array breaks off")


def _after_gap(text: str, at: int) -> int:
    gap = _GAP.match(text, at)
    assert gap is not None  # it may be empty
    return gap.end()


def _damaged(line: bytes, error: ValueError) -> ValueError:
    """The error, with the name of the image if the line has one that can be read."""
    found = _IMAGE_FIELD.search(line)
    with suppress(ValueError):
        name = json.loads(found[1]) if found else ""
        return DamagedRecord(error, name) if name else error
    return error


def _object(line: bytes, encoding: str | None) -> dict[str, Any] | ValueError:
    if len(line) >= MAX_LINE:
        return ValueError(f"a line of more than {MAX_LINE} bytes")
    if not line.isascii() and not is_text(line.decode("utf-8-sig", errors="surrogateescape")):
        return _damaged(line, no_text(encoding))
    try:
        return parse_object(line)
    except ValueError as error:
        return _damaged(line, error)


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines, each cut to `MAX_LINE` bytes; the rest of a longer one is passed over."""
    while line := stream.readline(MAX_LINE):
        rest = line
        while rest and len(rest) == MAX_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_LINE)
        yield line
