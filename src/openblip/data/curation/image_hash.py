"""What is kept of an image to recognise it again: a perceptual hash, a thumbnail, a digest."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_BITS = 64
THUMBNAIL_BYTES = 48
_SIDE, _KEPT = 32, 8
# Rows k of the (unnormalised) type-II discrete cosine transform of 32 values.
_COSINES = np.cos(np.pi * np.outer(np.arange(_KEPT), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE))
# Far above rounding, far below any picture: an image of one colour has no bit of noise.
_FLAT = 1e-6


@dataclass(frozen=True)
class ImageMark:
    """What one image is recognised by."""

    hash: int
    """64-bit perceptual hash of the grey image."""
    thumbnail: bytes
    """4 x 4 pixels RGB, row by row."""
    digest: int
    """64 bits of BLAKE2b over the encoded bytes: equal files."""


def mark_image(image: Image.Image, encoded: bytes) -> ImageMark:
    """The mark of an image.

    Args:
        image: RGB, upright.
        encoded: the bytes that it was decoded from.
    """
    digest = hashlib.blake2b(encoded, digest_size=8).digest()
    return ImageMark(
        perceptual_hash(image),
        image.resize((4, 4), Image.Resampling.BOX).tobytes(),
        int.from_bytes(digest, "little"),
    )


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that scaling and compressing an image hardly change ("pHash", Zauner 2010).

    The signs of the 8 x 8 lowest frequencies of the grey image at 32 x 32 pixels, relative to
    their median; the most significant bit is the constant term. Colour does not count.
    """
    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    values: NDArray[np.float64] = _COSINES @ np.asarray(grey, dtype=np.float64) @ _COSINES.T
    bits = values.ravel() > np.median(values) + _FLAT
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
