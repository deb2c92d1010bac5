"""A PNG encoder whose bytes depend on nothing but the pixels.

Compressors differ between zlib versions and builds; stored (uncompressed) blocks are fully
fixed by the formats (RFC 2083 for PNG, RFC 1950 and 1951 for zlib and deflate).
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_BLOCK = 65535


def encode_indexed_png(indices: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """The PNG file of an image of palette indices.

    Args:
        indices: (height, width), every value below the number of colours.
        palette: (colours, 3) RGB, at most 256 colours.
    """
    height, width = indices.shape
    # Each row starts with its filter type, 0 = none.
    rows = np.zeros((height, width + 1), dtype=np.uint8)
    rows[:, 1:] = indices
    # 8 bits per pixel, colour type 3 = palette.
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", palette.tobytes()),
            _chunk(b"IDAT", _stored_zlib(rows.tobytes())),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _stored_zlib(data: bytes) -> bytes:
    parts = [b"\x78\x01"]
    for start in range(0, len(data), _MAX_BLOCK):
        block = data[start : start + _MAX_BLOCK]
        is_last = start + _MAX_BLOCK >= len(data)
        parts.append(struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF) + block)
    parts.append(struct.pack(">I", zlib.adler32(data)))
    return b"".join(parts)
