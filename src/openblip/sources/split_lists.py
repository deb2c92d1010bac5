"""Lists of the names of images, by which a folder says their splits: `splits/test.txt`.

Such a list makes no row. It has the name of a split, and a name a line (with a number behind it, as
of a class), or the names in JSON; or it is JSON with a list for each split. Its names are those of
files in the folder, from the folder on or from one in it, with or without their suffixes.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from openblip.runtime.errors import DataError
from openblip.sources.beside import bases_of
from openblip.sources.image_formats import known_by_name
from openblip.sources.paths import Seen, walk
from openblip.sources.source import Found, SourceOptions, parse_json
from openblip.sources.splits import known_split, splits_in_name
from openblip.sources.text_files import FILE_DAMAGE, lines_of, open_text, plain_name

_JSON = ".json"
_SUFFIXES = (".txt", ".lst", ".list", ".csv", ".tsv", _JSON)
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
    found: set[str] = field(default_factory=set)
    """Those of which images are there."""


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

    def detail(self, seen: Seen) -> str | None:
        """What a report says of a list; None of what is none."""
        if not _may_be_list(seen):
            return None
        is_called = bool(splits_in_name(PurePosixPath(seen.parts[-1]).stem))
        return self.details.get(seen.name, _NO_NAME if is_called else None)

    @cached_property
    def details(self) -> dict[str, str]:
        """For each list, by its path in the folder, what a report says of it."""
        lists: dict[str, _List] = {}
        for _, name in self._entries():
            name.list.found.add(name.text)
            lists[name.list.path] = name.list
        return {path: _detail(told) for path, told in lists.items()}

    def entries(self) -> Iterator[Found]:
        """Yields an entry for each image, and each list that names it."""
        return (entry for entry, _ in self._entries())

    def _entries(self) -> Iterator[tuple[Found, _Name]]:
        # Names first: they are fewer than the files of a folder may be.
        names = self._names()
        for root in self._roots if names else ():
            for seen in walk(root):
                if seen.problem:
                    continue
                own = seen.parts[-1]
                for name in (*names.get(own, ()), *names.get(PurePosixPath(own).stem, ())):
                    if name.means(seen.parts) and seen.name != name.list.path:
                        yield _entry(seen, name), name

    def _names(self) -> Mapping[str, list[_Name]]:
        """What all lists say, by the last part of each name."""
        found: dict[str, list[_Name]] = defaultdict(list)
        for seen in walk(self._folder):
            if seen.problem or not _may_be_list(seen) or self._is_other(seen):
                continue
            said = self._read(seen.path)
            told = _List(seen.name, {name for _, name in said})
            for split, name in said:
                path = PurePosixPath(name.replace("\\", "/"))
                found[path.name].append(_Name(name, path.parts[:-1], split, told))
        return found

    def _read(self, file: Path) -> list[_Said]:
        """The names in a file, each once in a split; none of another file."""
        try:
            if file.stat().st_size > _MAX_BYTES:
                return []
            with open_text(file, self._options.encoding) as stream:
                text = stream.read()
            is_json = plain_name(file).endswith(_JSON)
            told = _in_json(text) if is_json else [("", name) for name in _in_lines(text)]
        except (DataError, *FILE_DAMAGE):
            return []
        named = splits_in_name(file.stem)
        said = ((split, name) for own, name in told for split in ([own] if own else named))
        return list(dict.fromkeys(said))


_NO_NAME = (
    "called as the list of a split, and no line of it names an image that is here: if it is one, "
    "mend it, or import the images of each split with --split"
)


def _detail(told: _List) -> str:
    missing = len(told.names) - len(told.found)
    lacks = f"; no image of {missing:,} of its {len(told.names):,} names is here"
    return f"a list of images, whose split it says{lacks if missing else ''}"


def _may_be_list(seen: Seen) -> bool:
    name = seen.parts[-1] if seen.parts else ""
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(plain_name(Path(name))).suffix
    splits = splits_in_name(stem)
    # What has training data and others together says nothing that is not so without it.
    is_named = bool(splits) and (len(splits) == 1 or "train" not in map(known_split, splits))
    if suffix not in _SUFFIXES or not (is_named or suffix == _JSON):
        return False
    # The text of an image that is called so is none.
    bases = set(bases_of(name))
    images = [other for other in seen.beside if known_by_name(other)] if bases else []
    return bases.isdisjoint(images) and bases.isdisjoint(PurePosixPath(i).stem for i in images)


def _in_json(text: str) -> list[_Said]:
    """The names in an array, in one for each split, or each with its split."""
    document = parse_json(text.encode("utf-8", "surrogateescape"))
    if isinstance(document, dict) and all(isinstance(v, str) for v in document.values()):
        return [(split, name) for name, split in document.items() if known_split(split)]
    lists = document if isinstance(document, dict) else {"": document}
    return [
        (split, name)
        for split, names in lists.items()
        if isinstance(names, list) and (split == "" or known_split(split))
        for name in names
        if isinstance(name, str) and name
    ]


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
    is_name = bool(known_by_name(first)) or all(map(_NUMBER.fullmatch, others))
    return first if first and is_name else None


def _entry(seen: Seen, name: _Name) -> Found:
    return Found(
        where=name.list.path,
        cursor={},
        image=seen.path,
        captions=(),
        split=name.split,
        is_name_only=True,
    )
