"""From what a user calls an image to batches of tensors."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from openblip.data.images import ImageSource, open_image
from openblip.data.parallel import default_threads, ordered_map
from openblip.data.transforms import eval_transform

Images = ImageSource | Iterable[ImageSource]
"""One image or several: paths, Pillow images, uint8 arrays (height, width, 3), encoded bytes."""


def as_sources(images: Images) -> Iterable[ImageSource]:
    """The images one by one; a single one is a list of one."""
    if isinstance(images, str | Path | bytes | Image.Image):
        return [images]
    if isinstance(images, np.ndarray):
        return [images] if images.ndim <= 3 else list(images)
    return images


def image_batches(
    sources: Iterable[ImageSource], size: int, batch_size: int
) -> Iterator[Float[Tensor, "batch 3 size size"]]:
    """Normalised images of size x size pixels, in order, decoded by threads ahead of their use.

    Only the next two batches are held, so that `sources` may be endless.

    Raises:
        DataError: if an image cannot be read; names it.
    """
    prepare = partial(_prepared, size=size)
    tensors = ordered_map(prepare, sources, default_threads(), num_ahead=2 * batch_size)
    while batch := list(islice(tensors, batch_size)):
        yield torch.stack(batch)


def _prepared(source: ImageSource, size: int) -> Float[Tensor, "3 size size"]:
    return eval_transform(open_image(source), size)
