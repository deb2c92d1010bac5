"""What the studio looks at, and its pictures: thumbnails, and pictures as they are stored.

A place is a pair table, or a folder through its index or as it lies there.
"""

import hashlib
import io
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.index.noted import FOLDER_TABLE, IndexState, folder_named
from openblip.runtime.documents import escaped, has_halves
from openblip.runtime.errors import DataError
from openblip.sources.image_formats import HEAD_BYTES, format_of, is_image_file
from openblip.sources.paths import is_table, walk
from openblip.sources.row_images import encoded_image, image_path
from openblip.studio.arrays import TableArrays
from openblip.studio.routes import Asked, Content, Refused, Route, check_row, get, reduced
from openblip.studio.selection import Choices
from openblip.table.storage import is_object_address
from openblip.table.table import PairRow, PairTable

if TYPE_CHECKING:
    from openblip.studio.app import Studio


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


WIDTHS = (120, 240, 360, 480, 720, 960, 1440, 1920)
"""Longer sides of thumbnails: what is asked for is rounded up, so that few forms are kept."""
CACHE_BYTES = 64 << 20
"""Of all thumbnails that are kept, in memory."""
_QUALITY = 82
# What a JPEG can have.
_LONGEST_SIDE = 65_500
# What every browser shows. By the content, never by a name: an SVG may hold a script.
_SHOWN = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "AVIF": "image/avif",
}


class Kept:
    """Encoded thumbnails within a bound of bytes; what was not used for longest goes first."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], bytes]) -> bytes:
        """What is kept under a key, or else made, and kept from now on."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        # Without the lock: two threads may make the same, which costs less than waiting for all.
        made = make()
        with self._lock:
            self._total += len(made) - len(self._kept.pop(key, b""))
            self._kept[key] = made
            while self._total > self._most and len(self._kept) > 1:
                self._total -= len(self._kept.popitem(last=False)[1])
        return made


def routes(studio: "Studio") -> list[Route]:
    """`/image/{row}`, with `?w=240` a thumbnail."""
    kept = Kept()

    def image(asked: Asked) -> Content:
        place = studio.need_place()
        row = asked.whole("row", 0, 1 << 53)
        mark = asked.text("v", place.mark)
        place.check(mark)

        def encoded() -> bytes:
            found = place.encoded(row)
            place.check(mark)
            return found

        # Of an address that names the table's version the browser need not ask again.
        is_lasting = "v" in asked.values
        if "w" not in asked.values:
            return _stored(encoded(), is_lasting)
        wanted = asked.whole("w", 1, 1 << 20)
        width = next((width for width in WIDTHS if width >= wanted), WIDTHS[-1])
        key = f"{mark}/{row}/{width}"
        tag = f'"{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}"'
        if asked.tag == tag:
            return Content(b"", "image/webp", tag, is_lasting)
        body = kept.get(key, lambda: thumbnail(encoded(), width, f"row {row}"))
        return Content(body, "image/webp", tag, is_lasting)

    return [get("/image/{row:int}", image)]


def thumbnail(encoded: bytes, width: int, name: str) -> bytes:
    """A picture no larger than `width` in either direction, as WebP.

    Raises:
        DataError: it is no picture, or damaged.
    """
    stream = io.BytesIO()
    reduced(encoded, name, width).save(stream, "WEBP", quality=_QUALITY, method=2)
    return stream.getvalue()


def _stored(encoded: bytes, is_lasting: bool) -> Content:
    """A picture as it is stored, or as JPEG where a browser would not show it."""
    tag = f'"{hashlib.blake2b(encoded, digest_size=12).hexdigest()}"'
    form = format_of(encoded[:HEAD_BYTES])
    if form in _SHOWN:
        return Content(encoded, _SHOWN[form], tag, is_lasting)
    stream = io.BytesIO()
    reduced(encoded, "the picture", _LONGEST_SIDE).save(stream, "JPEG", quality=92)
    return Content(stream.getvalue(), "image/jpeg", tag, is_lasting)
