"""The texts and the record beside an image, as files of a folder or members of an archive."""

import codecs
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openblip.data.importers.source import first_texts, parse_object, texts_of, unfolded
from openblip.data.importers.splits import pop_split
from openblip.data.importers.text_files import codec
from openblip.data.lists import lines_of

TEXT_ENDINGS = ("txt", "caption", "text", "caption.txt", "captions.txt", "text.txt")
"""Endings of the file, or member of an archive, with the texts of an image beside it, each after
the image's name and a dot; of several the first counts."""
RECORD_FIELDS = ("caption", "captions", "text")
"""Fields of a record beside an image that hold its texts; the first that has any."""
MAX_TEXT_BYTES = 4 << 20
"""A longer text beside an image is none."""


def text_lines(data: bytes, encoding: str | None = None) -> list[str]:
    """The lines of a text file; LF, CRLF and CR end a line, and nothing else.

    Args:
        data: its content.
        encoding: of that; None for UTF-8.

    Raises:
        ValueError: it is of another encoding.
    """
    remedy = "save it as UTF-8, or name its encoding with --encoding"
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data
    if encoding is None and is_wide:
        raise ValueError(f"UTF-16, or no text at all; {remedy}")
    try:
        return lines_of(data.decode(codec(encoding)))
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise ValueError(f"no {encoding or 'UTF-8'} ({byte}); {remedy}") from error


def first_with_text(contents: Mapping[str, bytes], encoding: str | None) -> tuple[str, list[str]]:
    """The name and the lines of the first of several text files that is not blank.

    The first, and no lines, where all are.

    Args:
        contents: of each, by its name; those that count first.
        encoding: of them; None for UTF-8.

    Raises:
        ValueError: one before is of another encoding.
    """
    for name, content in contents.items():
        lines = [line for line in text_lines(content, encoding) if _bare(line)]
        if lines:
            return name, lines
    return next(iter(contents), ""), []


def others_say(
    texts: Mapping[str, bytes], counts: str, *, called: str = ""
) -> Iterator[tuple[str, str]]:
    """Which of several texts, or records, say something else than the one that counts, and so.

    Args:
        texts: contents by their names.
        counts: name of that one.
        called: begins its name where it is told.
    """
    for name, content in texts.items():
        said = content.removeprefix(codecs.BOM_UTF8).strip()
        if said and content.strip() != texts[counts].strip():
            yield name, f"says something else than {called}{counts}, which counts"


def with_record(
    lines: Sequence[str], record: bytes | None
) -> tuple[list[str], str | None, dict[str, Any]]:
    """Texts, split and metadata of an image that has a JSON object beside it.

    Texts are the lines of the text file, or the first of `RECORD_FIELDS` in the JSON that has any.
    A list `captions` in the JSON that begins with these is taken instead: formats with one text
    put the others there, and a text of several lines is whole there. What else is in these fields
    becomes metadata as all other fields do.

    Args:
        lines: of a text file, blank ones left out; none if there is no such file.
        record: the JSON in UTF-8; None if there is none.

    Raises:
        ValueError: it is no JSON object, or a field holds no texts.
    """
    meta = parse_object(record) if record is not None else {}
    split = pop_split(meta)
    captions = list(lines) or first_texts(meta, RECORD_FIELDS)[0]
    several = meta.get("captions")
    if isinstance(several, list) and (known := _texts(several)) and _begins(known, captions):
        captions = known
    for name in RECORD_FIELDS:
        told = _texts(meta.get(name))
        if told is not None and (not any(map(_bare, told)) or _begins(captions, told)):
            meta.pop(name, None)
    return captions, split, unfolded(meta)


def _texts(value: Any) -> list[str] | None:
    try:
        return texts_of(value)
    except ValueError:
        return None


def _begins(texts: Sequence[str], first: Sequence[str]) -> bool:
    """Whether one or more of the texts, or all, are `first` in lines, however these are spaced."""
    wanted, read = _lines(first), list[str]()
    for text in texts:
        read += _lines([text])
        if read == wanted:
            return bool(read)
    return False


def _lines(texts: Sequence[str]) -> list[str]:
    lines = (_bare(line) for text in texts for line in lines_of(text))
    return [line for line in lines if line]


def _bare(text: str) -> str:
    """A text without space at its ends, and without marks as editors put before texts."""
    return text.replace("\ufeff", "").strip()
