"""The images of rows, wherever their bytes lie.

There are three ways to them, and each is built on the one before: the bytes of a row
(`encoded_image`), the image of a row (`row_image`), and the images of many rows in order, read and
decoded ahead by threads (`stream_images`; as batches for a model in `batches/loader.py`). Where an
image has ended a process before, `row_image` decodes it in another one (`GuardedDecoder`).
"""

import os
import select
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
from PIL import Image

from openblip.runtime.errors import DataError, MissingExtra
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.images import MAX_IMAGE_BYTES, open_image
from openblip.table.storage import ObjectFolder, is_object_address, read_object

if TYPE_CHECKING:
    from openblip.table.table import PairTable

_COLUMNS = ("id", "image", "image_uri")
# Rows; with photographs of 5 MB these are 320 MB.
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
    return read_image_file(image_path(image_uri))


def image_path(image_uri: str) -> Path:
    """The file that a path or a `file://` address names."""
    address = urlsplit(image_uri)
    if address.scheme == "file":
        # A name that is no UTF-8 stands there byte by byte.
        image_uri = os.fsdecode(unquote_to_bytes(address.path))
    return Path(image_uri)


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


def image_rows(table: "PairTable", rows: Sequence[int] | np.ndarray) -> Iterator[dict[str, Any]]:
    """Yields `id`, `image` and `image_uri` of rows, in the order that is asked for.

    Few are read at a time: a part of large photographs would fill the memory.
    """
    for start in range(0, len(rows), _READ_TOGETHER):
        some = np.asarray(rows[start : start + _READ_TOGETHER], np.int64)
        yield from table.take(some, _COLUMNS).to_pylist()


def stream_images(
    table: "PairTable", rows: Sequence[int] | np.ndarray
) -> Generator[Image.Image, None, None]:
    """Yields the images of rows as RGB, in their order; read and decoded ahead by threads.

    Raises:
        DataError: (while iterating) an image is missing or damaged; names the row.
    """
    threads = default_threads()
    return ordered_map(row_image, image_rows(table, rows), threads, num_ahead=threads + 2)


def check_reachable(table: "PairTable", rows: Sequence[int] | np.ndarray | None = None) -> None:
    """Check, before work that can leave no row out, that there is what its images are read with.

    Costs a scan of the column `image_uri`, and only where the extra for object stores is missing.

    Args:
        table: where the images are.
        rows: numbers of those that the work reads; by default all.

    Raises:
        MissingExtra: an image lies in an object store; names the row.
    """
    try:
        # Asks no store for anything, and fails where the extra is missing (of Google's, because S3
        # would want credentials too).
        ObjectFolder("gs://any")
    except MissingExtra as error:
        missing = error
    else:
        return
    column = ["image_uri"]
    parts = table.scan(column) if rows is None else [table.take(rows, column)]
    numbers = range(len(table)) if rows is None else rows
    uris = (uri for part in parts for uri in part["image_uri"].to_pylist())
    for row, uri in zip(numbers, uris, strict=True):
        if uri is not None and is_object_address(uri):
            where = f"row {row} of {table.uri}, {uri}"
            raise MissingExtra(f"{where}: {_lack(missing)}") from missing


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


TIMEOUT_SECONDS = 120.0
"""A decoder that takes longer for one image is ended."""
# How many bytes each of the two parts of a message has; the parts follow.
_HEADER = struct.Struct("<qq")


class GuardedDecoder:
    """Opens images as `open_image` does, in another process that is replaced when it dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def open(self, encoded: bytes, name: str) -> Image.Image:
        """The image as RGB, the same as from `open_image`.

        Raises:
            DataError: it is damaged, or decoding it ended the process or took too long.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, name.encode(), encoded)
            if not select.select([process.stdout], [], [], TIMEOUT_SECONDS)[0]:
                raise DataError(f"{name}: decoding took over {TIMEOUT_SECONDS:.0f} s; leave it out")
            answer = _receive(process.stdout)
        # It died while the image was sent, or before.
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        except DataError:
            # Its answer could still come, and would be taken for that about the next image.
            self._end()
            raise
        if answer is None:
            raise DataError(f"{name}: its decoder died ({self._end()}); leave the image out")
        size, content = answer
        # An answer without a size is an error in words.
        if not size:
            raise DataError(content.decode())
        width, height = struct.unpack("<ii", size)
        return Image.frombytes("RGB", (width, height), content)

    def _start(self) -> "subprocess.Popen[bytes]":
        # The same package as here, whether it is installed or lies in a checkout.
        source = str(Path(__file__).resolve().parents[2])
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "openblip.sources.row_images"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        return self._process

    def _end(self) -> str:
        """Ends the process; what it died of."""
        process, self._process = self._process, None
        if process is None:
            return ""
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        try:
            # At the end of its input it ends by itself, unless it hangs in an image.
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _send(stream: IO[bytes], first: bytes, second: bytes) -> None:
    stream.write(_HEADER.pack(len(first), len(second)) + first)
    stream.write(second)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[bytes, bytes] | None:
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    first, second = _HEADER.unpack(header)
    content = stream.read(first + second)
    return (content[:first], content[first:]) if len(content) == first + second else None


def _serve(source: IO[bytes], sink: IO[bytes]) -> None:
    while (request := _receive(source)) is not None:
        name, encoded = request
        try:
            image = open_image(encoded, name.decode())
        except DataError as error:
            _send(sink, b"", str(error).encode())
            continue
        _send(sink, struct.pack("<ii", *image.size), image.tobytes())


if __name__ == "__main__":
    # Ctrl-C goes to all processes of a terminal; this one ends when its input does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(sys.stdin.buffer, sys.stdout.buffer)
