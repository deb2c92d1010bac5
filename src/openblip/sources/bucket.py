"""Shards in an object store: each is fetched to the disk, read there as a file, and removed.

Tars and Parquet tables hold their images, so that one object is all that a reader needs. Single
files of images and texts are read from a disk: a request for each of millions would take days.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal

from openblip.runtime.atomic import temporary_files_fail
from openblip.runtime.errors import DataError, StorageError
from openblip.sources.cards import CARD_NAME, Card, read_card
from openblip.sources.paths import has_marks, is_hidden, spelt_out
from openblip.sources.report import Reason
from openblip.sources.source import Cursor, Entry, PairSource, Refused, Shard, SourceOptions
from openblip.sources.splits import SourceRoot
from openblip.sources.tables import TableSource
from openblip.sources.tars import TAR_SUFFIXES, TarSource
from openblip.table.rows import listed
from openblip.table.storage import ObjectFolder, StoredObject, read_object

_Kind = Literal["webdataset", "table"]
_SUFFIXES: dict[_Kind, tuple[str, ...]] = {"webdataset": TAR_SUFFIXES, "table": (".parquet",)}
# What the readers of one file call, in their cursors, that file and how far they are in it.
_CURSOR: dict[_Kind, tuple[str, str]] = {"webdataset": ("shard", "entry"), "table": ("file", "row")}
# As the reader of tables has it: nothing of this file is left.
_DONE = -1
_COPY = "copy or mount it, and import it from there"
_TEMPORARY = "openblip-"
# A card lies in the folder, or so many above the objects that a pattern names.
_MAX_ABOVE = 3
_MAX_CARD = 8 << 20
# Of an address: the scheme, nothing, the bucket.
_LEAST_PARTS = 3


def place_of(address: str) -> tuple[str, str]:
    """The folder of an address, and the names that are meant below it: all where that is empty.

    A pattern or range begins where its first mark is; an address with the suffix of a shard is that
    of one.
    """
    scheme, _, path = address.rstrip("/").partition("://")
    parts = path.split("/")
    is_shard = parts[-1].lower().endswith(tuple(end for ends in _SUFFIXES.values() for end in ends))
    marked = (n for n, part in enumerate(parts) if n and (has_marks(part) or "{" in part))
    begin = next(marked, len(parts) - (is_shard and len(parts) > 1))
    return f"{scheme}://{'/'.join(parts[:begin])}", "/".join(parts[begin:])


def root_of(address: str) -> SourceRoot:
    """The folder from which on names count for splits; the name of a bucket does not."""
    return SourceRoot(Path(place_of(address)[0]))


@dataclass(frozen=True)
class _Told:
    """What the card in the folder says of a shard."""

    split: str | None = None
    problem: str = ""
    """Why it is not read."""


class BucketSource:
    """The tars of a folder in an object store, or its Parquet tables where it has no tars.

    Names, ids and splits are those that the same files have on a disk. All else that lies there is
    told as other files. Objects that change while they are read end the import.
    """

    def __init__(self, address: str, options: SourceOptions, wanted: str | None = None) -> None:
        """Lists what is there, and reads the card if there is one.

        Args:
            address: of a folder, of one object, or of several by a pattern or range.
            options: may name the encoding of texts, and columns of tables.
            wanted: `webdataset` or `table`; None to find out.

        Raises:
            DataError: there is no shard, or one that was named is missing.
            StorageError: the store cannot be reached.
        """
        if wanted is not None and wanted not in _SUFFIXES:
            raise DataError(
                f"{address}: sources of the format {wanted} are read from a disk: {_COPY}"
            )
        uri, names = place_of(address)
        self._folder, self._options = ObjectFolder(uri), options
        found = _meant(address, names, self._folder.objects())
        kinds = [kind for kind in _SUFFIXES if wanted in (None, kind)]
        by_kind = {kind: [one for one in found if _is(kind, one)] for kind in kinds}
        first = next((kind for kind in kinds if by_kind[kind]), None)
        if first is None:
            raise DataError(
                f"{address} has no {' and no '.join(_SUFFIXES[kind][0] for kind in kinds)} in it"
                f"{_what_is_there(found)}; anything else is read from a disk: {_COPY}"
            )
        self.format: str = first
        self._kind: _Kind = first
        self._shards = by_kind[first]
        self._others = [one for one in found if not _is(first, one)]
        self._told: dict[str, _Told] = {}
        self._is_folder = not names
        # Of objects that are named one by one, the nearest card that speaks of any, as on a disk.
        for depth in range(1 if self._is_folder else _MAX_ABOVE):
            self._told = self._told or self._said_by_card(depth)
        if self._is_folder:
            self._others = [one for one in self._others if one.name != CARD_NAME]

    def total(self) -> int | None:
        """None: counting would mean reading."""
        return None

    def listed(self) -> Iterator[Entry]:
        """Nothing: images come as bytes."""
        return iter(())

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields those of one shard after the other, and then one for each other object."""
        at = str(cursor["object"]) if cursor else ""
        for one in self._shards:
            if at <= one.name:
                yield from self._entries(one, cursor if cursor and at == one.name else None)
        for one in self._others:
            if at < _after_shards(one):
                yield self._other(one)

    def shards(self) -> list[Shard]:
        """Each object, and the others together."""
        found = [
            Shard(one.name, {"object": one.name, "tag": one.tag}, one.size, is_file=True)
            for one in self._shards
        ]
        rest = Shard("other objects", {"others": len(self._others)}, 0, is_file=True)
        return [*found, rest] if self._others else found

    def entries_of(self, shard: Shard) -> Iterator[Entry]:
        """Yields those of one object."""
        name = shard.cursor.get("object")
        if name is None:
            yield from map(self._other, self._others)
        else:
            yield from self._entries(next(one for one in self._shards if one.name == name), None)

    def _entries(self, one: StoredObject, cursor: Cursor | None) -> Iterator[Entry]:
        told = self._told.get(one.name, _Told())
        if cursor is not None and cursor["at"] == _DONE:
            return
        if told.problem:
            done: Cursor = {"object": one.name, "at": _DONE}
            yield Refused(one.name, done, Reason.OTHER_FILE, told.problem)
            return
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY) as folder:
            path = Path(folder, PurePosixPath(one.name).name)
            self._fetch(one, path)
            for entry in self._read(one, path, cursor):
                yield self._named(entry, one, path, told.split)

    def _fetch(self, one: StoredObject, path: Path) -> None:
        try:
            self._folder.fetch(one, path)
        except StorageError:
            raise
        except OSError as error:
            raise temporary_files_fail(str(error.strerror or error)) from error

    def _read(self, one: StoredObject, path: Path, cursor: Cursor | None) -> Iterator[Entry]:
        within = one.name.removesuffix(path.name)
        file, place = _CURSOR[self._kind]
        begun: Cursor | None = {file: str(path), place: cursor["at"]} if cursor else None
        try:
            source: PairSource = (
                TarSource([path], self._options, within)
                if self._kind == "webdataset"
                else TableSource([path], self._options, within)
            )
            yield from source.entries(begun)
        except DataError as error:
            # Of a table that cannot be opened; what is said of the file is said of the object.
            detail = str(error).removeprefix(f"{path}: ")
            yield Refused(one.name, {file: str(path), place: _DONE}, Reason.BAD_RECORD, detail)

    def _named(self, entry: Entry, one: StoredObject, path: Path, split: str | None) -> Entry:
        """An entry of the fetched file as one of the object: nothing in it tells of the copy."""
        cursor: Cursor = {"object": one.name, "at": entry.cursor[_CURSOR[self._kind][1]]}
        here = f"{self._folder.uri}/{one.name.removesuffix(path.name)}"
        if isinstance(entry, Refused):
            detail = entry.detail.replace(f"{path.parent}/", here)
            return replace(entry, cursor=cursor, detail=detail, image=None)
        if isinstance(entry.image, Path):
            return Refused(
                entry.where,
                cursor,
                Reason.MISSING_IMAGE,
                f"{entry.image.name} is named, and not held, by this table: {_COPY}",
                entry.num_records,
            )
        place = Path(self._folder.uri, one.name)
        return replace(entry, cursor=cursor, place=place, card_split=split)

    def _other(self, one: StoredObject) -> Entry:
        reason = Reason.HIDDEN_FILE if _is_hidden(one) else Reason.OTHER_FILE
        cursor: Cursor = {"object": _after_shards(one), "at": _DONE}
        return Refused(one.name, cursor, reason, f"beside the {_SUFFIXES[self._kind][0]} shards")

    def _said_by_card(self, depth: int) -> dict[str, _Told]:
        """What a card says of each shard; nothing where there is none that speaks of any.

        Args:
            depth: so many folders above the objects it lies.

        Raises:
            DataError: its header is damaged, or it does not say which configuration is meant.
        """
        parts = self._folder.uri.split("/")
        if (above := len(parts) - depth) < _LEAST_PARTS:
            return {}
        uri, below = "/".join(parts[:above]), "/".join(parts[above:])
        try:
            content = read_object(f"{uri}/{CARD_NAME}", _MAX_CARD)
        except ValueError as error:
            raise DataError(f"{error}: that is no card of a dataset; move it away") from error
        if content is None:
            return {}
        # A card names files by patterns. It is asked of empty files of the same names.
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY) as name:
            folder = Path(name)
            (folder / CARD_NAME).write_bytes(content)
            paths = {one.name: folder / below / one.name for one in self._shards}
            for path in paths.values():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            card = read_card(folder)
            if card is None or not any(map(card.speaks_of, paths.values())):
                return {}
            if self._is_folder and card.default is None:
                raise DataError(
                    f"{uri} has the configurations {', '.join(card.configs)}, and no default: give "
                    "a pattern of the files of one"
                )
            return {shard: self._of_card(card, path, uri) for shard, path in paths.items()}

    def _of_card(self, card: Card, path: Path, uri: str) -> _Told:
        # Who names objects means these, of whatever configuration they are.
        if self._is_folder and (other := card.other_config(path)) is not None:
            return _Told(problem=f"of the configuration {other!r} of the card")
        try:
            return _Told(card.split_of(path))
        except DataError as error:
            return _Told(problem=str(error).replace(f"{card.folder}/", f"{uri}/"))


