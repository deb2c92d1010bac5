"""Texts one behind the other, with their padding or without it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def removes_padding(device: torch.device) -> bool:
    """Whether texts on a device are worth packing.

    On an accelerator it costs more to wait for the number of tokens than padding costs.
    """
    return device.type == "cpu" and not torch.compiler.is_compiling()


@dataclass(frozen=True)
class Packing:
    """Which places of padded texts (rows, tokens) stand one behind the other, and in which order.

    Layers that treat every token alike take packed states, attention takes padded ones.
    """

    rows: int
    """How many texts."""
    tokens: int
    """Of each text, padding included."""
    places: Int[Tensor, " packed"] | None = None
    """Row by row, numbers in 0 to rows * tokens; None, all of them."""

    @staticmethod
    def without_padding(mask: Bool[Tensor, "rows tokens"]) -> "Packing":
        """Of the places where the mask is True; on an accelerator it waits for the device."""
        places = mask.flatten().nonzero()[:, 0]
        rows, tokens = mask.shape
        # Without padding the states are packed as they are: no copy.
        return Packing(rows, tokens, None if len(places) == mask.numel() else places)

    @property
    def count(self) -> int:
        """How many places."""
        return self.rows * self.tokens if self.places is None else len(self.places)

    def pack(self, padded: Float[Tensor, "rows tokens width"]) -> Float[Tensor, "packed width"]:
        """The states of the places."""
        flat = padded.flatten(0, 1)
        if self.places is None:
            return flat
        out: Tensor = _Take.apply(flat, self.places)  # type: ignore[no-untyped-call]
        return out

    def pad(self, packed: Float[Tensor, "packed width"]) -> Float[Tensor, "rows tokens width"]:
        """The inverse, with zeros elsewhere."""
        if self.places is not None:
            packed = _Put.apply(packed, self.places, self.rows * self.tokens)  # type: ignore[no-untyped-call]
        return packed.view(self.rows, self.tokens, packed.shape[1])


class _Take(torch.autograd.Function):
    """Some rows; as none is taken twice, its gradient is `_Put`, without a sum."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, places: Tensor) -> Tensor:
        # PyTorch's own gradient of `index_select` adds rows up, as they might repeat.
        ctx.save_for_backward(places)
        ctx.rows = len(flat)
        return flat.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _put(grad, places, ctx.rows), None


class _Put(torch.autograd.Function):
    """The inverse, with zeros elsewhere; the rows themselves need not be kept for its gradient."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, places: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(places)
        return _put(packed, places, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


def _put(packed: Tensor, places: Tensor, rows: int) -> Tensor:
    return packed.new_zeros(rows, packed.shape[1]).index_copy_(0, places, packed)


def packed_sizes(packings: Sequence[Packing]) -> list[int]:
    """How many places each has, to split states by."""
    return [each.count for each in packings]


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """The rows of all pieces; of a single one without a copy."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
