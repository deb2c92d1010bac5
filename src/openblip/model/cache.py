"""Self-attention keys and values of the text generated so far."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openblip.model.config import TextConfig


class KeyValueCache:
    """Keys and values per layer, in storage allocated once for the longest text.

    `keys` and `values` are (layers, rows, heads, max_tokens, head_dim); the first `length` tokens
    are filled. A layer writes its new tokens with `append`; `advance` counts them after the last
    layer.
    """

    def __init__(
        self,
        keys: Float[Tensor, "layers rows heads tokens head_dim"],
        values: Float[Tensor, "layers rows heads tokens head_dim"],
        length: int = 0,
    ) -> None:
        self.keys = keys
        self.values = values
        self.length = length

    @classmethod
    def empty(
        cls,
        config: TextConfig,
        rows: int,
        max_tokens: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "KeyValueCache":
        """A cache with room for `max_tokens` tokens of `rows` texts."""
        head_dim = config.width // config.heads
        shape = (config.depth, rows, config.heads, max_tokens, head_dim)
        keys = torch.zeros(shape, device=device, dtype=dtype)
        return cls(keys, torch.zeros_like(keys))

    def append(
        self,
        layer: int,
        keys: Float[Tensor, "rows heads new head_dim"],
        values: Float[Tensor, "rows heads new head_dim"],
    ) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, the new ones written behind the old ones."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count tokens that every layer has appended."""
        self.length += tokens

    def select(self, index: Int[Tensor, " new_rows"]) -> "KeyValueCache":
        """The cache whose row i is this one's row `index[i]`: beams moved, finished rows gone."""
        return KeyValueCache(
            self.keys.index_select(1, index), self.values.index_select(1, index), self.length
        )