def _meant(address: str, names: str, there: Sequence[StoredObject]) -> list[StoredObject]:
    """The objects that an address means.

    Raises:
        DataError: one that it names is missing, or there is none.
    """
    # Consoles make empty objects for folders.
    files = [one for one in there if one.size or not one.name.endswith("/")]
    if not names:
        if not files:
            raise DataError(f"{address} is empty, or does not exist")
        return files
    patterns = spelt_out(names)
    is_named = {one.name: one for one in files}
    plain = [name for name in patterns if not has_marks(name)]
    if missing := [name for name in plain if name not in is_named]:
        missed = f" ({len(missing)} are missing)" if len(patterns) > 1 else ""
        raise DataError(f"{address}: {missing[0]} does not exist{missed}")
    found = {name: is_named[name] for name in plain}
    for pattern in patterns:
        if has_marks(pattern):
            found |= {one.name: one for one in files if _fits(one.name, pattern)}
    if not found:
        raise DataError(f"{address} names no object{_what_is_there(files)}")
    return [found[name] for name in sorted(found)]


def _fits(name: str, pattern: str) -> bool:
    """Part by part, as on a disk: a star is none of the slashes; two stars are any folders."""
    return _parts_fit(name.split("/"), pattern.split("/"))


def _parts_fit(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns or not names:
        return not patterns and not names
    if patterns[0] == "**":
        return _parts_fit(names, patterns[1:]) or _parts_fit(names[1:], patterns)
    return fnmatchcase(names[0], patterns[0]) and _parts_fit(names[1:], patterns[1:])


def _is(kind: _Kind, one: StoredObject) -> bool:
    return one.name.lower().endswith(_SUFFIXES[kind]) and not _is_hidden(one)


def _is_hidden(one: StoredObject) -> bool:
    return any(map(is_hidden, one.name.split("/")))


def _after_shards(one: StoredObject) -> str:
    """Of an object that is no shard, for cursors: behind all names of shards."""
    return f"\U0010ffff{one.name}"


def _what_is_there(files: Sequence[StoredObject]) -> str:
    return f"; in it are {listed([one.name for one in files[:5]])}" if files else ""
