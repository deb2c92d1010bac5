"""Where the keys and negatives of a batch come from: the batch of its rank, or of all ranks."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.model import ImageMemory, Med
from openblip.model.albef import Albef
from openblip.tasks.protocol import Collectives


class Texts(NamedTuple):
    """Tokenised texts."""

    tokens: Tensor
    """int64 (rows, tokens)."""
    mask: Tensor
    """bool (rows, tokens), True = attend."""

    def beginning_with(self, token: int) -> Tensor:
        """The tokens, the first of every text replaced."""
        tokens = self.tokens.clone()
        tokens[:, 0] = token
        return tokens

    def without_prompt(self, prompt_tokens: int, pad: int) -> "Texts":
        """The texts without the tokens of a prompt, as wide as before: padding stands at the end.

        Args:
            prompt_tokens: the first, special one included, which stays; below 2 nothing goes.
            pad: id of padding.
        """
        if prompt_tokens < 2:
            return self
        gone = prompt_tokens - 1

        def moved(tensor: Tensor, value: int) -> Tensor:
            kept = torch.cat([tensor[:, :1], tensor[:, prompt_tokens:]], dim=1)
            return F.pad(kept, (0, gone), value=value)

        return Texts(moved(self.tokens, pad), moved(self.mask, False))

    def padded(self, width: int, pad: int) -> "Texts":
        """The texts with padding at the end, `width` tokens each."""
        missing = width - self.tokens.shape[1]
        return Texts(F.pad(self.tokens, (0, missing), value=pad), F.pad(self.mask, (0, missing)))

    def select(self, index: Tensor) -> "Texts":
        """The texts `index`, int64 (new_rows,)."""
        return Texts(self.tokens[index], self.mask[index])


class PairPool:
    """The pairs among which a batch finds keys and negatives.

    With `all_ranks`, ranks together compute what one process would on their batches in rank
    order, given that gradients are averaged over ranks; every rank has as many pairs. Otherwise
    nothing is sent.
    """

    def __init__(self, collectives: Collectives, *, all_ranks: bool) -> None:
        self.collectives = collectives
        self._gathers = all_ranks and collectives.world_size > 1

    def collect(self, tensor: Tensor) -> Tensor:
        """The pool's rows of a tensor (batch, ...), without gradient."""
        return self.collectives.gather(tensor.detach()) if self._gathers else tensor.detach()

    def size(self, batch_size: int) -> int:
        """How many pairs the pool has."""
        return batch_size * self.collectives.world_size if self._gathers else batch_size

    def first_row(self, batch_size: int) -> int:
        """The row of the pool that is this batch's first pair."""
        return batch_size * self.collectives.rank if self._gathers else 0

    def share(self, count: Tensor) -> Tensor | float:
        """What turns a mean over `count` things of this batch into its part of the pool's mean.

        Where no rank has any, it is 0, not 0 / 0.
        """
        if not self._gathers:
            return 1.0
        total = self.collectives.gather(count[None]).sum().clamp_min(1)
        return self.collectives.world_size * count / total

    def texts(self, tokens: Tensor, mask: Tensor, pad: int) -> tuple[Texts, Texts]:
        """This batch's texts and the pool's, padded to one length."""
        if not self._gathers:
            return Texts(tokens, mask), Texts(tokens, mask)
        missing = self._longest(tokens) - tokens.shape[1]
        # One collective instead of two: -1 stands for what the mask leaves out.
        own = F.pad(tokens.masked_fill(~mask, -1), (0, missing), value=-1)
        pool = self.collectives.gather(own)
        return (
            Texts(own.masked_fill(own < 0, pad), own >= 0),
            Texts(pool.masked_fill(pool < 0, pad), pool >= 0),
        )

    def states(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """This batch's encoded texts and masks, and the pool's, padded to one length.

        Args:
            states: (batch, tokens, width); gradients flow back from the pool's.
            mask: bool (batch, tokens).
        """
        if not self._gathers:
            return states, mask, states, mask
        missing = self._longest(mask) - mask.shape[1]
        states, mask = F.pad(states, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        pool = self.collectives.gather_with_gradient(states)
        return states, mask, pool, self.collectives.gather(mask)

    def image_memory(
        self, student: Med | Albef, image_hidden: Tensor, memory: ImageMemory, index: Tensor
    ) -> ImageMemory:
        """What the encoder attends to in images `index` of the pool, with gradient.

        Args:
            student: projects images of other ranks.
            image_hidden: (batch, patches, width) of this batch's images.
            memory: of this batch's images.
            index: int64 (rows,).
        """
        if not self._gathers:
            return memory.select(index)
        # Hidden states are lighter to send than the keys and values of every layer.
        pool = self.collectives.gather_with_gradient(image_hidden)
        return student.text.remember(pool.index_select(0, index))

    def _longest(self, texts: Tensor) -> int:
        """Tokens of the longest padded texts (batch, tokens) among the ranks."""
        length = torch.tensor([texts.shape[1]], device=texts.device)
        return int(self.collectives.gather(length).max())
