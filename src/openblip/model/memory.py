"""Keys and values of an image's cross-attention, computed once and used by every text.

Or the image's states in their place, where a few tokens read it: then making them is most of the
work (`MemoryAttention.reads_states`).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks

from openblip.runtime.errors import RecipeError

LayerKeys = Float[Tensor, "images heads patches head_dim"]
"""Of states one head, as wide as they are, which all heads of the attention share."""


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
    mask: Bool[Tensor, "_ 1 1 patches"] | None = None
    record: AttentionRecord | None = None
    rows: Int[Tensor, " attended"] | None = None
    """Which rows of keys and values the images are; None, each in its place."""
    keeps_copies: bool = False
    """Whether the backward pass gets the copies of these rows, or makes them again."""
    is_projected: bool = True
    """Whether these are keys and values; else both are the states that they would be made of."""

    @property
    def images(self) -> int:
        """How many images are attended to."""
        return self.keys.shape[0] if self.rows is None else self.rows.shape[0]

    @contextmanager
    def read(self) -> Iterator[tuple[LayerKeys, LayerKeys]]:
        """Keys and values of the images.

        Of a selection they are copies, and unless `keeps_copies`, what is computed with them within
        the context does not keep these for its backward pass, which copies them again.
        """
        if self.rows is None:
            yield self.keys, self.values
            return
        wholes = self.keys, self.values
        copies = [cast("Tensor", _Rows.apply(whole, self.rows)) for whole in wholes]  # type: ignore[no-untyped-call]

        # Autograd hands a hook the very tensors that an operation read, so that a copy is known by
        # identity; all else that is saved here (queries, results) stays as it is. Shapes would not
        # do: queries can have the same. A view of a copy is kept as any tensor is: that costs
        # memory, and is not wrong.
        def keep(saved: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
            for whole, copy in zip(wholes, copies, strict=True):
                if saved is copy:
                    return whole, self.rows
            return saved

        # A checkpointed layer's own hooks are around these, and PyTorch asks the innermost alone.
        with nullcontext() if self.keeps_copies else saved_tensors_hooks(keep, _copied_again):
            yield copies[0], copies[1]


def _copied_again(kept: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    whole, rows = kept
    return whole.index_select(0, rows)


class _Rows(Function):
    """Rows of keys or values, which may be some more than once.

    The gradient is summed with a token's heads side by side, as fused attention leaves it: seven
    times as fast as PyTorch's own on a processor.
    """

    @staticmethod
    def forward(ctx: Any, whole: Tensor, rows: Tensor) -> Tensor:
        # The number of images alone, not `whole`: saved, it would go through the hooks of `read`.
        ctx.save_for_backward(rows)
        ctx.images = whole.shape[0]
        return whole.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        # Rows repeat, so that gradients are added up; in the layout in which they come, the rows to
        # be added are contiguous.
        by_token = grad.transpose(1, 2)
        total = grad.new_zeros(ctx.images, grad.shape[1:].numel())
        total = total.index_add(0, rows, by_token.flatten(1))
        return total.view(-1, *by_token.shape[1:]).transpose(1, 2), None


@dataclass(frozen=True)
class ImageMemory:
    """Cross-attention keys and values of some images, per text layer.

    They depend on the image alone. A batch of texts has `images * g` rows grouped by image: row r
    attends to image r // g, for any whole g, without a copy of keys or values.
    """

    keys: tuple[LayerKeys, ...]
    values: tuple[LayerKeys, ...]
    mask: Bool[Tensor, "_ patches"] | None = None
    """True = attend; None attends to every token, as image tokens have no padding."""
    record: AttentionRecord | None = None
    """What of the attention to it is written down; nothing as a rule."""
    rows: Int[Tensor, " attended"] | None = None
    """Which rows of keys and values (not of `mask`) the images are; None, each in its place."""
    keeps_copies: bool = False
    """As of `LayerMemory`; for a layer that the backward pass computes again as a whole."""
    is_projected: bool = True
    """As of `LayerMemory`; of all layers."""

    @classmethod
    def of_states(
        cls,
        hidden: Float[Tensor, "images patches memory_width"],
        num_layers: int,
        mask: Bool[Tensor, "images patches"] | None = None,
    ) -> "ImageMemory":
        """The states themselves, for every layer, and so nothing that is computed."""
        shared = (hidden[:, None],) * num_layers
        return cls(shared, shared, mask, is_projected=False)

    @property
    def images(self) -> int:
        """How many images are remembered."""
        return self.layer(0).images

    def layer(self, number: int) -> LayerMemory:
        """The part of one text layer."""
        mask = None if self.mask is None else self.mask[:, None, None]
        is_recorded = self.record is not None and self.record.layer == number
        record = self.record if is_recorded else None
        keys, values = self.keys[number], self.values[number]
        copies = self.rows, self.keeps_copies
        return LayerMemory(keys, values, mask, record, *copies, self.is_projected)

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
        assert self.is_projected, "states have no probabilities that a gradient could go through"
        record = AttentionRecord(layer)
        return replace(self, record=record), record

    def select(self, index: Int[Tensor, " rows"]) -> "ImageMemory":
        """The memory whose row i is this one's row `index[i]`; gradients flow back to it.

        Keys and values are copied: at once, for reading often, or where there are gradients layer
        by layer when they are read, and again in the backward pass, so that copies need no memory.
        """
        # The mask is small: it is copied at once, in both cases.
        mask = None if self.mask is None else self.mask.index_select(0, index)
        rows = index if self.rows is None else self.rows.index_select(0, index)
        selection = replace(self, mask=mask, rows=rows)
        return selection if torch.is_grad_enabled() else selection._copied()

    def _copied(self) -> "ImageMemory":
        assert self.rows is not None
        # States are the same tensor in every place: copied once.
        wholes = {id(each): each for each in (*self.keys, *self.values)}
        copies = {name: each.index_select(0, self.rows) for name, each in wholes.items()}
        keys, values = (
            tuple(copies[id(each)] for each in layers) for layers in (self.keys, self.values)
        )
        return replace(self, keys=keys, values=values, rows=None)


class Memories(NamedTuple):
    """What the image-grounded encoder and decoder attend to; one object when shared."""

    encoder: ImageMemory
    decoder: ImageMemory
