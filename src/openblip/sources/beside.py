"""The texts and the record beside an image, as files of a folder or members of an archive."""

import codecs
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openblip.sources.image_formats import IMAGE_SUFFIXES, is_image_file, loose_name
from openblip.sources.source import first_texts, in_utf8, parse_object, texts_of, unfolded
from openblip.sources.splits import pop_split
from openblip.sources.text_files import codec, lines_of
from openblip.table.rows import IdSet

TEXT_ENDINGS = ("txt", "caption", "text", "caption.txt", "captions.txt", "text.txt")

_BESIDE = (*TEXT_ENDINGS, "json")
# The longest first: of `a.caption.txt` more belongs to the ending than `.txt`.
_BY_LENGTH = sorted(_BESIDE, key=len, reverse=True)


def text_ending(name: str) -> str | None:
    """Which of the endings of texts and records a name has, the longest; None if it has none."""
    lower = name.lower()
    return next((ending for ending in _BY_LENGTH if lower.endswith(f".{ending}")), None)


class MissingImages:
    """Names in lists that lead to no image, and which images these may mean all the same.

    One is like another if the parts of the shorter name, loosely read, are the last of the longer:
    `images/0.JPG` and `0.jpg`. Hashes are kept, since a list may have millions.
    """

    def __init__(self) -> None:
        self._whole, self._ends = IdSet(), IdSet()

    def add(self, name: str) -> None:
        """Notes a name, as a list has it."""
        ends = _ends(re.split(r"[/\\]", name))
        self._whole.add(next(ends, ""))
        for end in ends:
            self._ends.add(end)

    def has_like(self, parts: Sequence[str]) -> bool:
        """Whether one of them is like the name of an image below the source's folder."""
        ends = list(_ends(parts))
        is_shorter = any(end in self._whole for end in ends)
        return is_shorter or ends[0] in self._ends


def _ends(parts: Sequence[str]) -> Iterator[str]:
    """A name loosely read, and what remains of it without the first folder, the first two, ..."""
    loose = [loose_name(part) for part in parts if part not in ("", ".", "..")]
    return ("/".join(loose[start:]) for start in range(len(loose)))


@dataclass(frozen=True)
class Clash:
    """Images with texts between them that have to be of one of them."""

    images: list[str]
    texts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        texts, images = " and ".join(self.texts), " and ".join(self.images)
        return f"{images} have {texts} between them: give each image a text of its own"


class Images:
    """The images among the files of one folder, each with what lies beside it.

    Attributes:
        names: of the images.
        beside: for each the names of its texts and records, those that count first.
        clashes: for images whose texts may be those of another one: with which.
        belonging: all names of texts and records that stand in one of these.
        unreadable: files into which one cannot look, and why.
    """

    def __init__(self, folder: Path, files: Set[str]) -> None:
        """Looks into the files whose suffixes say nothing.

        Args:
            folder: the folder.
            files: names in it.
        """
        self.unreadable: dict[str, str] = {}
        self.names = {name for name in files if self._is_image(folder, name)}
        self.beside: dict[str, list[str]] = defaultdict(list)
        self.clashes: dict[str, Clash] = {}
        self._of_stem = _by_stem(self.names)
        texts = sorted((name for name in files if text_ending(name)), key=_preference)
        self._attach([text for text in texts if text not in self.names])
        self.belonging = {text for own in self.beside.values() for text in own}
        self.belonging |= {text for clash in self.clashes.values() for text in clash.texts}

    def key(self, name: str) -> str:
        """The name without its suffix, if no other image has the same."""
        stem = os.path.splitext(name)[0]  # noqa: PTH122 - a name
        return stem if len(self._of_stem[stem]) == 1 else name

    def _is_image(self, folder: Path, name: str) -> bool:
        try:
            return text_ending(name) is None and is_image_file(folder / name)
        except OSError as error:
            self.unreadable[name] = f"cannot be read ({error.strerror})"
            return False

    def _attach(self, texts: list[str]) -> None:
        # Those of a full name (`a.jpg.txt`) go first: they tell whose one like `a.txt` can still
        # be.
        shared = []
        for text in texts:
            if (named := next((b for b in bases_of(text) if b in self.names), None)) is not None:
                self.beside[named].append(text)
            elif owners := next((o for b in bases_of(text) if (o := self._likely(b))), None):
                shared.append((text, owners))
        for text, owners in shared:
            # A text of its full name is an image's own, so that this one is of the others.
            without = [name for name in owners if not self.beside.get(name)]
            if len(owners) == 1:
                self.beside[owners[0]].append(text)
            elif without:
                clash = self.clashes.setdefault(without[0], Clash(without))
                clash.texts.append(text)
                self.clashes |= dict.fromkeys(without, clash)

    def _likely(self, stem: str) -> list[str]:
        """The images of that name but for the suffix; known suffixes count before others."""
        images = self._of_stem.get(stem, [])
        known = [name for name in images if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        return sorted(known or images)


def _by_stem(names: Set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[os.path.splitext(name)[0]].append(name)  # noqa: PTH122 - a name
    return found


def bases_of(text: str) -> list[str]:
    """What an image may be called that has this text, the shortest first."""
    lower = text.lower()
    return [text[: -len(e) - 1] for e in _BY_LENGTH if lower.endswith(f".{e}")]


def _preference(text: str) -> tuple[int, str]:
    ending = text_ending(text)
    return (_BESIDE.index(ending) if ending else len(_BESIDE), text)


"""Endings of the file, or member of an archive, with the texts of an image beside it, each after
the image's name and a dot; of several the first counts."""
# Fields of a record beside an image that hold its texts; the first that has any.
_RECORD_FIELDS = ("caption", "captions", "text")
MAX_TEXT_BYTES = 4 << 20
"""A longer text beside an image is none."""


def _text_lines(data: bytes, encoding: str | None = None) -> list[str]:
    """The lines of a text file; LF, CRLF and CR end a line, and nothing else.

    Args:
        data: its content.
        encoding: of that; None for UTF-8.

    Raises:
        ValueError: it is of another encoding.
    """
    remedy = "save it as UTF-8, or name its encoding with --encoding"
    # Latin letters in UTF-16 have a zero byte each, also where no mark begins the text.
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
        lines = [line for line in _text_lines(content, encoding) if _bare(line)]
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
    lines: Sequence[str], record: bytes | None, encoding: str | None = None
) -> tuple[list[str], str | None, dict[str, Any]]:
    """Texts, split and metadata of an image that has a JSON object beside it.

    Texts are the lines of the text file, or the first of `_RECORD_FIELDS` in the JSON that has any.
    A list `captions` in the JSON that begins with these is taken instead: formats with one text
    put the others there, and a text of several lines is whole there. What else is in these fields
    becomes metadata as all other fields do.

    Args:
        lines: of a text file, blank ones left out; none if there is no such file.
        record: the JSON; None if there is none.
        encoding: of JSON that is no UTF-8.

    Raises:
        ValueError: it is no JSON object, or a field holds no texts.
    """
    meta = parse_object(in_utf8(record, encoding)) if record is not None else {}
    split = pop_split(meta)
    captions = list(lines) or first_texts(meta, _RECORD_FIELDS)[0]
    several = meta.get("captions")
    if isinstance(several, list) and (known := _texts(several)) and _begins(known, captions):
        captions = known
    for name in _RECORD_FIELDS:
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
