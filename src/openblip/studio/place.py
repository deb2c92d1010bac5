"""What the studio looks at: a pair table, or a folder through its index or as it lies there."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from openblip.index.noted import FOLDER_TABLE, IndexState, folder_named
from openblip.runtime.documents import escaped, has_halves
from openblip.runtime.errors import DataError
from openblip.sources.image_formats import is_image_file
from openblip.sources.paths import is_table, walk
from openblip.sources.row_images import encoded_image, image_path
from openblip.studio.arrays import TableArrays
from openblip.studio.routes import Refused, check_row
from openblip.studio.selection import Choices
from openblip.table.storage import is_object_address
from openblip.table.table import PairRow, PairTable


class Place:
    """A collection as it is now; `refresh` looks again.

    Attributes:
        name: as it was given.
        folder: whose files the rows are; None of a table.
        table: the rows.
        index: of the table; None where there is none, so that it cannot be searched.
        mark: changes with the table, so that a page knows of which one its row numbers are.
        choices: what is known of the table's rows, and of this version alone.
    """

    table: PairTable
    index: IndexState | None
    mark: str
    choices: Choices

    def __init__(self, name: str, resources: ExitStack) -> None:
        """Opens it.

        Args:
            name: a pair table, or a folder.
            resources: hold the table of a folder that has no index, and remove it at the end.

        Raises:
            DataError: there is no such table or folder, or no image in it.
        """
        self.name = name
        self.folder = None if is_table(name) else folder_named(name)
        self._resources = resources
        self._light: PairTable | None = None
        self.refresh()

    def refresh(self) -> None:
        """Open the table again: another process may have changed it, or made the index.

        Raises:
            DataError: it is gone.
        """
        table = self._opened()
        arrays = TableArrays(table)
        # What was read of the same version stays: it took scans of the whole table.
        if arrays.mark != getattr(self, "mark", None):
            self.choices = Choices(arrays)
            self.index, self.table, self.mark = IndexState.of(table), table, arrays.mark

    def _opened(self) -> PairTable:
        if self.folder is None:
            return PairTable.open(self.name)
        table = PairTable.open_if_any(self.folder / FOLDER_TABLE)
        if table is not None and IndexState.of(table) is not None:
            return table
        if self._light is None:
            scratch = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="openblip-"))
            self._light = PairTable.create(Path(scratch) / "photos.lance", _rows(self.folder))
        if not len(self._light):
            raise DataError(f"{self.name}: no image in this folder; name another one")
        return self._light

    def check(self, mark: str) -> None:
        """Nothing, if the table is still that of this mark.

        Asked again after something was read by the number of a row: another request may have seen
        meanwhile that the table has changed.

        Raises:
            Refused: it is another one, whose numbers may be other rows'.
        """
        if mark != self.mark:
            raise Refused(409, "the collection has changed: reload the page")

    def encoded(self, row: int) -> bytes:
        """The bytes of a row's picture.

        Raises:
            Refused: there is no such row; or it lies outside of the folder, where an index that
                came with a folder could lead to any file of this machine.
            DataError: it is gone, or cannot be read.
        """
        check_row(row, len(self.table))
        (found,) = self.table.take([row], ["id", "image", "image_uri"]).to_pylist()
        self._check_inside(found)
        try:
            return encoded_image(found["image"], found["image_uri"])
        except DataError as error:
            raise Refused(404, f"row {found['id']!r}: {error}") from error

    def _check_inside(self, found: dict[str, Any]) -> None:
        uri = found["image_uri"]
        if self.folder is None or found["image"] is not None or not uri:
            return
        outside = Refused(
            404,
            f"row {found['id']!r}: its file lies outside of {self.name}, perhaps behind a link: "
            "open the folder in which it lies",
        )
        try:
            # Links followed, or one in the folder would lead out of it.
            path = image_path(uri).resolve()
            is_inside = path.is_relative_to(self.folder.resolve()) and not is_object_address(uri)
        except (OSError, ValueError):  # a circle of links, or no name at all
            is_inside = False
        if not is_inside:
            raise outside

    def about(self) -> dict[str, Any]:
        """What the page says of it."""
        return {
            "name": Path(self.name).name or self.name,
            "place": self.name,
            "kind": "table" if self.folder is None else "folder",
            "rows": len(self.table),
            "mark": self.mark,
            "indexed": self.index is not None,
            "model": self.index.model if self.index is not None else None,
        }


def _rows(folder: Path) -> Iterator[PairRow]:
    """The images of a folder, by the ids that its index would give them; none is opened."""
    for seen in walk(folder):
        try:
            if seen.problem or not is_image_file(seen.path):
                continue
        except OSError:  # an index says why; here it is left out
            continue
        path = seen.path.absolute()
        uri = path.as_uri() if has_halves(str(path)) else str(path)
        yield PairRow(escaped(seen.name), None, uri)
