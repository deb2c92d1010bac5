"""What every kind of source yields, and the checks that all of them share."""

import codecs
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from openblip.data.importers.text_files import known_encoding
from openblip.data.importers.written_lists import written_list
from openblip.data.importers.splits import pop_split
from openblip.data.lists import lines_of
from openblip.data.report import Reason
from openblip.errors import DataError

Cursor = dict[str, int | str]
"""How far a source has been read; plain JSON, so that it can be stored with the table."""

TEXT_ENDINGS = ("txt", "caption", "text", "caption.txt", "captions.txt", "text.txt")
"""Endings of the file, or member of an archive, with the texts of an image beside it, each after
the image's name and a dot; of several the first counts."""
RECORD_FIELDS = ("caption", "captions", "text")
"""Fields of a record beside an image that hold its texts; the first that has any."""
TEXT_FIELDS = ("raw", "caption", "text", "sentence")
"""Fields of an object that stands for a text; the first there is."""
MAX_TEXT_BYTES = 4 << 20
"""A longer text beside an image is none."""
_URL = re.compile(r"^(https?|ftp)://", re.IGNORECASE)
_ABSOLUTE = re.compile(r"^([/\\]|[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*://)")


@dataclass(frozen=True)
class Found:
    """An image with texts, as the source names it; its image is not yet checked."""

    where: str
    """File, and member or line: for reports."""
    cursor: Cursor
    """Reading on from here starts after this."""
    image: bytes | Path
    """Encoded bytes, or the file that holds them."""
    captions: Sequence[str]
    """Texts as they came."""
    key: str | None = None
    """Id within the source; None if it has none."""
    split: str | None = None
    """Split in the words of the record; None if it says nothing. What else may tell the split
    follows; `openblip.data.importers.splits` has the order in which they are believed."""
    place: Path | None = None
    """File or folder of the source that the entry comes from: its name may tell the split."""
    card_split: str | None = None
    """Split that the card of the dataset gives to that file."""
    image_folder: str = ""
    """Folder of the image as the source names it."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Everything else, plain JSON."""
    may_lack_captions: bool = False
    """The source says outright that there are none, so that this is no damage."""
    num_records: int = 1
    """How many files, members or records it was made of, as its source counts them."""
    remarks: tuple["Remark", ...] = ()
    """What of it is not taken over, though the row is."""


@dataclass(frozen=True)
class Remark:
    """A part of an entry that is not taken over, and why."""

    reason: Reason
    where: str
    detail: str


@dataclass(frozen=True)
class Refused:
    """Something in the source that cannot become a row."""

    where: str
    cursor: Cursor
    reason: Reason
    detail: str
    num_records: int = 1


Entry = Found | Refused


class PairSource(Protocol):
    """A place that pairs come from, read in one order from its begin or from a cursor on."""

    format: str

    def total(self) -> int | None:
        """Number of entries; None where counting them would mean reading everything."""

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields what comes after `cursor`, in bounded memory; damage is yielded, not raised."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What a user may say about a source that does not speak for itself."""

    image_root: Path | None = None
    """Folder below which paths in tables and JSON files lie."""
    image_column: str | None = None
    """Column of a table with image bytes or paths."""
    caption_column: str | None = None
    """Column of a table with a text, or a list of them."""
    id_column: str | None = None
    """Column of a table with unique ids."""
    columns: tuple[str, ...] | None = None
    """Names of the columns of CSV and TSV files without header, in their order."""
    encoding: str | None = None
    """Encoding of texts; None for UTF-8."""

    def __post_init__(self) -> None:
        if self.columns is not None:
            object.__setattr__(self, "columns", tuple(self.columns))
        if self.encoding is not None:
            known_encoding(self.encoding)
        if self.image_root is not None:
            # The import is the same one from wherever it is restarted.
            object.__setattr__(self, "image_root", Path(self.image_root).absolute())


class UnsafePath(DataError):  # noqa: N818 - says what it is
    """A path in a source that points out of its folder."""


def inside(root: Path, relative: str) -> Path:
    """The path of a file that a source names, which must lie below `root`.

    Raises:
        UnsafePath: the name is absolute, empty, an address, or climbs above `root`.
    """
    if _URL.match(relative):
        raise UnsafePath(
            f"{relative!r} is a web address: download the images first (img2dataset does that "
            "well) and import its output"
        )
    if "\0" in relative or _ABSOLUTE.match(relative):
        raise UnsafePath(f"{relative!r} is not a path below {root}: name its folder (image_root)")
    depth = 0
    for part in re.split(r"[/\\]", relative):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            raise UnsafePath(f"{relative!r} leaves {root}")
    if depth == 0:
        raise UnsafePath(f"{relative!r} names no file")
    return root / relative


def is_file(path: Path) -> bool:
    """Whether a file is there; False too where the system refuses the path, as one too long."""
    return os.path.isfile(path)  # noqa: PTH113 - the method of `Path` raises there


