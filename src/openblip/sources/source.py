"""What every kind of source yields, and the checks that all of them share.

Among these: names that point out of their folder, metadata that is no JSON, and lists of texts that
are written as one text, as in the cells of a CSV file.
"""

import ast
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from openblip.runtime.errors import DataError
from openblip.sources.report import Reason
from openblip.sources.text_files import known_encoding, or_none

Cursor = dict[str, int | str]
"""How far a source has been read; plain JSON, so that it can be stored with the table."""

TEXT_FIELDS = ("raw", "caption", "text", "sentence")
"""Fields of an object that stands for a text; the first there is."""
IMAGE_FIELDS = ("image", "file_name", "filename", "filepath", "path", "image_path", "img_path")
"""Fields of a record that name the file of its image; the first that has a text."""
META_FIELD = "meta"
"""Of a record: a JSON object in a text, as if each of its fields stood in the record."""
SOURCES_FIELD = "caption_sources"
"""Of a record that `openblip data export` wrote: who wrote each text (docs/data.md)."""
_URL = re.compile(r"^(https?|ftp)://", re.IGNORECASE)
# Of what becomes metadata; Python's own limit is not far above.
_MAX_DEPTH = 100
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
    follows; `openblip.sources.splits` has the order in which they are believed."""
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
    is_name_only: bool = False
    """It is the name of an image in the list of a split, and makes no row."""


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
    image: Path | None = None
    """The file that it is about, where a list names it."""
    image_name: str = ""
    """What a list calls the image, where that is no path that is followed."""
    breaks_off: bool = False
    """A list cannot be read from here on, and what its rest says of images nobody knows."""


Entry = Found | Refused


class PairSource(Protocol):
    """A place that pairs come from, read in one order from its begin or from a cursor on."""

    format: str

    def total(self) -> int | None:
        """Number of entries; None where counting them would mean reading everything."""

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields what comes after `cursor`, in bounded memory; damage is yielded, not raised."""

    def listed(self) -> Iterator[Entry]:
        """Yields what lists and tables say of image files, for the splits of these alone.

        Nothing of images that come as bytes, or that are in no list: those are there once.
        """


