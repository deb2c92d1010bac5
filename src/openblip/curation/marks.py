"""What is kept of an image to recognise it again, as columns of a table and as arrays.

A mark is a perceptual hash, a thumbnail and a digest of the bytes.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openblip.runtime.errors import DataError
from openblip.runtime.threads import default_threads
from openblip.sources.images import open_image
from openblip.sources.row_images import encoded_image, image_rows
from openblip.table.columns import column_state, compute_columns
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

MARKS_KEY = "image_hash"
"""Entry of a table's metadata, as of `compute_columns`."""
EMBEDDING_KEY = "image_embedding"
"""Column with embeddings, and the entry of the metadata that says of which model."""
_COLUMNS = ("image_hash", "image_thumbnail", "image_digest", "image_error")
# Changes with the way in which marks are computed.
MARK_SETTINGS = {"hash": "phash-64", "thumbnail": "box-4x4", "digest": "blake2b-64"}


def mark_images(
    table: PairTable, *, num_threads: int | None = None, show_progress: bool = True
) -> int:
    """Number of images that were read; every row has its marks afterwards, or why it has none.

    Adds the columns `image_hash` and `image_digest` (uint64), `image_thumbnail` (48 bytes) and
    `image_error` (why an image cannot be read). Resumes, and extends as the table grows.
    """
    return compute_columns(
        table,
        MARKS_KEY,
        MARK_SETTINGS,
        lambda rows: _marks_of(table, rows),
        num_threads=num_threads or default_threads(),
        show_progress=show_progress,
    )


@dataclass(frozen=True, eq=False)
class Marks:
    """What the images of some rows are recognised by; position i of every array is one row."""

    readable: NDArray[np.bool_]
    """Whether there is an image."""
    hashes: NDArray[np.uint64]
    thumbnails: NDArray[np.uint8]
    """(rows, 48)."""
    digests: NDArray[np.uint64]
    embeddings: NDArray[np.float32] | None = None
    """(rows, embed_dim), unit length or zero; None where they are not needed."""

    @classmethod
    def read(cls, table: PairTable, with_embeddings: bool) -> Self:
        """The marks of all rows; 64 bytes for each, and the embeddings."""
        columns = [*_COLUMNS[:3], *([EMBEDDING_KEY] if with_embeddings else [])]
        parts: list[tuple[NDArray[Any], ...]] = [_no_marks(with_embeddings)]
        parts = [_arrays(batch) for batch in table.scan(columns)] or parts
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def take(self, rows: NDArray[np.int64]) -> "Marks":
        """The marks of some rows."""
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        return Marks(
            self.readable[rows],
            self.hashes[rows],
            self.thumbnails[rows],
            self.digests[rows],
            embeddings,
        )


def embedding_model(table: PairTable) -> dict[str, Any]:
    """Fingerprint and other settings of the model whose embeddings a table holds.

    Raises:
        DataError: it has none, or not of all rows.
    """
    state = column_state(table, EMBEDDING_KEY)
    if state.get("rows") != len(table):
        raise DataError(f"{table.uri} has no image embeddings of all its rows: give --model")
    settings: dict[str, Any] = state["settings"]
    return settings


def count_errors(table: PairTable) -> Counter[str]:
    """How many images cannot be read, by split."""
    errors: Counter[str] = Counter()
    for batch in table.scan(["split", "image_error"]):
        splits = batch["split"].filter(batch["image_error"].is_valid())
        errors.update(splits.to_pylist())
    return errors


def _marks_of(table: PairTable, rows: range) -> "pa.Table":
    import pyarrow as pa

    values: dict[str, list[object]] = {name: [] for name in _COLUMNS}
    for row in image_rows(table, rows):
        mark: tuple[object, ...]
        try:
            encoded = encoded_image(row["image"], row["image_uri"])
            found = mark_image(open_image(encoded), encoded)
            mark = (found.hash, found.thumbnail, found.digest, None)
        except (DataError, OSError) as error:
            mark = (None, None, None, str(error)[:500])
        for name, value in zip(_COLUMNS, mark, strict=True):
            values[name].append(value)
    types = [pa.uint64(), pa.binary(THUMBNAIL_BYTES), pa.uint64(), pa.string()]
    schema = pa.schema(list(zip(_COLUMNS, types, strict=True)))
    return pa.table(values, schema=schema)


def _arrays(batch: "pa.RecordBatch") -> tuple[NDArray[Any], ...]:
    readable = batch["image_hash"].is_valid().to_numpy(zero_copy_only=False)
    thumbnails = batch["image_thumbnail"].fill_null(bytes(THUMBNAIL_BYTES))
    joined = b"".join(thumbnails.to_pylist())
    # Filled, as Arrow makes floats of whole numbers with nulls: these hold 53 of a hash's 64 bits.
    arrays = (
        readable,
        batch["image_hash"].fill_null(0).to_numpy(),
        np.frombuffer(joined, dtype=np.uint8).reshape(-1, THUMBNAIL_BYTES),
        batch["image_digest"].fill_null(0).to_numpy(),
    )
    if EMBEDDING_KEY not in batch.schema.names:
        return arrays
    return (*arrays, embeddings_of(batch[EMBEDDING_KEY]))


def embeddings_of(column: Any) -> NDArray[np.float32]:
    """The numbers (rows, width) of a column, of unit length; zeros where there is no embedding."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    width = array.type.list_size
    values = np.zeros((len(array), width), np.float32)
    known = array.is_valid().to_numpy(zero_copy_only=False)
    # `flatten` leaves out what lies under a null.
    values[known] = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    # What float16 lost of the unit length would be missing from the cosine of equal images.
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    values /= lengths
    return values


def _no_marks(with_embeddings: bool) -> tuple[NDArray[Any], ...]:
    empty = (
        np.zeros(0, dtype=bool),
        np.zeros(0, dtype=np.uint64),
        np.zeros((0, THUMBNAIL_BYTES), dtype=np.uint8),
        np.zeros(0, dtype=np.uint64),
    )
    return (*empty, np.zeros((0, 1), dtype=np.float32)) if with_embeddings else empty


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
