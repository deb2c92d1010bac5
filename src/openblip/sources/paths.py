"""The paths that a user means: a folder with all below it, a pattern, a range."""

import math
import os
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path, PurePath

from openblip.runtime.errors import DataError
from openblip.runtime.locks import lock_name
from openblip.table.storage import is_object_address

INDEX_FOLDER = ".openblip"
"""At the top of a folder of images, what `openblip index` keeps there: no part of these."""
TABLE_MARK = "_versions"
"""A folder in every folder that is a pair table."""
# Of Windows, of archives made on macOS, of Synology's disks; and macOS's icon of a folder, whose
# name ends in a carriage return.
_OF_SYSTEMS = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r"))


SETTINGS_SUFFIX = ".settings.json"
"""Behind the name of a file that `openblip caption` writes: how it goes on with it."""
PARTIAL_SUFFIX = ".partial"
"""Behind its name while not all of it is there."""


def is_table(place: str) -> bool:
    """Whether a place is a pair table, or an address, which can be nothing else."""
    return is_object_address(place) or (Path(place) / TABLE_MARK).is_dir()


@dataclass(frozen=True)
class Seen:
    """A file, or something that is not looked into and why."""

    path: Path
    parts: tuple[str, ...]
    """Names of the folders below the one that was walked, and of the file."""
    beside: Set[str]
    """Names of all visible files in its folder; the same object for all of a folder."""
    problem: str = ""
    """Why it cannot be read, or is not looked into; empty for a file."""
    is_hidden: bool = False
    """A hidden file or folder, or one that a system leaves behind."""
    is_unreadable: bool = False
    """The system refuses it, or it is neither file nor folder."""

    @property
    def name(self) -> str:
        """The parts with slashes between."""
        return "/".join(self.parts)


def is_of_output(seen: Seen) -> bool:
    """Whether a file that is no image belongs to what `openblip caption` writes into its folder.

    It is a file with its settings beside it, these, what is not finished of it, or its lock.
    """
    name = seen.parts[-1]
    if seen.is_hidden:
        settings = (other for other in seen.beside if other.endswith(SETTINGS_SUFFIX))
        locks = (lock_name(other.removesuffix(SETTINGS_SUFFIX)) for other in settings)
        return name.endswith(".lock") and name in locks
    written = name.removesuffix(SETTINGS_SUFFIX).removesuffix(PARTIAL_SUFFIX)
    has_settings = f"{written}{SETTINGS_SUFFIX}" in seen.beside
    return has_settings and not {written, f"{written}{PARTIAL_SUFFIX}"}.isdisjoint(seen.beside)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or left behind by a system."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


@dataclass(frozen=True)
class Span:
    """A run of what `walk` yields."""

    after: tuple[str, ...] | None
    """Parts of the last before it; None for the beginning."""
    until: tuple[str, ...]
    """Parts of its last."""
    prunes: bool = True
    """Whether folders that have nothing of it are passed over, and not known to links."""

    def __contains__(self, parts: tuple[str, ...]) -> bool:
        return (self.after is None or parts > self.after) and parts <= self.until

    def reaches_into(self, folder: tuple[str, ...]) -> bool:
        """Whether anything in a folder may be in it."""
        is_before = self.after is not None and folder < self.after[: len(folder)]
        return not self.prunes or (not is_before and folder <= self.until)


def walk(folder: Path, span: Span | None = None) -> Iterator[Seen]:
    """Yields all files in a folder and the folders in it, in the order of their path parts.

    What is hidden, pair tables and what the system refuses are yielded as one thing and not looked
    into. A link to a folder is followed where it leads out of `folder`, and each such folder once,
    so that circles end. The names of a folder and of those above it are held at a time.

    Args:
        folder: any.
        span: only what is in it; None for everything.
    """
    return _Walk(folder, span).run()


class _Walk:
    def __init__(self, folder: Path, span: Span | None) -> None:
        self._folder, self._real, self._span = folder, os.path.realpath(folder), span
        # Device and inode, which are the same by whatever link a folder is reached.
        self._known: set[tuple[int, int]] = set()

    def run(self) -> Iterator[Seen]:
        # Listings that are under way, not recursion: each file would pass through all folders above
        # it.
        stack = [self._of_folder(self._folder, ())]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
            elif not isinstance(found, Seen):
                if self._span is None or self._span.reaches_into(found[1]):
                    stack.append(self._of_folder(*found))
            elif self._span is None or found.parts in self._span:
                yield found

    def _of_folder(
        self, folder: Path, parts: tuple[str, ...]
    ) -> Iterator[Seen | tuple[Path, tuple[str, ...]]]:
        """What is in one folder; folders that are to be walked come as their path and parts."""
        nothing: Set[str] = frozenset()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in self._known:
                yield Seen(folder, parts, nothing, "a folder that was read by another link")
                return
            self._known.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                # A cursor compares path parts (`FolderSource`), so that this order must not change.
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            why = f"a folder that cannot be read ({error.strerror})"
            yield Seen(folder, parts, nothing, why, is_unreadable=True)
            return
        if any(entry.name == TABLE_MARK for entry in found):
            yield Seen(folder, parts, nothing, "a pair table: name it itself")
            return
        visible = [(entry, _kind(entry)) for entry in found if not is_hidden(entry.name)]
        kinds = {entry.name: kind for entry, kind in visible}
        beside = frozenset(name for name, kind in kinds.items() if kind == "file")
        for entry in found:
            place, path = (*parts, entry.name), folder / entry.name
            kind = kinds.get(entry.name, "")
            if not kind:
                yield Seen(path, place, beside, "hidden", is_hidden=True)
            elif kind == "file":
                yield Seen(path, place, beside)
            elif kind != "folder":
                yield Seen(path, place, beside, kind, is_unreadable=True)
            elif entry.is_symlink() and (reason := self._why_not_followed(path)):
                yield Seen(path, place, beside, reason)
            else:
                yield path, place

    def _why_not_followed(self, link: Path) -> str | None:
        target = os.path.realpath(link)
        if os.path.commonpath([target, self._real]) == target:
            return "a link to a folder that it lies in"
        if os.path.commonpath([target, self._real]) != self._real:
            return None
        # What is hidden is not read where it lies.
        is_seen = not any(map(is_hidden, Path(target).relative_to(self._real).parts))
        return "a link to a folder that is read where it lies" if is_seen else None