@dataclass(frozen=True)
class Shard:
    """A part of a source that is read without the others: a tar, a table, files of a folder."""

    name: str
    """For people: the file, or the first and the last."""
    cursor: Cursor
    """By which its source finds it."""
    size: int
    """Bytes of a file, or number of images; another size is another shard. 0 of one without work:
    the images that a list names are read with the list."""
    path: str = ""
    """The file, or the folder in which its first file is; empty where it is on no disk."""
    is_file: bool = False
    """Whether it is one file, and nothing else."""

    @classmethod
    def of_file(cls, name: str, cursor: Cursor, path: Path) -> Self:
        """One that is a file."""
        return cls(name, cursor, file_size(path), str(path), is_file=True)

    def is_here(self) -> bool:
        """Whether this machine has it, as far as it was there when it was listed."""
        return not (self.size and self.path) or os.path.lexists(self.path)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of what it is."""
        told = json.dumps([self.name, self.cursor, self.size], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@runtime_checkable
class DividedSource(PairSource, Protocol):
    """A source in shards, whose entries one after another are those of `entries`.

    It is sent to other processes once `shards` has been called: what is known of the whole of it,
    as which images its lists name, is then in it.
    """

    def shards(self) -> list[Shard]:
        """All shards in their order; fewer than two where it cannot be divided."""

    def entries_of(self, shard: Shard) -> Iterator[Entry]:
        """Yields the entries of one, each as `entries` does."""


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


class DamagedRecord(ValueError):  # noqa: N818 - says what it is
    """What is wrong with a record in which the name of an image could be read all the same.

    That image is not to be taken from elsewhere, without what the record says of it.
    """

    def __init__(self, reason: object, image: str = "", *, breaks_off: bool = False) -> None:
        """Takes what is wrong; the name is empty where the record has none that can be read.

        Args:
            reason: what is wrong.
            image: the name.
            breaks_off: it is the last of a list, which may have been longer.
        """
        super().__init__(str(reason))
        self.image, self.breaks_off = image, breaks_off


class UnsafePath(DataError):  # noqa: N818 - says what it is
    """A path in a source that points out of its folder."""

    name = ""
    """As the source has it."""


def is_address(name: str) -> bool:
    """Whether a name is a web address."""
    return _URL.match(name) is not None


def inside(root: Path, name: str) -> Path:
    """The path of a file that a source names, which must lie below `root`.

    Backslashes are those of a path of Windows where no file has them in its name. An absolute
    path counts if the file is below `root`, links followed.

    Raises:
        UnsafePath: the name is empty, an address, climbs above `root`, or lies elsewhere.
    """
    try:
        return _inside(root, name)
    except UnsafePath as error:
        error.name = name
        raise


def _inside(root: Path, name: str) -> Path:
    if is_address(name):
        raise UnsafePath(
            f"{name!r} is a web address: download the images first (img2dataset does that "
            "well) and import its output"
        )
    if "\0" in name:
        raise UnsafePath(f"{name!r} is not a path relative to {root}")
    if _ABSOLUTE.match(name):
        return _absolute_inside(root, name)
    parts: list[str] = []
    for part in re.split(r"[/\\]", name):
        if part == ".." and not parts:
            raise UnsafePath(f"{name!r} leaves {root}")
        if part == "..":
            parts.pop()
        elif part not in (".", ""):
            parts.append(part)
    if not parts:
        raise UnsafePath(f"{name!r} names no file")
    if "\\" in name and is_file(root / name):
        return root / name
    # Without `..`, so that no link to a folder takes it elsewhere.
    return root / "/".join(parts)


def _absolute_inside(root: Path, name: str) -> Path:
    refused = f"{name!r} does not lie below {root}: name its folder with --image-root"
    path = Path(name)
    try:
        is_below = path.is_absolute() and root.resolve() in path.resolve().parents
    except (OSError, RuntimeError, ValueError) as error:
        raise UnsafePath(refused) from error
    if not is_below:
        raise UnsafePath(refused)
    return path


def one_name(name: str) -> str:
    """The name of a file without parts that say nothing, so that each file has one name.

    `./a.jpg`, `b/../a.jpg` and `.//a.jpg` are `a.jpg`; a web address stays as it is.
    """
    # Most names are one already, and there are millions.
    if "//" not in name and "./" not in name and "/." not in name and name[-1:] != "/":
        return name
    is_path = "://" not in name and "\0" not in name
    return os.path.normpath(name) if is_path else name


def name_below(root: Path, name: str) -> str:
    """The one name of a file, from `root` on where it is an absolute path below that."""
    name = one_name(name)
    if not os.path.isabs(name):  # noqa: PTH117 - a path for each of many names takes long
        return name
    folder, path = os.path.normpath(root), Path(name)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else name


def is_file(path: Path) -> bool:
    """Whether a file is there; False too where the system refuses the path, as one too long."""
    return os.path.isfile(path)  # noqa: PTH113 - the method of `Path` raises there


def file_size(path: Path) -> int:
    """Bytes of a file; 0 where the system does not tell."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def texts_of(value: Any) -> list[str]:
    """The texts of a string or a list of strings; None, and what stands for it, gives none.

    A string that is written as a list of texts, in JSON or Python, is that list. An object in a
    list, as COCO's sentences are, stands for its `raw` (or another of `TEXT_FIELDS`).

    An object with a `text`, as `openblip caption` writes one, stands for that.

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
        # `nan` alone is how a table that became JSON says nothing; one among texts is a text.
        texts = texts_of(or_none(record.get(name)))
        if any(text.strip() for text in texts):
            return texts, name
    return [], None


def known_id(value: Any) -> int | str | None:
    """An id, a number or a text; None for what is none.

    Whole numbers that pandas has made floats, for a missing one among them, are whole again.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    is_id = isinstance(value, int | str) and not isinstance(value, bool) and value != ""
    return value if is_id else None


def id_text(value: Any) -> str | None:
    """What a field that holds an id, or another single value, says as a text; None for nothing."""
    if value in (None, "") or (isinstance(value, float) and math.isnan(value)):
        return None
    known = known_id(value)
    return str(value if known is None else known)


def _text(item: Any) -> list[str]:
    if item is None or (isinstance(item, float) and math.isnan(item)):
        return []
    if isinstance(item, str):
        return [item]
    if isinstance(item, Mapping):
        told = [item[name] for name in TEXT_FIELDS if name in item]
        found = next((value for value in told if value is not None), None)
        if isinstance(found, str | list) or (told and found is None):
            return texts_of(found)
    raise ValueError(f"captions must be a text or a list of texts, not {str(item)[:100]!r}")


_RECODE = "save it as UTF-8, or name its encoding with --encoding"


