"""Text files of other people: compressed, in whatever encoding, and lists of texts in them."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from openblip.runtime.documents import read_text
from openblip.runtime.errors import DataError, OpenBlipWarning

FILE_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)
"""What reading a damaged text file raises, compressed or not."""
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_LINES_SUFFIXES = ("ndjson", "jsonlines")
# A longer line is no record; reading it whole could exhaust the memory.
MAX_LINE = 16 << 20
# How tools write that there is nothing; no caption, path or id looks so.
_NULLS = frozenset(("", "nan", "null", "none", "<na>", "\\n"))
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def plain_name(path: Path) -> str:
    """The name of a file in lower case, without the suffix of a compression that is read.

    Other suffixes for JSON of a value a line become `.jsonl`.
    """
    name = (path.stem if is_packed(path) else path.name).lower()
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.jsonl" if suffix in _LINES_SUFFIXES else name


def is_packed(path: Path) -> bool:
    """Whether a file is compressed, by its name."""
    return path.suffix.lower() in _OPENERS


def open_binary(path: Path) -> BinaryIO:
    """The content of a file, decompressed where its name says that it is compressed."""
    opener = _OPENERS.get(path.suffix.lower())
    return path.open("rb") if opener is None else cast(BinaryIO, opener(path, "rb"))


def open_text(path: Path, encoding: str | None) -> TextIO:
    """The text of a file; bytes that are none come as halves of surrogates (`is_text` tells).

    Args:
        path: of the file.
        encoding: of its text; None for UTF-8.

    Raises:
        DataError: it looks like UTF-16 or UTF-32, and nobody said so.
        OSError: it cannot be read.
    """
    check_encoding(path, encoding)
    # Line ends stay as they are, as `csv` asks for.
    stream = open_binary(path)
    return io.TextIOWrapper(stream, codec(encoding), errors="surrogateescape", newline="")


def check_encoding(path: Path, encoding: str | None) -> None:
    """Names UTF-16 and UTF-32 where a file begins as such, and nobody said so.

    Raises:
        DataError: it does.
    """
    if encoding is not None:
        return
    with open_binary(path) as stream:
        # A file that was not written to its end may have zeros there, in any encoding.
        head = stream.read(512).rstrip(b"\0")
    found = next((name for mark, name in _BOMS if head.startswith(mark)), None)
    # Without a mark: every second byte of Latin letters is zero, first or second by the order.
    if found is None and head[1::2].count(0) > len(head) // 4:
        found = "utf-16-le"
    if found is None and head[::2].count(0) > len(head) // 4:
        found = "utf-16-be"
    if found is not None:
        raise DataError(f"{path} looks like {found.upper()}: say --encoding {found}")


def known_encoding(name: str) -> str:
    """The name, if Python knows a text encoding of that name.

    Raises:
        DataError: it does not.
    """
    try:
        "".encode(name)
    except (LookupError, ValueError) as error:
        raise DataError(
            f"unknown encoding {name!r}: utf-8, utf-16, cp1252, latin-1, gb18030 and others are "
            "known"
        ) from error
    return name


def codec(encoding: str | None) -> str:
    """What Python reads an encoding with: UTF-8, which None stands for, with a mark before it."""
    is_utf8 = encoding is None or codecs.lookup(encoding).name == "utf-8"
    return "utf-8-sig" if is_utf8 or encoding is None else encoding


def or_none(text: Any) -> Any:
    """What a cell says; None where it is empty, or one of the words for that."""
    return None if isinstance(text, str) and text.strip().lower() in _NULLS else text


def is_text(value: str) -> bool:
    """Whether every byte that `value` was read from is text in the encoding."""
    return value.isascii() or _ESCAPED_BYTE.search(value) is None


def no_text(encoding: str | None) -> ValueError:
    """What is wrong with bytes that are no text in an encoding; None for UTF-8."""
    found = f"no text in {encoding or 'UTF-8'}"
    return ValueError(f"{found}: name the encoding that it is in, as --encoding cp1252")


def short_lines(stream: TextIO) -> Iterator[str]:
    """Lines, each cut to `MAX_LINE` characters; the rest of a longer one is passed over."""
    while line := stream.readline(MAX_LINE):
        rest = line
        # What is read here ends at a line's end, or is as long as may be.
        while len(rest) == MAX_LINE and not rest.endswith(("\n", "\r")):
            rest = stream.readline(MAX_LINE)
        yield line


def in_one_line(error: BaseException) -> str:
    """What an error says, on one line that is not long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"


_TABLES = (".csv", ".tsv", ".parquet")
# Not what Python's `splitlines` takes for one besides, such as U+2028.
_LINE_END = re.compile(r"\r\n|\r|\n")


def lines_of(text: str) -> list[str]:
    """The lines of a text without their ends, which are LF, CRLF or CR."""
    return _LINE_END.split(text)


def read_list(file: Path, what: str) -> list[str]:
    """The texts in a file, each once: a list in JSON, or one a line; blank lines do not count.

    Args:
        file: JSON if its name ends in `.json`, or if it is a list in JSON; in a `.jsonl` each line
            is a text in JSON.
        what: each text is, for errors.

    Raises:
        DataError: it cannot be read, is a table, or holds none.

    Warns:
        OpenBlipWarning: some are repeated, or empty in JSON.
    """
    text, source, suffix = read_text(file), f"{file}: ", file.suffix.lower()
    if suffix in _TABLES:
        raise DataError(f"{file}: a table, and no list: give the {what}s one a line, as .txt")
    lines = [line for line in lines_of(text) if line.strip()]
    try:
        found = [json.loads(line) for line in lines] if suffix == ".jsonl" else json.loads(text)
    except (ValueError, RecursionError) as error:
        if suffix not in (".json", ".jsonl"):
            return distinct(lines, what, source)
        raise DataError(f"{file}: the {what}s cannot be read as JSON ({error})") from error
    if suffix not in (".json", ".jsonl") and not isinstance(found, list):
        return distinct(lines, what, source)
    if not isinstance(found, list):
        raise DataError(f"{file}: the {what}s are no list of texts")
    for number, item in enumerate(found, 1):
        if not isinstance(item, str):
            shown = str(item)[:60]
            raise DataError(f"{file}: the {what}s are no list of texts: number {number} is {shown}")
    return distinct(found, what, source)


def distinct(texts: Sequence[str], what: str, source: str = "") -> list[str]:
    """The texts without white space at their ends, each once; empty ones are dropped.

    Args:
        texts: any.
        what: each of them is.
        source: begins messages.

    Raises:
        DataError: none is left.

    Warns:
        OpenBlipWarning: some are repeated or empty.
    """
    counts = Counter(text.strip() for text in texts)
    kept = [text for text in counts if text]
    if not kept:
        raise DataError(f"{source}there is no {what} in it; give at least one that is not empty")
    note_dropped(what, source, counts[""], [text for text in kept if counts[text] > 1])
    return kept


def note_dropped(what: str, source: str, num_empty: int, repeated: Sequence[str]) -> None:
    """Warn of texts that do not count, if there are such; arguments as in `distinct`."""
    notes = [f"{num_empty} empty, dropped"] if num_empty else []
    if repeated:
        notes.append(f"{len(repeated)} repeated, counted once (such as {repeated[0]!r})")
    if notes:
        warnings.warn(f"{source}{what}s: {'; '.join(notes)}", OpenBlipWarning, stacklevel=3)
