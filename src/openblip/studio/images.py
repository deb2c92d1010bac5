"""The pictures of rows for the page: thumbnails, and the pictures as they are stored."""

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from openblip.sources.image_formats import HEAD_BYTES, format_of
from openblip.studio.routes import Asked, Content, Route, get, reduced

if TYPE_CHECKING:
    from openblip.studio.app import Studio

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
