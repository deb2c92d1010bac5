"""Matching of a batch: who draws the negatives, and the logits of all pairs."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from openblip.data.tokenizer import SpecialTokens
from openblip.model import ImageMemory, Med, TextPass
from openblip.objectives.itm import hard_negatives, keyed_uniforms
from openblip.tasks.pool import Texts
from openblip.tasks.protocol import Collectives, StepPosition

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
