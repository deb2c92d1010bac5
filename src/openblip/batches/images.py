"""Images of rows as tensors: one at a time, stacked for a batch, or in order and made ahead."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from openblip.batches.augmentation import Augmentation
from openblip.batches.image_states import RowStates
from openblip.batches.transforms import eval_transform, train_transform
from openblip.runtime.errors import DataError
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.images import UndecodedImage, open_image
from openblip.sources.row_images import encoded_image
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("id", "image", "image_uri")
"""What a row's image is read from."""
# What reading or decoding an image may raise.
_UNREADABLE = (DataError, OSError, ValueError)


class StoredRow(NamedTuple):
    """A row with an image, as it is stored."""

    number: int
    id: str
    image: bytes | None
    image_uri: str | None
    table: PairTable

    def tensor(
        self,
        image_size: int,
        augmentation: Augmentation | None = None,
        key: Sequence[int] = (),
        scaled_decoding: bool = False,
    ) -> Tensor:
        """Its image, float32 (3, size, size); at the transform of evaluation without augmentation.

        Raises:
            DataError, OSError, ValueError: it cannot be read.
        """
        encoded = encoded_image(self.image, self.image_uri)
        if augmentation is None:
            return eval_transform(open_image(encoded), image_size)
        image = UndecodedImage(encoded) if scaled_decoding else open_image(encoded)
        return train_transform(image, image_size, augmentation, np.random.default_rng(key))


def every_image(
    table: PairTable, rows: Sequence[int] | np.ndarray, batch_size: int, image_size: int
) -> Iterator[Tensor]:
    """Yields the images of rows in their order, a batch at a time, at the transform of evaluation.

    Args:
        table: where the images are.
        rows: row numbers, in any order, which may repeat.
        batch_size: at least 1.
        image_size: pixels of a side.

    Yields:
        float32 (images, 3, size, size), normalised; read and decoded ahead by threads.

    Raises:
        DataError: an image cannot be read; names the row.
        StorageError: the object store cannot be reached.
    """
    return every_image_of(table, _parts(rows, batch_size), image_size)


def every_image_of(
    table: PairTable, batches: Iterable[np.ndarray], image_size: int
) -> Iterator[Tensor]:
    """As `every_image`, where batches differ in size: one tensor for the row numbers of each.

    Raises:
        DataError: an image cannot be read; names the row.
    """

    def load(rows: np.ndarray) -> Tensor:
        images = empty_images(len(rows), image_size, pin_memory=False)
        found = stored_rows(table, rows, table.take(rows, IMAGE_COLUMNS))
        for place, row in enumerate(found):
            try:
                images[place] = row.tensor(image_size)
            except _UNREADABLE as error:
                raise DataError(f"row {row.number} of {table.uri}: {error}") from error
        return images

    threads = default_threads()
    return ordered_map(load, batches, threads, threads + 2)


def read_images(
    table: PairTable,
    rows: np.ndarray,
    image_size: int,
    augmentation: Augmentation | None,
    keys: Sequence[Sequence[int]],
    states: RowStates | None = None,
) -> tuple[tuple[str, ...], Tensor]:
    """Ids and images of some rows, which may repeat.

    Args:
        table: where they are.
        rows: int64 (rows,).
        image_size: pixels of a side.
        augmentation: None for the plain resizing of evaluation.
        keys: what decides each image's augmentation, one sequence per row.
        states: those of the images, which are given in their place.

    Returns:
        The ids, and float32 (rows, 3, size, size), normalised; or float16 (rows, patches, width).

    Raises:
        DataError: an image cannot be read; names the row.
    """
    if states is not None:
        return tuple(table.take(rows, ["id"])["id"].to_pylist()), states.read(rows)
    found = list(stored_rows(table, rows, table.take(rows, IMAGE_COLUMNS)))
    images = empty_images(len(rows), image_size, pin_memory=False)
    return tuple(row.id for row in found), stacked_images(found, keys, images, augmentation)


def _parts(rows: Sequence[int] | np.ndarray, size: int) -> Iterator[np.ndarray]:
    wanted = np.asarray(rows, dtype=np.int64)
    return (wanted[at : at + size] for at in range(0, len(wanted), size))


def stored_rows(table: PairTable, rows: np.ndarray, found: "pa.Table") -> Iterator[StoredRow]:
    """What was read of rows of these numbers; images need not be among it."""
    read = set(found.column_names)
    columns = (
        found[name].to_pylist() if name in read else [None] * len(rows) for name in IMAGE_COLUMNS
    )
    for number, key, image, uri in zip(rows.tolist(), *columns, strict=True):
        yield StoredRow(number, key, image, uri, table)


def stacked_images(
    rows: Sequence[StoredRow],
    keys: Sequence[Sequence[int]],
    images: Tensor,
    augmentation: Augmentation | None,
    scaled_decoding: bool = False,
) -> Tensor:
    """`images` (rows, 3, size, size), filled; `keys` decide the augmentation of each.

    Raises:
        DataError: an image cannot be read; names the row.
    """
    # Each into its place: to stack them would copy the batch, and into memory that is not pinned.
    for place, (row, key) in enumerate(zip(rows, keys, strict=True)):
        try:
            images[place] = row.tensor(images.shape[-1], augmentation, key, scaled_decoding)
        except _UNREADABLE as error:
            where = f"row {row.number} (id {row.id!r}) of {row.table.uri}"
            raise DataError(f"{where}: {error}") from error
    return images


def empty_images(count: int, size: int, pin_memory: bool) -> Tensor:
    """Room for images of a batch, (count, 3, size, size): of any content, as all are written."""
    return torch.empty((count, 3, size, size), pin_memory=pin_memory)
