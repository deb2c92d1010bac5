"""Scores by matching for the candidates that contrast has chosen (BLIP, section 5.1)."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from openblip.data.tokenizer import TokenBatch
from openblip.errors import TextTruncated
from openblip.inference import Blip
from openblip.inference.scoring import match_logits
from openblip.model import ImageMemory
from openblip.model.albef import Albef

_BELOW = -100.0
"""Added to the cosine of a pair that is not matched: it comes after all that are."""


def embed_protocol_texts(blip: Blip, texts: Sequence[str]) -> Tensor:
    """Embeddings (texts, embed); a text is cut to what the model reads without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextTruncated)
        return blip.embed_texts(texts)


def tokens_to_match(blip: Blip, texts: Sequence[str]) -> TokenBatch:
    """Texts as the model matches them: `[ENC]` first, of ALBEF `[CLS]`."""
    is_albef = isinstance(blip.matcher, Albef)
    return blip.tokenizer.encode(texts, blip.max_tokens, first="cls" if is_albef else "enc")


def unmatched_scores(cosines: Tensor) -> Tensor:
    """Scores of pairs that are not matched, float64: behind all others, in the order of ITC."""
    return cosines.double() + _BELOW


def matching_scores(
    blip: Blip, memory: ImageMemory, tokens: TokenBatch, cosines: Tensor, wanted: Tensor
) -> Tensor:
    """Scores by which candidates are ranked again, float64 (images, texts).

    A wanted pair has its ITM logit + cosine, as the original ranks (of ALBEF the logit alone); all
    others come behind, in the order of their cosines.

    Args:
        blip: with an ITM head.
        memory: keys and values of the images.
        tokens: all texts, from `tokens_to_match`.
        cosines: (images, texts), on the CPU.
        wanted: bool (images, texts), which pairs are matched.

    Raises:
        MissingHead: the model cannot match.
    """
    scores = unmatched_scores(cosines)
    chosen = [row.nonzero()[:, 0].tolist() for row in wanted]
    adds_cosine = not isinstance(blip.matcher, Albef)
    for image, logits in enumerate(match_logits(blip.matcher, memory, tokens, chosen)):
        texts = chosen[image]
        added = cosines[image, texts] if adds_cosine else torch.zeros(len(texts))
        scores[image, texts] = (logits[:, 1] + added).double()
    return scores