def _kind(entry: os.DirEntry[str]) -> str:
    """`file`, `folder`, or why it is neither."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        # Of a link to nothing both say no without an error; this one raises it.
        entry.stat()
    except OSError as error:
        is_lost = entry.is_symlink() and isinstance(error, FileNotFoundError)
        return "a link to nothing" if is_lost else f"cannot be read ({error.strerror})"
    return "a pipe, a socket or a device"


_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{},/]*(?:,[^{},/]*)+)\}")
_MARKS = re.compile(r"[*?\[]")
# Each is looked for on the disk; so many are a slip in a range.
_MAX_PATHS = 1_000_000


def matching_paths(source: str) -> list[Path]:
    """The path of this name, or else those of a pattern or a range; none if none is there.

    Args:
        source: a path, a pattern such as `shards/*.tar`, or one with ranges or words in braces,
            such as `shards/{00000..00041}.tar` or `{train,val}-{0..9}.parquet`.

    Raises:
        DataError: a path that is named by braces does not exist, or they name too many.
    """
    # First, since a name may itself have brackets or braces in it.
    if Path(source).exists():
        return [Path(source)]
    if not _BRACES.search(source):
        return _globbed(source) if has_marks(source) else []
    named = {
        name: _globbed(name) if has_marks(name) else _there(name) for name in spelt_out(source)
    }
    if missing := [name for name, paths in named.items() if not paths]:
        raise DataError(f"{source}: {missing[0]} does not exist ({len(missing)} are missing)")
    # Two choices that have marks in them may meet the same file.
    return list(dict.fromkeys(path for paths in named.values() for path in paths))


def has_marks(source: str) -> bool:
    """Whether a path is a pattern, as `shards/*.tar` is."""
    return _MARKS.search(source) is not None


def spelt_out(source: str) -> list[str]:
    """What the ranges and words in braces of a path mean: itself, where it has none.

    Raises:
        DataError: they name too many.
    """
    if math.prod(map(_num_choices, _BRACES.finditer(source))) > _MAX_PATHS:
        raise DataError(f"{source} names more than {_MAX_PATHS:,} files: give it in parts")
    return list(_each(source))


def _each(source: str) -> Iterator[str]:
    """What a source means, with one choice of each of its braces after the other."""
    braces = _BRACES.search(source)
    if braces is None:
        yield source
        return
    before, after = source[: braces.start()], source[braces.end() :]
    for choice in _choices(braces):
        for rest in _each(after):
            yield f"{before}{choice}{rest}"


def _choices(braces: re.Match[str]) -> list[str]:
    if braces[3] is not None:
        return braces[3].split(",")
    numbers = range(int(braces[1]), int(braces[2]) + 1)
    return [f"{number:0{len(braces[1])}d}" for number in numbers]


def _num_choices(braces: re.Match[str]) -> int:
    if braces[3] is not None:
        return braces[3].count(",") + 1
    return max(0, int(braces[2]) + 1 - int(braces[1]))


def _there(name: str) -> list[Path]:
    return [Path(name)] if Path(name).exists() else []


def _globbed(pattern: str) -> list[Path]:
    path = Path(pattern)
    anchor = Path(path.anchor or ".")
    below = str(path.relative_to(path.anchor)) if path.anchor else pattern
    try:
        return sorted(matches_below(anchor, below), key=str)
    except ValueError as error:
        raise DataError(f"{pattern} is no pattern ({error})") from error


def matches_below(folder: Path, pattern: str) -> Iterator[Path]:
    """Files and folders that a pattern means; `**` at its end means folders alone.

    Raises:
        ValueError: it is no pattern.
    """
    # Pythons differ: from 3.13 on `**a` is taken for `*a`, and `a/**` for files, too.
    parts = PurePath(pattern).parts
    if any("**" in part and part != "**" for part in parts):
        raise ValueError("** stands for folders, and alone between slashes")
    found = folder.glob(pattern)
    return (path for path in found if path.is_dir()) if parts[-1:] == ("**",) else found
