"""What an accelerator would run where a processor runs something else, for tensors without numbers.

Fake tensors take the processor's kernels. The choices that decide how much is kept for the
backward pass are made here as PyTorch makes them on CUDA.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.model import linear, vision

aten = torch.ops.aten


@contextmanager
def accelerator_kernels() -> Iterator[None]:
    """Within it, attention is fused, and layer norms compute in float32 under autocast.

    - Attention without a mask in bfloat16 goes to the flash kernel, all other to the
      memory-efficient one; both keep the output and one number per query, with dropout too, where
      a processor keeps the probabilities.
    - Under autocast CUDA's layer norm reads and gives float32, a processor's the type that it gets.
    - The teacher encodes all images at once.
    - Products are no functions of ours that compute again what they read.

    The two functions of PyTorch's are exchanged in `torch.nn.functional` for the time: a mode of
    PyTorch's would not see what a backward pass computes again.
    """
    attention, layer_norm = F.scaled_dot_product_attention, F.layer_norm
    patches_at_once, is_ours = vision.PATCHES_AT_ONCE, linear.is_processor_product

    def float32_norm(hidden: Tensor, *others: Any, **named: Any) -> Tensor:
        whole = hidden.float() if torch.is_autocast_enabled("cpu") else hidden
        return layer_norm(whole, *others, **named)

    # Of the callers our models give no further arguments, and backbones a scale.
    F.scaled_dot_product_attention = _fused_attention  # type: ignore[assignment]
    F.layer_norm = float32_norm  # type: ignore[assignment]
    vision.PATCHES_AT_ONCE = sys.maxsize
    linear.is_processor_product = lambda hidden, weight: False
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.layer_norm = attention, layer_norm
        vision.PATCHES_AT_ONCE, linear.is_processor_product = patches_at_once, is_ours


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **others: Any,
) -> Tensor:
    if attn_mask is None and query.dtype == torch.bfloat16:
        outputs = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )
        return cast("Tensor", outputs[0])
    bias = None
    if attn_mask is not None:
        shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        bias = torch.zeros_like(attn_mask, dtype=query.dtype).expand(shape)
    keeps = torch.is_grad_enabled()
    outputs = aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, keeps, dropout_p, is_causal, scale=scale
    )
    return cast("Tensor", outputs[0])
