"""Scaled dot-product attention, done as each shape is done fastest."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from openblip.model.linear import onednn_linear, prefers_onednn

# Up to so many queries, reading keys and values takes the time: a plain product reads them at
# about twice the rate at which PyTorch's fused attention does on a processor.
_FEW_QUERIES = 32
_MANY_KEYS = 128
# From so many keys on, a head is worth two calls of its own: 577 at 384 px are, 197 at 224 not.
_VERY_MANY_KEYS = 256


def attend(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys head_dim"],
    mask: Bool[Tensor, "#batch 1 #queries keys"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """`F.scaled_dot_product_attention`, up to rounding.

    Args:
        query: of the tokens that attend.
        key: of the tokens that are attended to.
        value: of the same tokens.
        mask: True = attend; None attends to all.
        dropout: probability that an attention weight is dropped.
    """
    if mask is None and dropout == 0.0 and _is_inference(query) and key.shape[2] >= _MANY_KEYS:
        if query.shape[2] <= _FEW_QUERIES:
            return _by_plain_products(query, key, value)
        if key.shape[2] >= _VERY_MANY_KEYS and prefers_onednn():
            return _head_by_head(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def _is_inference(query: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and query.device.type == "cpu"
        and query.dtype == torch.float32
        and query.numel() > 0
    )


def _by_plain_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    out: Tensor = scores.softmax(dim=-1) @ value
    return out


def _head_by_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A head's scores stay in the cache between its two products, which oneDNN does."""
    batch, heads, queries, head_dim = query.shape
    scaled = (query * head_dim**-0.5).contiguous()
    key = key.contiguous()
    value_columns = value.transpose(2, 3).contiguous()
    # In the order in which the heads are joined, so that joining them copies nothing.
    out = query.new_empty(batch, queries, heads, head_dim)
    for row in range(batch):
        for head in range(heads):
            scores = onednn_linear(scaled[row, head], key[row, head])
            torch.softmax(scores, dim=-1, out=scores)
            out[row, :, head] = onednn_linear(scores, value_columns[row, head])
    return out.transpose(1, 2)
