"""Lists of the names of images, by which a folder says their splits: `splits/test.txt`.

Such a list makes no row. It has the name of a split, and a name a line (with a number behind it, as
of a class), or the names in JSON; or it is JSON with a list for each split, or a table of images
and splits without texts. Its names are those of files in the folder, from the folder on or from one
in it. Where no file has that very name, one counts that differs in its suffix or in capitals. A
file that is called after splits (`splits.txt`) has a name and the word for a split a line. What is
called like a list and cannot be understood as one, of whatever kind it is, is told as that.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from openblip.runtime.errors import DataError
from openblip.sources.beside import bases_of
from openblip.sources.caption_lists import CAPTION_FIELDS
from openblip.sources.columns import PATH_COLUMNS
from openblip.sources.delimited import delimited_layout, delimited_records, unique_names
from openblip.sources.image_formats import known_by_name, loose_name
from openblip.sources.paths import Seen, walk
from openblip.sources.report import Reason
from openblip.sources.source import IMAGE_FIELDS, Found, SourceOptions, parse_json
from openblip.sources.splits import (
    has_validation,
    known_split,
    pop_split,
    says_split,
    splits_in_name,
)
from openblip.sources.text_files import (
    FILE_DAMAGE,
    in_one_line,
    lines_of,
    open_text,
    plain_name,
)

_JSON, _LINES, _TABLES = ".json", ".jsonl", (".csv", ".tsv")
_SUFFIXES = (".txt", ".lst", ".list", *_TABLES, _JSON, _LINES)
# Of data that nobody reads here as a list; a script or a page of such a name is none.
_OTHER_SUFFIXES = frozenset(
    (
        *(".yaml", ".yml", ".toml", ".xml", ".ini", ".xls", ".xlsx", ".ods", ".dat"),
        *(".pkl", ".pickle", ".mat", ".npy", ".npz", ".pt", ".pth", ".h5", ".hdf5", ".p", ""),
        *(".parquet", ".feather", ".arrow", ".db", ".sqlite", ".sqlite3", ".mdb", ".lmdb"),
    )
)
# What the name of a list has in it besides words for splits: `train_test_split`, `val_idx`.
_SPLIT = re.compile(r"splits?\d*")
_LIST_WORD = re.compile(
    r"(splits?|sets?|data|datasets?|images?|imgs?|files?|names?|lists?|ids?|idxs?|index|indexes|"
    r"indices|keys?|masks?|official|random|default|of|and|for)?\d*"
)
_PARTS = re.compile(r"[\W_]+")
# Of a longer one nobody means the names.
_MAX_BYTES = 256 << 20
_CELL_END = re.compile(r"[,;\t]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_Said = tuple[str, str]
"""A word for a split, and a name that is in it; an empty word where nothing says it."""


@dataclass
class _List:
    """A file with names."""

    path: str
    """Below the folder."""
    names: set[str] = field(default_factory=set)
    problem: str = ""
    """Why it cannot be read, or what it says nothing about."""
    is_about: bool = False
    """Its name, or what it has in it, says that it is about splits."""
    has_texts: bool = False
    """It says more of its images than their splits."""
    found: set[str] = field(default_factory=set)
    """Those of which images are there."""
    alike: set[str] = field(default_factory=set)
    """Those among them that differ from the names of these."""


@dataclass(frozen=True)
class _Name:
    """A name in a list."""

    text: str
    folders: tuple[str, ...]
    split: str
    list: _List

    def means(self, parts: tuple[str, ...]) -> bool:
        """Whether the file of these parts may be meant, whose own name is this one's.

        Of the folders the shorter path is the end of the other: lists begin somewhere else.
        """
        there, told = parts[:-1], self.folders
        shorter = min(len(there), len(told))
        return there[len(there) - shorter :] == told[len(told) - shorter :]


class SplitLists:
    """The lists in a folder, and which of its images they name."""

    def __init__(
        self, folder: Path, options: SourceOptions, is_other: Callable[[Seen], bool]
    ) -> None:
        """Reads nothing yet.

        Args:
            folder: with the lists.
            options: may name their encoding, and a folder of images besides.
            is_other: whether a file that is called as a list is read as something else.
        """
        self._folder, self._options, self._is_other = folder, options, is_other
        self._roots = list(dict.fromkeys((folder, options.image_root or folder)))
        self._lists: dict[str, _List] = {}

    def told(self, seen: Seen) -> tuple[Reason, str] | None:
        """What a report says of a list; None of what is none."""
        if (why := _why_unread(seen)) is not None:
            return Reason.SPLIT_LIST, f"{why}: {_REMEDY}"
        if not _may_be_list(seen):
            return None
        found, name = self.lists.get(seen.name), PurePosixPath(seen.parts[-1])
        if found is None or not (found.found or found.is_about or splits_in_name(name.stem)):
            return None
        if found.found:
            return Reason.OTHER_FILE, _detail(found)
        # Texts and documents of other kinds have such names, too; tables are made of names.
        is_list = found.is_about or name.suffix.lower() in _TABLES
        if not (found.names or found.problem or is_list):
            return None
        why = "it names no image here" if found.names or not found.is_about else _NOT_UNDERSTOOD
        return Reason.SPLIT_LIST, f"{found.problem or why}: {_REMEDY}"

    @cached_property
    def lists(self) -> dict[str, _List]:
        """The lists by their paths in the folder, with which of their names are there."""
        for _ in self.entries():
            pass
        return self._lists

    def entries(self) -> Iterator[Found]:
        """Yields an entry for each image, and each list that names it."""
        # Names first: they are fewer than the files of a folder may be.
        names = self._names()
        yield from self._matching(names, lambda own: (own, PurePosixPath(own).stem))
        alike: dict[str, list[_Name]] = defaultdict(list)
        for key, several in names.items():
            alike[loose_name(key)] += [one for one in several if one.text not in one.list.found]
        if any(alike.values()):
            yield from self._matching(alike, lambda own: (loose_name(own),), is_alike=True)

    def _matching(
        self,
        names: Mapping[str, list[_Name]],
        keys_of: Callable[[str], tuple[str, ...]],
        *,
        is_alike: bool = False,
    ) -> Iterator[Found]:
        for root in self._roots if names else ():
            for seen in walk(root):
                if seen.problem:
                    continue
                several = (name for key in keys_of(seen.parts[-1]) for name in names.get(key, ()))
                for name in several:
                    if name.means(seen.parts) and seen.name != name.list.path:
                        name.list.found.add(name.text)
                        if is_alike:
                            name.list.alike.add(name.text)
                        yield _entry(seen, name)

    def _names(self) -> Mapping[str, list[_Name]]:
        """What all lists say, by the last part of each name."""
        found: dict[str, list[_Name]] = defaultdict(list)
        for seen in walk(self._folder):
            if seen.problem or not _may_be_list(seen) or self._is_other(seen):
                continue
            told = _List(seen.name, is_about=_is_about_splits(seen.path.stem))
            try:
                said = self._read(seen.path, told)
            except (DataError, *FILE_DAMAGE) as error:
                said, told.problem = [], in_one_line(error).removeprefix(f"{seen.path} ")
            told.names = {name for _, name in said}
            self._lists[seen.name] = told
            for split, name in said:
                path = PurePosixPath(name.replace("\\", "/"))
                found[path.name].append(_Name(name, path.parts[:-1], split, told))
        return found

    def _read(self, file: Path, told: _List) -> list[_Said]:
        """The names in a file, each once in a split; none of another file.

        Args:
            file: that may be a list.
            told: to which it goes what else it is.

        Raises:
            DataError, FILE_DAMAGE: it cannot be read.
        """
        if file.stat().st_size > _MAX_BYTES:
            told.problem = "too large to be read as a list of names"
            return []
        suffix, named = PurePosixPath(plain_name(file)).suffix, splits_in_name(file.stem)
        said = self._in_table(file) if suffix in _TABLES else []
        if not said and suffix in _TABLES and not (named or told.is_about):
            return []
        if not said:
            with open_text(file, self._options.encoding) as stream:
                text = stream.read()
            if suffix in (_JSON, _LINES):
                document = _document(text, suffix)
                said, told.has_texts = _in_json(document), _has_texts(document)
                told.is_about |= _has_parts(document)
                # The words in it have their own names, whatever the file's is.
                named = [] if isinstance(document, dict) else named
            else:
                said = _in_text(text, told.is_about, named)
        both = ((split, name) for own, name in said for split in _splits(own, named))
        return list(dict.fromkeys(both))

    def _in_table(self, file: Path) -> list[_Said]:
        """The images of a table with what rows say of splits; none where no column says one."""
        layout = delimited_layout(file, self._options)
        lower = {name.lower(): name for name in reversed(unique_names(layout.names))}
        image = next((lower[name] for name in PATH_COLUMNS if name in lower), None)
        if image is None or not any(map(says_split, lower.values())):
            return []
        said = []
        for record in delimited_records(file, layout, image, self._options.encoding):
            if isinstance(record, Mapping):
                said.append((pop_split(dict(record)) or "", str(record[image])))
        return list(dict.fromkeys(said))


_REMEDY = (
    "if it says the split of images, these have come without it: mend it, or import the images of "
    "each split with --split"
)


_NOT_UNDERSTOOD = "no image with the word for its split was found in it"


def _detail(told: _List) -> str:
    missing, alike = len(told.names) - len(told.found), len(told.alike)
    told_of = f"; no image of {missing:,} of its {len(told.names):,} names is here"
    differ = f"; {alike:,} images have its names with another suffix or other capitals"
    texts = "; its texts are not taken: import it itself for them"
    return (
        "a list of images, whose split it says"
        f"{told_of if missing else ''}{differ if alike else ''}{texts if told.has_texts else ''}"
    )


def _may_be_list(seen: Seen) -> bool:
    name = seen.parts[-1] if seen.parts else ""
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(plain_name(Path(name))).suffix
    splits = splits_in_name(stem)
    # What has training data and others together says nothing that is not so without it.
    is_named = bool(splits) and (len(splits) == 1 or "train" not in map(known_split, splits))
    is_named |= _is_about_splits(stem)
    if suffix not in _SUFFIXES or not (is_named or suffix in (*_TABLES, _JSON)):
        return False
    return not _is_of_image(seen, bases_of(name))


def _is_of_image(seen: Seen, bases: Sequence[str]) -> bool:
    """Whether an image beside a file has one of these names, with its suffix or without."""
    images = [other for other in seen.beside if known_by_name(other)] if bases else []
    return not {*images, *(PurePosixPath(image).stem for image in images)}.isdisjoint(bases)


def _is_about_splits(stem: str) -> bool:
    """Whether a file is called after splits, as `split` and `train_test_split` are."""
    return _is_list_name(stem) and any(map(_SPLIT.fullmatch, _PARTS.split(stem.lower())))


def _is_list_name(stem: str) -> bool:
    """Whether a name has words for splits in it, not of training alone, and of lists only."""
    splits, rest = splits_in_name(stem), stem
    for word in splits:
        rest = rest.replace(word, " ")
    words = _PARTS.split(rest.lower())
    if not all(known_split(word) or _LIST_WORD.fullmatch(word) for word in words):
        return False
    return bool({*map(known_split, splits)} - {"train"}) or any(map(_SPLIT.fullmatch, words))


def _why_unread(seen: Seen) -> str | None:
    """Why nobody can look into a file that is called like a list; None of another one."""
    if not seen.parts:
        return None
    plain = PurePosixPath(plain_name(Path(seen.parts[-1])))
    is_other = plain.suffix in _OTHER_SUFFIXES
    if not (is_other or plain.suffix in _SUFFIXES) or not _is_list_name(plain.stem):
        return None
    if seen.problem:
        return seen.problem if seen.is_unreadable else None
    is_unread = is_other and not _is_of_image(seen, [PurePosixPath(seen.parts[-1]).stem])
    return "its kind is none in which lists of names are read" if is_unread else None


def _splits(own: str, named: list[str]) -> list[str]:
    """The splits of a name: its own, or those of the file.

    What is called after a test does not have training data: then it is both.
    """
    if not own:
        return named
    is_training = known_split(own) == "train" and len(named) == 1
    return [own, *(word for word in named if is_training and known_split(word) != "train")]


def _document(text: str, suffix: str) -> Any:
    if suffix == _JSON:
        return parse_json(text.encode("utf-8", "surrogateescape"))
    lines = (line.encode("utf-8", "surrogateescape") for line in lines_of(text) if line.strip())
    return [parse_json(line) for line in lines]


def _in_json(document: Any) -> list[_Said]:
    """The names in an array, in one for each split, or each with its split.

    Of an object that has a known split, other words stand for splits, too: they will be refused.
    """
    if not isinstance(document, dict):
        return _names_in(document)
    words = [value for value in document.values() if isinstance(value, str)]
    if len(words) == len(document) and any(map(known_split, words)):
        return [(split, name) for name, split in document.items()]
    if not any(map(known_split, document)):
        inner = [value for name, value in document.items() if _SPLIT.fullmatch(name.lower())]
        return [said for value in inner if isinstance(value, dict) for said in _in_json(value)] or [
            (split, name)
            for name, value in document.items()
            if isinstance(value, dict) and known_by_name(name) and (split := pop_split({**value}))
        ]
    # What is for training and validation says of none of them which.
    parts = {word: several for word, several in document.items() if not has_validation(word)}
    return [
        (split, name)
        for word, several in parts.items()
        for own, name in _names_in(several)
        for split in ((own, word) if own else (word,))
    ]


def _names_in(value: Any) -> list[_Said]:
    """The names in an array, of texts or of objects that have one, or of an object's fields."""
    if isinstance(value, dict):
        return [("", name) for name in value if known_by_name(name)]
    told = [
        (pop_split({**item}) or "", _named(item)) if isinstance(item, dict) else ("", item)
        for item in (value if isinstance(value, list) else [])
    ]
    return [(split, name) for split, name in told if isinstance(name, str) and name]


def _named(record: Mapping[str, object]) -> object:
    return next((record[name] for name in IMAGE_FIELDS if record.get(name)), None)


def _has_texts(document: Any) -> bool:
    """Whether a record in an array has a text, or one in the array for a split."""
    several = document.values() if isinstance(document, dict) else [document]
    arrays = [value for value in several if isinstance(value, list)]
    records = [record for value in arrays for record in value if isinstance(record, dict)]
    return any(record.get(name) for record in records for name in CAPTION_FIELDS)


def _has_parts(document: Any) -> bool:
    """Whether an object has a list, or objects, for a split."""
    told = document.items() if isinstance(document, dict) else ()
    parts = [value for word, value in told if known_split(word)]
    inner = [list(value.values()) if isinstance(value, dict) else [] for value in parts]
    return any(value and isinstance(value, list) for value in parts) or any(
        isinstance(value, list | dict) for several in inner for value in several
    )


def _in_text(text: str, is_about: bool, named: list[str]) -> list[_Said]:
    """The names in lines, with the words for splits behind them."""
    said = _with_words(text)
    known = [known_split(word) is not None for word, _ in said]
    have_suffixes = all(known_by_name(name) for _, name in said)
    if said and (any(known) if is_about else all(known) and have_suffixes):
        return said
    # Of several splits in its name a line has one, which it does not say.
    return [] if is_about and len(named) != 1 else [("", name) for name in _in_lines(text)]


