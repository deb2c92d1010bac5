"""Keys and values of an image's cross-attention, computed once and used by every text."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from openblip.errors import RecipeError

LayerKeys = Float[Tensor, "images heads patches head_dim"]


@dataclass
class AttentionRecord:
    """Where a pass leaves the cross-attention probabilities of one layer.

    The pass computes them one by one for this layer and goes on from them, so that they belong to
    its graph: a result of the pass has a gradient with respect to them, whether or not the model's
    weights have one.
    """

    layer: int
    """Which text layer, counted from 0."""
    probabilities: Float[Tensor, "rows heads tokens patches"] | None = None
    """Of the latest pass that read the memory: how much each token attends to each patch."""


class LayerMemory(NamedTuple):
    """What one layer's cross-attention reads of an `ImageMemory`."""

    keys: LayerKeys
    values: LayerKeys
    mask: Bool[Tensor, "images 1 1 patches"] | None = None
    record: AttentionRecord | None = None


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
    record: AttentionRecord | None = None
    """What of the attention to it is written down; nothing as a rule."""

    @property
    def images(self) -> int:
        """How many images are remembered."""
        return self.keys[0].shape[0]

    def layer(self, number: int) -> LayerMemory:
        """The part of one text layer."""
        mask = None if self.mask is None else self.mask[:, None, None]
        is_recorded = self.record is not None and self.record.layer == number
        record = self.record if is_recorded else None
        return LayerMemory(self.keys[number], self.values[number], mask, record)

    def recording(self, layer: int) -> tuple["ImageMemory", AttentionRecord]:
        """The same memory, and the record that a pass which reads it fills.

        Args:
            layer: whose attention is recorded, counted from 0.

        Raises:
            RecipeError: if there is no such layer.
        """
        if not 0 <= layer < len(self.keys):
            raise RecipeError(
                f"layer {layer}: this model's text layers are numbered 0 to {len(self.keys) - 1}"
            )
        record = AttentionRecord(layer)
        return replace(self, record=record), record

    def select(self, index: Int[Tensor, " rows"]) -> "ImageMemory":
        """The memory whose row i is this one's row `index[i]`; gradients flow back to it."""
        return ImageMemory(
            tuple(k.index_select(0, index) for k in self.keys),
            tuple(v.index_select(0, index) for v in self.values),
            None if self.mask is None else self.mask.index_select(0, index),
            self.record,
        )


class Memories(NamedTuple):
    """What the image-grounded encoder and decoder attend to; one object when shared."""

    encoder: ImageMemory
    decoder: ImageMemory