def in_utf8(text: bytes, encoding: str | None) -> bytes:
    """A JSON text in UTF-8, which it is mostly, whatever encoding a user names for other texts.

    Args:
        text: the bytes.
        encoding: of those that are no UTF-8; None leaves them.

    Raises:
        ValueError: they are not in that encoding either.
    """
    with suppress(UnicodeDecodeError):
        if encoding is None or (json.detect_encoding(text).startswith("utf-8") and text.decode()):
            return text
    try:
        return text.decode(encoding or "utf-8").encode()
    except UnicodeError as error:
        raise ValueError(f"no text in {encoding}; {_RECODE}") from error


def parse_json(text: bytes, shorten: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The JSON value in UTF-8 `text`; NaN and infinities become None.

    Args:
        text: the bytes.
        shorten: is given every object and returns what stands for it.

    Raises:
        ValueError: it is no JSON, of another encoding, nested too deep, or gives one key of an
            object two values.
    """

    def made(pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) < len(pairs):
            _refuse_two_values(pairs)
        return found if shorten is None else shorten(found)

    encoding = json.detect_encoding(text)
    if not encoding.startswith("utf-8"):
        raise ValueError(f"it is {encoding[:6].upper()}, not UTF-8; {_RECODE}")
    try:
        decoded = text.decode("utf-8-sig")
        return json.loads(decoded, parse_constant=lambda _: None, object_pairs_hook=made)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{text[error.start]:02x} at {error.start}"
        raise ValueError(f"no UTF-8 ({byte}); {_RECODE}") from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    except ValueError as error:
        # Python's own message tells how to switch its limit off.
        if isinstance(error, json.JSONDecodeError) or "digits" not in str(error):
            raise
        raise ValueError("a number of more than 4,300 digits") from error


def _refuse_two_values(pairs: Sequence[tuple[str, Any]]) -> None:
    first: dict[str, Any] = {}
    for name, value in pairs:
        if first.setdefault(name, value) != value:
            raise ValueError(f"the key {name[:100]!r} stands twice in one object, with two values")


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object in UTF-8 `text`; NaN and infinities become None.

    Raises:
        ValueError: it is no JSON, no object, or nested too deep.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def plain(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """`value` as JSON can hold it: bytes are dropped, times and the like become texts.

    Raises:
        ValueError: it is nested deeper than programs can be expected to read.
    """
    if depth == 0:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth - 1) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return None if isinstance(value, bytes) else str(value)


def unfolded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as JSON can hold it, with the fields of a JSON object in `META_FIELD`."""
    inner: dict[str, Any] = {}
    outer = dict(record)
    if isinstance(text := outer.get(META_FIELD), str):
        with suppress(ValueError):
            inner = parse_object(text.encode("utf-8", "surrogatepass"))
            del outer[META_FIELD]
    return {**plain(inner), **plain(outer)}


_MAX_CHARACTERS = 1 << 18
_QUOTED_TEXT = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None""", re.DOTALL)
_QUOTED_TEXTS = re.compile(rf"\[(?:(?:{_QUOTED_TEXT.pattern})[\s,]*)+\]", re.DOTALL)
# Between other brackets than a list's stands a caption more often than a list.
_TUPLE = re.compile(
    rf"\((?:{_QUOTED_TEXT.pattern})\s*,\s*(?:(?:{_QUOTED_TEXT.pattern})\s*,?\s*)*\)", re.DOTALL
)


def written_list(text: str) -> Any:
    """The list that a text is written as, in JSON, Python or as NumPy prints it; else the text.

    A tuple of texts, as pandas writes one, is such a list.

    Raises:
        ValueError: it is a list, and too long to be read.
    """
    bare = text.strip()
    is_tuple = _TUPLE.fullmatch(bare) is not None
    if not (is_tuple or (bare.startswith("[") and bare.endswith("]"))):
        return text
    if len(bare) > _MAX_CHARACTERS:
        raise ValueError(f"a list of texts of more than {_MAX_CHARACTERS} characters")
    try:
        return json.loads(bare, strict=False, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        pass
    with warnings.catch_warnings():
        # An unknown escape, as in 'a \d', is what it is.
        warnings.simplefilter("ignore")
        try:
            if is_tuple or _QUOTED_TEXTS.fullmatch(bare):
                # One by one: Python would join texts that have no comma between them.
                return [ast.literal_eval(found[0]) for found in _QUOTED_TEXT.finditer(bare)]
            return ast.literal_eval(bare)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return text
