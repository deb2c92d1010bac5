"""Linear layers that take the fastest float32 product of an x86 processor.

PyTorch sends float32 products to MKL, which uses half of the vector width of a processor that is
not Intel's: oneDNN, which PyTorch has too, is there twice as fast (`docs/log.md`). Its product is
reached through the operator that `torch.compile` puts into graphs; it has no gradient of its own,
so `_Product` gives it one, of the same products.
"""

from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Multiply-adds from which a product with a gradient is oneDNN's: in smaller ones, what it costs to
# call an autograd function written in Python is more than the product saves.
_WORTH_A_FUNCTION = 2**22


class Linear(nn.Linear):
    """`torch.nn.Linear`; a state dict, and a gradient, are the same."""

    def forward(self, hidden: Float[Tensor, "*rows inner"]) -> Float[Tensor, "*rows outer"]:
        return linear(hidden, self.weight, self.bias)

    def with_gelu(self, hidden: Float[Tensor, "*rows inner"]) -> Float[Tensor, "*rows outer"]:
        """The exact GELU of the outputs, applied where they are made."""
        if not torch.is_grad_enabled() and _takes_onednn(hidden, self.weight):
            return onednn_linear(hidden, self.weight, self.bias, "gelu")
        return F.gelu(self(hidden))


def linear(
    hidden: Float[Tensor, "*rows inner"],
    weight: Float[Tensor, "outer inner"],
    bias: Float[Tensor, " outer"] | None,
) -> Float[Tensor, "*rows outer"]:
    """`F.linear`, up to rounding; a gradient has no gradient itself."""
    if _takes_onednn(hidden, weight):
        if not torch.is_grad_enabled():
            return onednn_linear(hidden, weight, bias)
        if hidden.numel() * len(weight) >= _WORTH_A_FUNCTION:
            out: Tensor = _Product.apply(hidden, weight, bias)  # type: ignore[no-untyped-call]
            return out
    return F.linear(hidden, weight, bias)


def onednn_linear(
    hidden: Float[Tensor, "*rows inner"],
    weight: Float[Tensor, "outer inner"],
    bias: Float[Tensor, " outer"] | None = None,
    activation: Literal["none", "gelu"] = "none",
) -> Float[Tensor, "*rows outer"]:
    """The same by oneDNN, for float32 on a processor with `has_onednn`; without a gradient."""
    # The last "none" names the exact GELU, not the tanh approximation.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, activation, [], "none")
    return out


class _Product(torch.autograd.Function):
    """`onednn_linear` with a gradient, computed once more by `onednn_linear`.

    The operator copies its first operand unless it is contiguous; the second may be transposed.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for_hidden, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(hidden if for_weight else None, weight if for_hidden else None)
        return onednn_linear(hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        _, _, for_bias = ctx.needs_input_grad
        grad = grad.contiguous()
        by_row = grad.reshape(-1, grad.shape[-1])
        return (
            onednn_linear(grad, weight.t()) if weight is not None else None,
            # This way round, rather than transposed, it comes out laid out as the weight is.
            onednn_linear(by_row.t(), hidden.reshape(-1, hidden.shape[-1]).t())
            if hidden is not None
            else None,
            by_row.sum(0) if for_bias else None,
        )


@cache
def has_onednn() -> bool:
    """Whether this is an x86 processor, and a PyTorch with the operator."""
    return (
        bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _takes_onednn(hidden: Tensor, weight: Tensor) -> bool:
    return (
        # Asked first: whatever else is asked, a compiled graph would be guarded by.
        not torch.compiler.is_compiling()
        and hidden.device.type == "cpu"
        and hidden.dtype == weight.dtype == torch.float32
        and has_onednn()
        # A quantised weight is a tensor of another class, with a product of its own.
        and type(weight) in (Tensor, nn.Parameter)
        and hidden.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )
