"""What all lists of a source say together about the split of an image file."""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from openblip.data.ids import IdSet
from openblip.data.importers.source import Entry, Found
from openblip.data.importers.splits import Authority, SourceRoot, SplitConflict, row_split
from openblip.errors import DataError

# What says nothing about an image in itself, so that what is said elsewhere of it holds.
_WEAK = (Authority.IMAGE_FOLDER, Authority.SOURCE_FOLDER, Authority.NOTHING)


class FileSplits:
    """Which splits each file is said to be in; a file has one, however many records name it."""

    def __init__(self, entries: Iterable[Entry] = (), root: SourceRoot | None = None) -> None:
        """Reads all entries; what cannot be understood will be refused where it stands.

        Args:
            entries: of all lists of a source.
            root: of the source.
        """
        self._folder = lru_cache(maxsize=4096)(os.path.realpath)
        self._told: dict[str, IdSet] = {}
        found = set()
        for entry in entries:
            if root is None or not isinstance(entry, Found) or not isinstance(entry.image, Path):
                continue
            try:
                split, said_by = row_split(entry, root)
            except DataError:
                continue
            found.add(split)
            if said_by not in _WEAK:
                self._told.setdefault(split, IdSet()).add(self._name(entry.image))
        if len(found) < 2:
            self._told = {}

    def agreed(self, entry: Entry, split: str, said_by: Authority) -> tuple[str, Authority]:
        """The split of an entry, and what says so, after what other records say of its image.

        Args:
            entry: of the source.
            split: what is said of it alone.
            said_by: and what says that.

        Raises:
            SplitConflict: its image is said to be in several splits.
        """
        if not self._told or not isinstance(entry.image, Path):
            return split, said_by
        name = self._name(entry.image)
        told = [split for split, names in self._told.items() if name in names]
        if len(told) > 1:
            both = " and ".join(map(repr, sorted(told)))
            raise SplitConflict(
                f"{entry.image.name} is in {both} here (this record: {split!r}, by {said_by}): say "
                "which with --split, or mend the records"
            )
        if told and said_by in _WEAK:
            return told[0], Authority.SAME_IMAGE
        return split, said_by

    def _name(self, path: Path) -> str:
        folder, name = os.path.split(path)
        return os.path.join(self._folder(folder), name)  # noqa: PTH118 - for each of many names
