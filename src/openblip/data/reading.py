"""The image of a row, wherever its bytes lie."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
from PIL import Image

from openblip.data.images import MAX_IMAGE_BYTES, open_image
from openblip.data.parallel import default_threads, ordered_map
from openblip.data.storage import ObjectFolder, is_object_address, read_object
from openblip.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from openblip.data.table import PairTable

_COLUMNS = ("id", "image", "image_uri")
_READ_TOGETHER = 64


def encoded_image(image: bytes | None, image_uri: str | None) -> bytes:
    """The bytes of an image that is stored in the table, or lies at a path or address.

    Args:
        image: bytes from the table; None if they lie at `image_uri`.
        image_uri: a path, or a `file://`, `s3://` or `gs://` address.

    Raises:
        DataError: there is no such file, or it cannot be read.
        StorageError: the object store cannot be reached, which says nothing about the image.
    """
    if image is not None:
        return image
    if not image_uri:
        raise DataError("the row has neither image bytes nor an image_uri")
    if is_object_address(image_uri):
        return _object(image_uri)
    scheme = urlsplit(image_uri).scheme
    if scheme in ("http", "https"):
        raise DataError(
            f"{image_uri} is on the web: download the images first (img2dataset does that well) "
            "and import its output"
        )
    if scheme == "file":
        # A name that is no UTF-8 stands there byte by byte.
        image_uri = os.fsdecode(unquote_to_bytes(urlsplit(image_uri).path))
    return read_image_file(Path(image_uri))


def row_image(
    row: Mapping[str, Any], decode: Callable[[bytes, str], Image.Image] = open_image
) -> Image.Image:
    """The image of a row of a pair table, as RGB.

    Args:
        row: with the columns `id`, `image` and `image_uri`.
        decode: given the encoded bytes and what errors shall call the image.

    Raises:
        DataError: the image is missing or damaged; names the row.
    """
    name = f"row {row['id']!r}"
    try:
        return decode(encoded_image(row["image"], row["image_uri"]), name)
    except DataError as error:
        message = str(error)
        raise DataError(message if name in message else f"{name}: {message}") from error


def table_images(table: "PairTable", rows: Sequence[int] | np.ndarray) -> list[Image.Image]:
    """The images of some rows of a table, as RGB, in their order.

    Raises:
        DataError: an image is missing or damaged; names the row.
    """
    found = table.take(np.asarray(rows, np.int64), _COLUMNS)
    return [row_image(row) for row in found.to_pylist()]


def check_reachable(table: "PairTable") -> None:
    """Check, before work that can leave no row out, that there is what its images are read with.

    Costs a scan of the column `image_uri`, and only where the extra for object stores is missing.

    Raises:
        MissingExtra: an image lies in an object store; names the row.
    """
    try:
        ObjectFolder("gs://any")
    except MissingExtra as error:
        missing = error
    else:
        return
    start = 0
    for batch in table.scan(["image_uri"]):
        for place, uri in enumerate(batch["image_uri"].to_pylist(), start):
            if uri is not None and is_object_address(uri):
                where = f"row {place} of {table.uri}, {uri}"
                raise MissingExtra(f"{where}: {_lack(missing)}") from missing
        start += batch.num_rows


def stream_images(table: "PairTable", rows: np.ndarray) -> Iterator[Image.Image]:
    """As `table_images`, one by one; read and decoded by threads ahead of their use."""
    starts = range(0, len(rows), _READ_TOGETHER)
    encoded = (
        row
        for start in starts
        for row in table.take(rows[start : start + _READ_TOGETHER], _COLUMNS).to_pylist()
    )
    threads = default_threads()
    return ordered_map(row_image, encoded, threads, num_ahead=threads + 2)


def read_image_file(path: Path) -> bytes:
    """The content of a regular file of at most `MAX_IMAGE_BYTES`.

    Raises:
        DataError: it does not exist, is no regular file (a pipe would block), or is too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is no regular file")
        if status.st_size > MAX_IMAGE_BYTES:
            raise DataError(f"{path} has {status.st_size} bytes, more than {MAX_IMAGE_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _lack(error: MissingExtra) -> str:
    """What is missing, without the address for which it was."""
    return str(error).partition(": ")[2]


def _object(uri: str) -> bytes:
    try:
        content = read_object(uri, MAX_IMAGE_BYTES)
    except ValueError as error:
        raise DataError(str(error)) from error
    except MissingExtra as error:  # it costs the images in object stores, not those beside them
        raise DataError(f"{uri}: {_lack(error)}") from error
    if content is None:
        raise DataError(f"{uri}: there is no such object")
    return content
