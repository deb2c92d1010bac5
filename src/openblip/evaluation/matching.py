"""Scores by matching for the candidates that contrast has chosen (BLIP, section 5.1)."""

import warnings
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from openblip.data.text import Cleaning
from openblip.data.tokenizer import TokenBatch
from openblip.errors import TextTruncated
from openblip.inference import Blip, Embedder
from openblip.inference.scoring import match_logits
from openblip.model import ImageMemory
from openblip.model.albef import Albef

NOT_RANKED = -100.0
"""Score of a pair that is not matched, below every matched one (as the original)."""


def can_match(model: Embedder) -> TypeGuard[Blip]:
    """Whether the model has an ITM head; one of others has contrast alone."""
    return isinstance(model, Blip) and model.can_match


def cleaning_of(model: Embedder) -> Cleaning:
    """How texts are cleaned for a model: as its tokenizer says; for one of others as for BLIP."""
    return model.tokenizer.cleaning if isinstance(model, Blip) else Cleaning()


def embed_protocol_texts(model: Embedder, texts: Sequence[str]) -> Tensor:
    """Embeddings (texts, embed); a text is cut to what the model reads without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextTruncated)
        return model.embed_texts(texts)


def tokens_to_match(blip: Blip, texts: Sequence[str]) -> TokenBatch:
    """Texts as the model matches them: `[ENC]` first, of ALBEF `[CLS]`."""
    blip.require("itm")
    is_albef = isinstance(blip.matcher, Albef)
    return blip.tokenizer.encode(texts, blip.max_tokens, first="cls" if is_albef else "enc")


def candidates(cosines: Tensor, k: int, dim: int) -> Tensor:
    """Which pairs are among the k best along a dimension, bool like `cosines`."""
    best = cosines.topk(min(k, cosines.shape[dim]), dim=dim).indices
    return torch.zeros_like(cosines, dtype=torch.bool).scatter_(dim, best, True)


def unmatched_scores(cosines: Tensor) -> Tensor:
    """Scores of pairs that are not matched, float64: behind all others, in the order of ITC."""
    return cosines.double() + NOT_RANKED


def matching_scores(
    blip: Blip, memory: ImageMemory, tokens: TokenBatch, cosines: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores by which wanted pairs are ranked again, and their probabilities of a match.

    Both are (images, texts) like `cosines`, and NaN where a pair is not wanted. A score is the ITM
    logit + cosine, as the original ranks; of ALBEF the logit alone.

    Args:
        blip: with an ITM head.
        memory: keys and values of the images.
        tokens: all texts, from `tokens_to_match`.
        cosines: (images, texts), on the CPU.
        wanted: bool (images, texts), which pairs are matched.

    Raises:
        MissingHead: the model cannot match.
    """
    scores = torch.full_like(cosines, torch.nan)
    probabilities = scores.clone()
    chosen = [row.nonzero()[:, 0].tolist() for row in wanted]
    adds_cosine = not isinstance(blip.matcher, Albef)
    for image, logits in enumerate(match_logits(blip.matcher, memory, tokens, chosen)):
        texts = chosen[image]
        scores[image, texts] = logits[:, 1] + (cosines[image, texts] if adds_cosine else 0.0)
        probabilities[image, texts] = logits.softmax(dim=-1)[:, 1]
    return scores, probabilities
