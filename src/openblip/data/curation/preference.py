"""Which of several equal images is kept, and the sizes and dates that decide it."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from openblip.data.images import ImageHeader, read_header
from openblip.data.parallel import default_threads, ordered_map
from openblip.data.reading import encoded_image
from openblip.data.storage import is_object_address
from openblip.data.table import PairTable
from openblip.errors import DataError, RecipeError

Keep = Literal["first", "largest", "newest"]
_ROWS_TOGETHER = 64


def keeping_order(
    table: PairTable, is_web: NDArray[np.bool_], keep: Keep, num_threads: int | None = None
) -> NDArray[np.int64]:
    """All rows, those that are kept rather than others first.

    Images of human origin come before those of the web. Among them `first` takes the order of the
    table; `largest` most pixels first; `newest` the latest date first, and of equal dates the row
    that was imported last. The date is that of the camera (EXIF: taken, else changed); where there
    is none the modification time of the file; an image without either counts as the oldest.

    Args:
        table: with the images.
        is_web: for each row.
        keep: one of the three.
        num_threads: that read images; None for one for each core.

    Raises:
        RecipeError: `keep` is another word.
    """
    rows = np.arange(len(table))
    if keep == "first":
        return np.lexsort((rows, is_web))
    if keep not in get_args(Keep):
        raise RecipeError(f"keep must be one of {', '.join(get_args(Keep))}. Got {keep!r}.")
    headers = read_headers(table, rows, num_threads)
    if keep == "largest":
        return np.lexsort((rows, np.array([-header.pixels for header in headers]), is_web))
    return np.lexsort((-rows, np.array([-header.date for header in headers]), is_web))


def read_headers(
    table: PairTable, rows: NDArray[np.int64], num_threads: int | None = None
) -> list[ImageHeader]:
    """Sizes and dates of the images of some rows; zeros for what cannot be read."""
    found = (
        row
        for start in range(0, len(rows), _ROWS_TOGETHER)
        for row in table.take(
            rows[start : start + _ROWS_TOGETHER], ["image", "image_uri"]
        ).to_pylist()
    )
    threads = num_threads or default_threads()
    return list(ordered_map(_header, found, threads, num_ahead=threads + 2))


def _header(row: dict[str, bytes | str | None]) -> ImageHeader:
    image, uri = row["image"], row["image_uri"]
    assert not isinstance(image, str)
    assert not isinstance(uri, bytes)
    try:
        header = read_header(encoded_image(image, uri))
    except (DataError, OSError):
        return ImageHeader(0, 0, 0.0)
    if not header.date and image is None and uri and not is_object_address(uri):
        return ImageHeader(header.width, header.height, _modified(uri.removeprefix("file://")))
    return header


def _modified(path: str) -> float:
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0.0
