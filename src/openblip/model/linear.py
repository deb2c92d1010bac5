"""Linear layers that take the fastest float32 product of an x86 processor where no gradient is due.

PyTorch sends float32 products to MKL, which uses half of the vector width of a processor that is
not Intel's: oneDNN, which PyTorch has too, is there twice as fast (`docs/log.md`). Its product is
reached through the operator that `torch.compile` puts into graphs; it has no gradient, so training
goes the usual way.
"""

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Linear(nn.Linear):
    """`torch.nn.Linear`; a state dict, and a gradient, are the same."""

    def forward(self, hidden: Float[Tensor, "*rows inner"]) -> Float[Tensor, "*rows outer"]:
        return linear(hidden, self.weight, self.bias)

    def with_gelu(self, hidden: Float[Tensor, "*rows inner"]) -> Float[Tensor, "*rows outer"]:
        """The exact GELU of the outputs, applied where they are made."""
        if _takes_onednn(hidden, self.weight):
            return onednn_linear(hidden, self.weight, self.bias, "gelu")
        return F.gelu(self(hidden))


def linear(
    hidden: Float[Tensor, "*rows inner"],
    weight: Float[Tensor, "outer inner"],
    bias: Float[Tensor, " outer"] | None,
) -> Float[Tensor, "*rows outer"]:
    """`F.linear`, up to rounding."""
    if _takes_onednn(hidden, weight):
        return onednn_linear(hidden, weight, bias)
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
        and not torch.is_grad_enabled()
        and hidden.device.type == "cpu"
        and hidden.dtype == weight.dtype == torch.float32
        and has_onednn()
        # A quantised weight is a tensor of another class, with a product of its own.
        and type(weight) in (Tensor, nn.Parameter)
        and hidden.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )
