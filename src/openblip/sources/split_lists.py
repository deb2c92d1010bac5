"""Lists of the names of images, by which a folder says their splits: `splits/test.txt`.

Such a list makes no row. It has the name of a split, and a name a line (with a number behind it, as
of a class), or the names in JSON; or it is JSON with a list for each split, or a table of images
and splits without texts. Its names are those of files in the folder, from the folder on or from one
in it. Where no file has that very name, one counts that differs in its suffix or in capitals. A
file that is called like a list and cannot be understood as one is told as that.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from openblip.runtime.errors import DataError
from openblip.sources.beside import bases_of
from openblip.sources.columns import PATH_COLUMNS
from openblip.sources.delimited import delimited_layout, delimited_records, unique_names
from openblip.sources.image_formats import known_by_name, loose_name
from openblip.sources.paths import Seen, walk
from openblip.sources.report import Reason
from openblip.sources.source import IMAGE_FIELDS, Found, SourceOptions, parse_json
from openblip.sources.splits import known_split, pop_split, says_split, splits_in_name
from openblip.sources.text_files import (
    FILE_DAMAGE,
    in_one_line,
    lines_of,
    open_text,
    plain_name,
)

_JSON, _TABLES = ".json", (".csv", ".tsv")
_SUFFIXES = (".txt", ".lst", ".list", *_TABLES, _JSON)
# Of a longer one nobody means the names.
_MAX_BYTES = 256 << 20
_CELL_END = re.compile(r"[,;\t]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_Said = tuple[str, str]
"""A word for a split, and a name that is in it."""


@dataclass
class _List:
    """A file with names."""

    path: str
    """Below the folder."""
    names: set[str]
    problem: str = ""
    """Why it cannot be read."""
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
        if not _may_be_list(seen):
            return None
        found, name = self.lists.get(seen.name), PurePosixPath(seen.parts[-1])
        if found is None or not (found.found or splits_in_name(name.stem)):
            return None
        if found.found:
            return Reason.OTHER_FILE, _detail(found)
        # Texts and documents of other kinds have such names, too; tables are made of names.
        if not (found.names or found.problem or name.suffix.lower() in _TABLES):
            return None
        return Reason.SPLIT_LIST, f"{found.problem or 'it names no image here'}: {_REMEDY}"

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
            try:
                said, problem = self._read(seen.path), ""
            except (DataError, *FILE_DAMAGE) as error:
                said, problem = [], in_one_line(error).removeprefix(f"{seen.path} ")
            told = _List(seen.name, {name for _, name in said}, problem)
            self._lists[seen.name] = told
            for split, name in said:
                path = PurePosixPath(name.replace("\\", "/"))
                found[path.name].append(_Name(name, path.parts[:-1], split, told))
        return found

    def _read(self, file: Path) -> list[_Said]:
        """The names in a file, each once in a split; none of another file.

        Raises:
            DataError, FILE_DAMAGE: it cannot be read.
        """
        if file.stat().st_size > _MAX_BYTES:
            return []
        suffix = PurePosixPath(plain_name(file)).suffix
        said = self._in_table(file) if suffix in _TABLES else []
        if said or (suffix in _TABLES and not splits_in_name(file.stem)):
            return said
        with open_text(file, self._options.encoding) as stream:
            text = stream.read()
        told = _in_json(text) if suffix == _JSON else [("", name) for name in _in_lines(text)]
        named = splits_in_name(file.stem)
        said = [(split, name) for own, name in told for split in ([own] if own else named)]
        return list(dict.fromkeys(said))

    def _in_table(self, file: Path) -> list[_Said]:
        """The images of a table with the splits that rows say; none where no column says one."""
        layout = delimited_layout(file, self._options)
        lower = {name.lower(): name for name in reversed(unique_names(layout.names))}
        image = next((lower[name] for name in PATH_COLUMNS if name in lower), None)
        if image is None or not any(map(says_split, lower.values())):
            return []
        said = []
        for record in delimited_records(file, layout, image, self._options.encoding):
            if isinstance(record, Mapping) and (split := pop_split(dict(record))):
                said.append((split, str(record[image])))
        return list(dict.fromkeys(said))


_REMEDY = (
    "if it says the split of images, these have come without it: mend it, or import the images of "
    "each split with --split"
)


def _detail(told: _List) -> str:
    missing, alike = len(told.names) - len(told.found), len(told.alike)
    told_of = f"; no image of {missing:,} of its {len(told.names):,} names is here"
    differ = f"; {alike:,} images have its names with another suffix or other capitals"
    return (
        "a list of images, whose split it says"
        f"{told_of if missing else ''}{differ if alike else ''}"
    )


def _may_be_list(seen: Seen) -> bool:
    name = seen.parts[-1] if seen.parts else ""
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(plain_name(Path(name))).suffix
    splits = splits_in_name(stem)
    # What has training data and others together says nothing that is not so without it.
    is_named = bool(splits) and (len(splits) == 1 or "train" not in map(known_split, splits))
    if suffix not in _SUFFIXES or not (is_named or suffix in (*_TABLES, _JSON)):
        return False
    # The text of an image that is called so is none.
    bases = set(bases_of(name))
    images = [other for other in seen.beside if known_by_name(other)] if bases else []
    return bases.isdisjoint(images) and bases.isdisjoint(PurePosixPath(i).stem for i in images)


def _in_json(text: str) -> list[_Said]:
    """The names in an array, in one for each split, or each with its split.

    Of an object that has a known split, other words stand for splits, too: they will be refused.
    """
    document = parse_json(text.encode("utf-8", "surrogateescape"))
    if not isinstance(document, dict):
        return [("", name) for name in _names_in(document)]
    words = [value for value in document.values() if isinstance(value, str)]
    if len(words) == len(document) and any(map(known_split, words)):
        return [(split, name) for name, split in document.items()]
    if not any(map(known_split, document)):
        return []
    return [(split, name) for split, several in document.items() for name in _names_in(several)]


def _names_in(value: object) -> list[str]:
    """The names in an array, of texts or of objects that have one."""
    if not isinstance(value, list):
        return []
    told = [_named(item) if isinstance(item, dict) else item for item in value]
    return [name for name in told if isinstance(name, str) and name]


def _named(record: Mapping[str, object]) -> object:
    return next((record[name] for name in IMAGE_FIELDS if record.get(name)), None)


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
