"""From what a user calls an image to batches of tensors.

Images after the image encoder, and what is derived from them, computed when first asked for.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from openblip.batches.transforms import eval_transform
from openblip.inference.texts import finite
from openblip.model import ImageMemory, Med
from openblip.model.albef import Albef
from openblip.model.dual import DualEncoder
from openblip.runtime.errors import DataError, MissingHead
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.images import Encoded, ImageSource, open_image

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


# In these, encoder and decoder have one cross-attention (BLIP, table 3).
_SHARED_CROSS_ATTENTION = ("all", "all_but_self_attention")


@torch.no_grad()
def embed_images(
    model: Med | Albef | DualEncoder, hidden: Float[Tensor, "images patches width"]
) -> Float[Tensor, "images embed"]:
    """Unit-length embeddings of encoded images, on the model's device.

    Raises:
        MissingHead: if the model has no itc head.
        CheckpointError: if a number is none.
    """
    return finite(model.embed_images(hidden), "image embeddings")


class EncodedImages:
    """Patch tokens of some images, and their embeddings and cross-attention keys and values.

    Generation and scoring of any number of texts use the same keys and values: for an image of
    384 px in the base size they take 42 MB, and longer to compute than a caption's token.
    """

    def __init__(self, model: Med | Albef, hidden: Float[Tensor, "images patches width"]) -> None:
        self.model = model
        self.hidden = hidden

    def __len__(self) -> int:
        return len(self.hidden)

    @cached_property
    def embed(self) -> Float[Tensor, "images embed"] | None:
        """Unit-length embeddings; None where the model has no itc head."""
        with torch.no_grad():
            has_head = "itc" in self.model.config.heads
            return embed_images(self.model, self.hidden) if has_head else None

    @cached_property
    def encoder_memory(self) -> ImageMemory:
        """What a text that is matched attends to.

        Raises:
            MissingHead: if the model cannot match.
        """
        self.model.require("itm")
        if self._shares:
            return self.decoder_memory
        with torch.no_grad():
            return self.model.text.remember(self.hidden)

    @cached_property
    def decoder_memory(self) -> ImageMemory:
        """What a text that is generated attends to.

        Raises:
            MissingHead: if the model cannot generate.
        """
        with torch.no_grad():
            return self.med.text.remember(self.hidden, causal=True)

    @property
    def med(self) -> Med:
        """The model, which writes texts.

        Raises:
            MissingHead: if it cannot.
        """
        if not isinstance(self.model, Med):
            raise MissingHead("ALBEF writes no texts; load a pre-trained or captioner checkpoint")
        self.model.require("lm")
        return self.model

    @property
    def _shares(self) -> bool:
        config = self.model.config
        return "lm" in config.heads and config.text.sharing in _SHARED_CROSS_ATTENTION
