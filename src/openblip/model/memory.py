"""Keys and values of an image's cross-attention, computed once and used by every text."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

LayerKeys = Float[Tensor, "images heads patches head_dim"]


class LayerMemory(NamedTuple):
    """What one layer's cross-attention reads of an `ImageMemory`."""

    keys: LayerKeys
    values: LayerKeys
    mask: Bool[Tensor, "images 1 1 patches"] | None = None


@dataclass(frozen=True)
class ImageMemory:
    """Cross-attention keys and values of some images, per text layer.

    They depend on the image alone. A batch of texts has `images * g` rows grouped by image: row r
    attends to image r // g, for any whole g, without a copy of keys or values.
    """

    keys: tuple[LayerKeys, ...]
    values: tuple[LayerKeys, ...]
    mask: Bool[Tensor, "images patches"] | None = None
    """True = attend; None attends to every token, as image tokens have no padding."""

    @property
    def images(self) -> int:
        """How many images are remembered."""
        return self.keys[0].shape[0]

    def layer(self, number: int) -> LayerMemory:
        """The part of one text layer."""
        mask = None if self.mask is None else self.mask[:, None, None]
        return LayerMemory(self.keys[number], self.values[number], mask)

    def select(self, index: Int[Tensor, " rows"]) -> "ImageMemory":
        """The memory whose row i is this one's row `index[i]`; gradients flow back to it."""
        return ImageMemory(
            tuple(k.index_select(0, index) for k in self.keys),
            tuple(v.index_select(0, index) for v in self.values),
            None if self.mask is None else self.mask.index_select(0, index),
        )


class Memories(NamedTuple):
    """What the image-grounded encoder and decoder attend to; one object when shared."""

    encoder: ImageMemory
    decoder: ImageMemory