def _with_words(text: str) -> list[_Said]:
    """A word and a name in each line, of which the first may be a header; none of another text."""
    lines = [line.strip() for line in lines_of(text)]
    told = [_with_word(line) for line in lines if line and not line.startswith("#")]
    if told and (told[0] is None or not (known_split(told[0][0]) or known_by_name(told[0][1]))):
        told = told[1:]
    said = [one for one in told if one is not None]
    return said if len(said) == len(told) else []


def _with_word(line: str) -> _Said | None:
    cells = [cell.strip().strip('"') for cell in _CELL_END.split(line)]
    if len(cells) == 1:
        # A name may have spaces in it.
        cells = line.rsplit(maxsplit=1)
        cells = cells if known_by_name(cells[0]) or len(line.split()) < 3 else line.split()
    name = next(filter(known_by_name, cells), cells[0])
    others = [cell for cell in cells if cell and cell != name]
    word = next(filter(known_split, reversed(others)), others[-1] if others else "")
    return (word, name) if word and name else None


def _in_lines(text: str) -> list[str]:
    """The name in each line, of which the first may be a header; none of another text."""
    lines = [line.strip() for line in lines_of(text)]
    names = [_name_in(line) for line in lines if line and not line.startswith("#")]
    return [] if None in names[1:] else [name for name in names if name is not None]


def _name_in(line: str) -> str | None:
    """The name of an image with a known suffix, or what stands alone or before numbers."""
    cells = [cell.strip().strip('"') for cell in _CELL_END.split(line)]
    if (image := next(filter(known_by_name, cells), None)) is not None:
        return image
    first, *others = line.split() if len(cells) == 1 else cells
    if first and all(map(_NUMBER.fullmatch, others)):
        return first
    # A name may have spaces in it.
    return cells[0] if len(cells) == 1 else None


def _entry(seen: Seen, name: _Name) -> Found:
    return Found(
        where=name.list.path,
        cursor={},
        image=seen.path,
        captions=(),
        split=name.split,
        is_name_only=True,
    )
