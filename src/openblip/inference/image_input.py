"""From what a user calls an image to batches of tensors."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from openblip.data.images import Encoded, ImageSource, open_image
from openblip.data.parallel import default_threads, ordered_map
from openblip.data.transforms import eval_transform
from openblip.errors import DataError

Images = ImageSource | Iterable[ImageSource]
"""One image or several: paths, Pillow images, uint8 arrays (height, width, 3), encoded bytes, open
files."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class TriedBatch(Generic[Item]):
    """Some items, in order, divided into those whose images could be read and the others."""

    items: list[Item]
    """Items whose images stand in `images`, in their order."""
    images: Float[Tensor, "items 3 size size"]
    """Normalised."""
    failures: list[tuple[Item, DataError]]
    """The others, and why."""


def as_sources(images: Images) -> Iterable[ImageSource]:
    """The images one by one; a single one is a list of one, and so is what is no image at all."""
    if isinstance(images, np.ndarray):
        is_list = images.ndim > 3 or images.dtype.kind in "OU"
        return list(images) if is_list else [images]
    # Iterating over an open file would give its lines, over bytes or a tensor numbers.
    is_one = isinstance(images, str | Encoded | os.PathLike | Image.Image | Mapping | Tensor)
    if is_one or hasattr(images, "read") or not isinstance(images, Iterable):
        return [cast(ImageSource, images)]
    return cast(Iterable[ImageSource], images)


def image_batches(
    sources: Iterable[ImageSource], size: int, batch_size: int
) -> Iterator[Float[Tensor, "batch 3 size size"]]:
    """Normalised images of size x size pixels, in order, decoded by threads ahead of their use.

    Only the next two batches are held, so that `sources` may be endless.

    Raises:
        DataError: if an image cannot be read; names it.
    """
    return prepared_batches(sources, partial(eval_transform, size=size), batch_size)


def prepared_batches(
    sources: Iterable[ImageSource], prepare: Callable[[Image.Image], Tensor], batch_size: int
) -> Iterator[Float[Tensor, "batch 3 height width"]]:
    """As `image_batches`, with another way from an RGB image to a tensor."""

    def prepared(source: ImageSource) -> Tensor:
        return prepare(open_image(source))

    tensors = ordered_map(prepared, sources, default_threads(), num_ahead=2 * batch_size)
    while batch := list(islice(tensors, batch_size)):
        yield torch.stack(batch)


def tried_batches(
    items: Iterable[Item], open_item: Callable[[Item], Image.Image], size: int, batch_size: int
) -> Generator[TriedBatch[Item], None, None]:
    """As `image_batches`, but an image that cannot be read does not stop the others.

    Args:
        items: taken from the consumer's thread; may be endless.
        open_item: the image of an item; called from threads.
        size: height and width that the images get, in pixels.
        batch_size: items at a time.
    """

    def prepare(item: Item) -> tuple[Item, Tensor | DataError]:
        try:
            return item, eval_transform(open_item(item), size)
        except DataError as error:
            return item, error

    tried = ordered_map(prepare, items, default_threads(), num_ahead=2 * batch_size)
    try:
        while batch := list(islice(tried, batch_size)):
            read = [(item, found) for item, found in batch if isinstance(found, Tensor)]
            yield TriedBatch(
                items=[item for item, _ in read],
                images=torch.stack([i for _, i in read]) if read else torch.empty(0, 3, size, size),
                failures=[(item, why) for item, why in batch if isinstance(why, DataError)],
            )
    finally:
        tried.close()
