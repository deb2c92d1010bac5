"""The queue: teacher features of recent batches as further keys of the contrast."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openblip.objectives.itc import UNKNOWN_ID


class FeatureQueue(nn.Module):
    """A ring of unit-length image and text features and their ids (MoCo; ALBEF, section 3.2).

    As in the original it begins full, of random directions. Its buffers are saved with a
    checkpoint.

    Args:
        size: pairs held; 0 holds none, and the batch alone gives the keys.
        embed_dim: dimensions of a feature.
        seed: of the random directions.
    """

    image_embed: Float[Tensor, "queue embed"]
    text_embed: Float[Tensor, "queue embed"]
    image_ids: Int[Tensor, " queue"]
    text_ids: Int[Tensor, " queue"]
    pointer: Int[Tensor, ""]

    def __init__(self, size: int, embed_dim: int, seed: int) -> None:
        super().__init__()
        self.size = size
        generator = torch.Generator().manual_seed(seed)
        for name in ("image_embed", "text_embed"):
            directions = torch.randn(size, embed_dim, generator=generator, device="cpu")
            self.register_buffer(name, F.normalize(directions, dim=1))
        for name in ("image_ids", "text_ids"):
            self.register_buffer(name, torch.full((size,), UNKNOWN_ID))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(
        self,
        image_embed: Float[Tensor, "batch embed"],
        text_embed: Float[Tensor, "batch embed"],
        image_ids: Int[Tensor, " batch"],
        text_ids: Int[Tensor, " batch"],
    ) -> None:
        """Replace the oldest pairs, wrapping around; of more than `size` the last ones stay."""
        if self.size == 0:
            return
        pairs = image_embed.shape[0]
        kept = min(pairs, self.size)
        steps = torch.arange(pairs - kept, pairs, device=self.pointer.device)
        places = (self.pointer + steps) % self.size
        self.image_embed.index_copy_(0, places, image_embed[-kept:].to(self.image_embed.dtype))
        self.text_embed.index_copy_(0, places, text_embed[-kept:].to(self.text_embed.dtype))
        self.image_ids.index_copy_(0, places, image_ids[-kept:])
        self.text_ids.index_copy_(0, places, text_ids[-kept:])
        self.pointer.add_(pairs).remainder_(self.size)
