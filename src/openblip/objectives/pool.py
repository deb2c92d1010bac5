"""Keys and negatives of a batch: where they come from, who draws them, and the logits of pairs."""

from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.batches.tokenizer import SpecialTokens
from openblip.model import ImageMemory, Med, TextPass
from openblip.model.albef import Albef
from openblip.objectives.itm import hard_negatives, keyed_uniforms
from openblip.objectives.task import Collectives, StepPosition


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
        if not missing:
            return self
        return Texts(F.pad(self.tokens, (0, missing), value=pad), F.pad(self.mask, (0, missing)))

    def where(self, rows: Tensor, others: "Texts") -> "Texts":
        """The texts of some rows, bool (rows,), and of the rest those of others, equally wide."""
        chosen = rows[:, None]
        return Texts(
            torch.where(chosen, self.tokens, others.tokens),
            torch.where(chosen, self.mask, others.mask),
        )

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


Modality = Literal["image", "text"]


class NegativeSampler(Protocol):
    """Draws one negative per row."""

    def __call__(self, weights: Tensor, position: StepPosition, wanted: Modality) -> Tensor:
        """Columns of `weights` (rows, candidates), int64 (rows,).

        Images (for the texts) are asked for before texts (for the images).
        """
        ...


class KeyedSampler:
    """Draws that depend on seed, position, rank and weights alone."""

    def __init__(self, seed: int, collectives: Collectives) -> None:
        self.seed = seed
        self.collectives = collectives

    def __call__(self, weights: Tensor, position: StepPosition, wanted: Modality) -> Tensor:
        """Columns of `weights`, each in proportion to its weight."""
        rows = len(weights)
        # Drawn for the batches of all ranks, so that their division makes no difference.
        uniforms = keyed_uniforms(
            rows * self.collectives.world_size,
            self.seed,
            position.step,
            position.micro_step,
            f"negative {wanted}",
        )
        first = rows * self.collectives.rank
        return hard_negatives(weights, uniforms[first : first + rows].to(weights.device))


def pair_passes(
    texts: Texts,
    negative_texts: Texts,
    memory: ImageMemory,
    negative_memory: ImageMemory,
    special: SpecialTokens,
) -> tuple[TextPass, TextPass]:
    """Positives with negative texts, and texts with negative images, in the encoder role.

    Args:
        texts: of the batch.
        negative_texts: text r is a negative of image r.
        memory: of the batch's images.
        negative_memory: image r is a negative of text r.
        special: where `[ENC]` is.
    """
    ids, negative_ids = (each.beginning_with(special.enc) for each in (texts, negative_texts))
    # Both texts of an image stand side by side: its keys and values are not copied for them.
    both = torch.stack([ids, negative_ids], dim=1).flatten(0, 1)
    mask = torch.stack([texts.mask, negative_texts.mask], dim=1).flatten(0, 1)
    return (
        TextPass(both, mask, memory, reads="first"),
        TextPass(ids, texts.mask, negative_memory, reads="first"),
    )


def pair_logits(student: Med, own_images: Tensor, negative_images: Tensor) -> Tensor:
    """Match logits (3 batch, 2): positives; text, negative image; negative text, image.

    Args:
        student: has the head "itm".
        own_images: (2 batch, 1, width), hidden states of the first of `pair_passes`.
        negative_images: (batch, 1, width), of the second.
    """
    positive, negative_text = student.match_logits(own_images).view(-1, 2, 2).unbind(1)
    return torch.cat([positive, student.match_logits(negative_images), negative_text])