def placed(root: Path, name: str, prefix: str = "") -> tuple[Path, str]:
    """The path of an image that a record names, and its name below `root`, which is its id.

    A path of another system may have backslashes; an absolute one is taken if it lies below `root`.

    Args:
        root: the folder of the images.
        name: as the record has it.
        prefix: what stands in the place of `root` in paths of the machine that they come from.

    Raises:
        UnsafePath: the name is an address, empty, or points out of `root`.
    """
    if "\\" in name and "/" not in name and not is_file(root / name):
        name = name.replace("\\", "/")
    if prefix and name.startswith(prefix):
        name = name.removeprefix(prefix)
    elif name.startswith("/") and Path(name).is_relative_to(root):
        name = str(Path(name).relative_to(root))
    return inside(root, name), name


def foreign_prefix(root: Path, names: Sequence[str]) -> str:
    """What absolute paths begin with in the place of `root`: one for all, so that each is unique."""
    for name in names:
        parts = name.split("/")
        for cut in range(1, len(parts)) if name.startswith("/") and ".." not in parts else ():
            if is_file(root / "/".join(parts[cut:])):
                return "/".join(parts[:cut]) + "/"
    return ""


def texts_of(value: Any) -> list[str]:
    """The texts of a string or a list of strings; None, and what stands for it, gives none.

    A string that is written as a list of texts, in JSON or Python, is that list. An object in a
    list, as COCO's sentences are, stands for its `raw` (or another of `TEXT_FIELDS`).

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, str):
        value = written_list(value)
    texts = [_text(item) for item in (value if isinstance(value, list) else [value])]
    return [text for several in texts for text in several]


def first_texts(record: Mapping[str, Any], names: Sequence[str]) -> tuple[list[str], str | None]:
    """The texts of the first of several fields that has any, and which field that is.

    Raises:
        ValueError: a field before has something else than texts.
    """
    for name in names:
        if (texts := texts_of(record.get(name))) and any(text.strip() for text in texts):
            return texts, name
    return [], None


def id_text(value: Any) -> str | None:
    """The id that a field holds; None where it holds none.

    Whole numbers that pandas has made floats, for a missing one among them, are whole again.
    """
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _text(item: Any) -> list[str]:
    if item is None or (isinstance(item, float) and math.isnan(item)):
        return []
    if isinstance(item, str):
        return [item]
    if isinstance(item, Mapping):
        found = next((item[name] for name in TEXT_FIELDS if item.get(name) is not None), None)
        if isinstance(found, str | list):
            return texts_of(found)
    raise ValueError(f"captions must be a text or a list of texts, not {str(item)[:100]!r}")


def parse_json(text: bytes, shorten: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The JSON value in UTF-8 `text`; NaN and infinities become None.

    Args:
        text: the bytes.
        shorten: is given every object and returns what stands for it.

    Raises:
        ValueError: it is no JSON, or nested too deep.
    """
    try:
        return json.loads(
            text.decode("utf-8-sig"), parse_constant=lambda _: None, object_hook=shorten
        )
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object in UTF-8 `text`; NaN and infinities become None.

    Raises:
        ValueError: it is no JSON, no object, or nested too deep.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: bytes are dropped, times and the like become texts."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return None if isinstance(value, bytes) else str(value)


def text_lines(data: bytes) -> list[str]:
    """The lines of a text file in UTF-8; LF, CRLF and CR end a line, and nothing else.

    Raises:
        ValueError: it is of another encoding.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise ValueError("UTF-16, or no text at all; save it as UTF-8")
    try:
        return lines_of(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise ValueError(f"no UTF-8 ({byte}); save it as UTF-8") from error


def with_record(
    texts: list[str] | None, record: bytes | None
) -> tuple[list[str], str | None, dict[str, Any]]:
    """Texts, split and metadata of an image that has a JSON object beside it.

    Texts are those of the text file, or the first of `RECORD_FIELDS` in the JSON that has any. A
    list `captions` in the JSON that begins with these is taken instead: formats with one text put
    the others there. What else is in these fields becomes metadata as all other fields do.

    Args:
        texts: from a text file; None if there is none.
        record: the JSON in UTF-8; None if there is none.

    Raises:
        ValueError: it is no JSON object, or a field holds no texts.
    """
    meta = parse_object(record) if record is not None else {}
    split = pop_split(meta)
    captions = [text for text in texts or [] if text.strip()]
    for name in RECORD_FIELDS:
        told = meta.get(name)
        if texts is None and not captions:
            captions = texts_of(told)
        if told is None or _lines(told) == [text.strip() for text in captions]:
            meta.pop(name, None)
    several = meta.get("captions")
    if isinstance(several, list) and captions and several[: len(captions)] == captions:
        captions = texts_of(meta.pop("captions"))
    return captions, split, plain(meta)


def _lines(told: Any) -> list[str] | None:
    """The texts of a field as the lines of a text file would be; None if they are no texts."""
    values = [told] if isinstance(told, str) else told
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        return None
    lines = [line for text in values for line in lines_of(text)]
    return [line.strip() for line in lines if line.strip()]
