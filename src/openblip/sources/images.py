"""One way to open an image, whatever it comes as."""

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from openblip.runtime.errors import DataError
from openblip.sources.image_formats import (
    HEAD_BYTES,
    HEIF,
    format_of,
    formats,
    is_heif,
    register_heif,
    what_it_is,
)

Encoded = bytes | bytearray | memoryview
ImageSource = Encoded | str | os.PathLike[str] | BinaryIO | Image.Image | NDArray[np.uint8]
"""Encoded bytes, a path, a file opened for reading bytes, a Pillow image, or uint8 values (height,
width) or (height, width, channels): 1, 3, or 4 with the opacity."""

MAX_PIXELS = 178_956_970
"""Largest width times height that is decoded, where Pillow refuses too: 512 MiB as RGB."""

# EXIF orientation to the transposition that brings the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
_WHITE_16 = 65535
MAX_IMAGE_BYTES = 256 << 20
"""A larger file is refused unread: it is no photograph."""
_ADDRESS = re.compile(r"^(https?|ftp|s3|gs|data|file):/?/?(?=.)", re.IGNORECASE)
_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def open_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Returns the image as RGB, upright, with transparent parts over white.

    EXIF orientation is applied; of an animated file the first frame counts; palettes, CMYK, grey,
    and grey of 16 bits become RGB of 8 bits. The result is a new image without metadata.

    Args:
        source: bytes, path, open file, Pillow image or array, see `ImageSource`. An open file is
            read from its begin where it can be.
        name: what errors call the image, for example a row of a table; by default the path.

    Raises:
        DataError: if there is no image, it is damaged or cut off, or has over `MAX_PIXELS` pixels.
    """
    name = name or _name(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    with _pillow_warnings_ignored():
        if isinstance(source, Image.Image):
            return _decoded(source, name)
        if isinstance(source, Encoded):
            return _from_stream(io.BytesIO(source), name)
        if isinstance(source, str | os.PathLike):
            return _from_file(Path(source), name)
        if hasattr(source, "read"):
            return _from_stream(io.BytesIO(_content(source, name)), name)
    raise DataError(
        f"{name}: no image; give a path, bytes, an open file, a Pillow image or a uint8 array"
        f"{_hint(source)}"
    )


class UndecodedImage:
    """An encoded image that is decoded once it is known how large it has to be.

    Attributes:
        width: pixels of the whole image, upright.
        height: likewise.
    """

    def __init__(self, encoded: bytes, name: str | None = None) -> None:
        """Reads the header of a JPEG; other formats have no smaller forms and are decoded.

        Raises:
            DataError: as `open_image` does.
        """
        self._name = name or _name(encoded)
        with _pillow_warnings_ignored():
            self._image = _opened(io.BytesIO(encoded), self._name)
            # Not of several pictures in a file (MPO).
            self._is_jpeg = self._image.format == "JPEG"
            if self._is_jpeg:
                _check_size(self._image.width, self._image.height, self._name)
                is_sideways = _orientation(self._image) in _SIDEWAYS
            else:
                self._image, is_sideways = _decoded(self._image, self._name), False
        width, height = self._image.size
        self.width, self.height = (height, width) if is_sideways else (width, height)

    def decoded(self, divisor: int = 1) -> Image.Image:
        """The image as `open_image` gives it, or a JPEG at a fraction of its size; call once.

        A pixel of the result stands for `divisor` x `divisor` of the whole image. The JPEG
        decoder makes it from the lower frequencies alone, in a fraction of the time.

        Args:
            divisor: 1, 2, 4 or 8. Other formats come whole: compare the result's size.

        Raises:
            DataError: the image is damaged or cut off.
        """
        if not self._is_jpeg:
            return self._image
        width, height = self._image.size
        if divisor > 1:
            self._image.draft(None, (max(width // divisor, 1), max(height // divisor, 1)))
        with _pillow_warnings_ignored():
            return _decoded(self._image, self._name)


def image_suffix(encoded: bytes, name: str) -> str:
    """The usual ending of a file of this format, such as `.jpg`; only the header is read.

    Raises:
        DataError: it is no image of a known format; names `name`.
    """
    with _pillow_warnings_ignored():
        form = str(_opened(io.BytesIO(encoded), name).format)
    return _SUFFIXES.get(form, f".{form.lower()}")


class ImageHeader(NamedTuple):
    """What stands at the beginning of an encoded image."""

    width: int
    """Pixels, upright."""
    height: int
    date: float
    """When it was taken, or else changed, as its EXIF says, in seconds since 1970 by the camera's
    clock; 0 where it does not say."""

    @property
    def pixels(self) -> int:
        """All of them."""
        return self.width * self.height


def read_header(encoded: bytes, name: str | None = None) -> ImageHeader:
    """Size and date of an encoded image, which is not decoded.

    Raises:
        DataError: it is no image of a known format.
    """
    with _pillow_warnings_ignored():
        image = _opened(io.BytesIO(encoded), name or _name(encoded))
        width, height = image.size
        if _orientation(image) in _SIDEWAYS:
            width, height = height, width
        return ImageHeader(width, height, _date(image))


def _date(image: Image.Image) -> float:
    try:
        exif = image.getexif()
        taken = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
        text = str(taken or exif.get(ExifTags.Base.DateTime))
        return datetime.strptime(text, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
    except Exception:  # damaged metadata, or none
        return 0.0


@contextmanager
def _pillow_warnings_ignored() -> Iterator[None]:
    """Silences Pillow on odd metadata, and on sizes that `MAX_PIXELS` allows.

    Not by `warnings.catch_warnings`, which must not run in two threads at once, and after which
    every warning of the process that is shown once would be shown again.
    """
    cast("list[Any]", warnings.filters).insert(0, _IGNORE_PILLOW)
    try:
        yield
    finally:
        with suppress(ValueError):  # another thread may have put other filters in place
            cast("list[Any]", warnings.filters).remove(_IGNORE_PILLOW)


def _from_file(path: Path, name: str) -> Image.Image:
    try:
        # Opening a pipe would wait for whoever fills it.
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "a pipe or a device"
            raise DataError(f"{name}: cannot be read: {kind}, not an image file")
        with path.open("rb") as stream:
            return _from_stream(stream, name)
    except (OSError, ValueError) as error:
        other = other_than_a_path(str(path)) if isinstance(error, FileNotFoundError) else None
        detail = other or f"cannot be read ({error}); check the path"
        raise DataError(f"{name}: {detail}") from error


def other_than_a_path(path: str) -> str | None:
    """What somebody means who gives this for a path where there is none; None if that is open."""
    # `Path` makes one slash of two.
    if scheme := _ADDRESS.match(path):
        return f"an address ({scheme[1]}), not a file; download the image and give its path"
    if path == "-":
        return (
            "standard input is not read; save the image to a file, or in Python give "
            "sys.stdin.buffer"
        )
    return None


def _content(stream: Any, name: str) -> bytes:
    try:
        if stream.seekable():
            stream.seek(0)
        # The one byte more tells of a larger file, of which nothing else need be read.
        content = stream.read(MAX_IMAGE_BYTES + 1)
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{name}: cannot be read ({error}); give an open file") from error
    if not isinstance(content, bytes):
        raise DataError(f"{name}: opened for reading text; open it with the mode 'rb'")
    if len(content) > MAX_IMAGE_BYTES:
        raise DataError(f"{name}: more than {MAX_IMAGE_BYTES} bytes; this is no photograph")
    return content


def _hint(source: object) -> str:
    if type(source).__module__.partition(".")[0] == "torch":
        return " (of a tensor of 0-255 with channels first: tensor.permute(1, 2, 0).byte().numpy())"
    return " (of a dictionary its bytes or its path)" if isinstance(source, Mapping) else ""


def _name(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, Encoded):
        return f"image of {memoryview(source).nbytes} bytes"
    if isinstance(source, np.ndarray):
        return f"array of {source.dtype} {source.shape}"
    named = str(getattr(source, "filename", "") or getattr(source, "name", ""))
    return named or type(source).__name__


def _from_array(values: NDArray[np.uint8], name: str) -> Image.Image:
    is_image = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (1, 3, 4))
    if values.dtype != np.uint8 or not is_image or values.size == 0:
        raise DataError(
            f"{name}: expected uint8 of shape (height, width, 3) or (height, width)"
            f"{_array_hint(values)}"
        )
    _check_size(values.shape[1], values.shape[0], name)
    single = values.ndim == 3 and values.shape[2] == 1
    return _rgb(Image.fromarray(values[:, :, 0] if single else values))


def _array_hint(values: NDArray[Any]) -> str:
    if values.ndim == 3 and values.shape[0] in (1, 3, 4) and values.shape[2] not in (1, 3, 4):
        return "; with channels first: array.transpose(1, 2, 0)"
    if values.dtype.kind == "f":
        return "; of values from 0 to 1: (array * 255).round().astype('uint8')"
    return ""


def _from_stream(stream: BinaryIO, name: str) -> Image.Image:
    return _decoded(_opened(stream, name), name)


def _opened(stream: BinaryIO, name: str) -> Image.Image:
    """The image, of which only the header has been read."""
    head = stream.read(HEAD_BYTES)
    if not head:
        raise DataError(f"{name}: empty; fetch the image again")
    stream.seek(0)
    if is_heif(head) and (missing := register_heif()) is not None:
        raise DataError(f"{name}: {missing}")
    known = [form for form in formats() if form != HEIF or is_heif(head)]
    try:
        return Image.open(stream, formats=known)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: too large ({error}); make the image smaller first") from error
    except UnidentifiedImageError as error:
        if (form := format_of(head)) is not None:
            raise DataError(
                f"{name}: damaged image (of the format {form}, and its header cannot be read); "
                "fetch it again, or leave it out"
            ) from error
        other = what_it_is(head)
        found = f" but {other}" if other else ", or its header is damaged"
        raise DataError(
            f"{name}: not an image of a known format{found}; give one of {', '.join(known)}"
        ) from error
    except Exception as error:  # on damaged data Pillow's formats raise nearly anything
        raise _damaged(name, error) from error


def _decoded(image: Image.Image, name: str) -> Image.Image:
    _check_size(image.width, image.height, name)
    try:
        # First, because decoding a TIFF already brings it upright.
        image.load()
        transposition = _UPRIGHT.get(_orientation(image))
        rgb = _rgb(image)
    except Exception as error:  # on damaged data Pillow's formats raise nearly anything
        raise _damaged(name, error) from error
    rgb.info = {}
    return rgb if transposition is None else rgb.transpose(transposition)


def _check_size(width: int, height: int, name: str) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise DataError(
            f"{name}: {width} x {height} pixels; give an image with 1 to {MAX_PIXELS} pixels"
        )


def _damaged(name: str, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"{name}: damaged image ({reason}); fetch it again, or leave it out")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata does not make the picture unreadable
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey_of_8_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    straight = image.convert("LA") if image.mode == "La" else image
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(straight.convert("RGBA"))
    return white.convert("RGB")


def _grey_of_8_bits(image: Image.Image) -> Image.Image:
    """Returns grey of 8 bits; whole numbers count to 65535, or further; floats to 1, or 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    largest = float(values.max())
    white = max(_WHITE_16, largest) if image.mode != "F" else 1.0 if largest <= 1.0 else 255.0
    return Image.fromarray(np.rint(values / white * 255).clip(0, 255).astype(np.uint8))
