"""Rules that change next-token scores before a token is chosen."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openblip.inference.decoding import Decoding


def constrain(
    scores: Float[Tensor, "rows vocab"],
    ids: Int[Tensor, "rows length"],
    decoding: Decoding,
    end: int,
) -> Float[Tensor, "rows vocab"]:
    """The scores with ids that were seen penalised, and no end of a text that is too short.

    Differs from a renormalised distribution on purpose: log-probabilities given to it no longer
    sum to one, as in the original.

    Args:
        scores: logits or log-probabilities.
        ids: each row's text so far, prompt included.
        decoding: its repetition penalty and minimum length.
        end: id of the token that ends a text.
    """
    penalty = decoding.repetition_penalty
    if penalty != 1.0:
        ids = ids.to(scores.device)
        seen = scores.gather(1, ids)
        seen = torch.where(seen < 0, seen * penalty, seen / penalty)
        scores = scores.scatter(1, ids, seen)
    if ids.shape[1] < decoding.min_length:
        column = torch.tensor([end], device=scores.device)
        scores = scores.index_fill(1, column, float("-inf"))
    return scores


def nucleus_probabilities(
    scores: Float[Tensor, "rows vocab"], *, top_p: float, top_k: int = 0
) -> Float[Tensor, "rows vocab"]:
    """Probabilities over the smallest set of likeliest tokens that holds `top_p`; 0 elsewhere.

    The token that reaches `top_p` belongs to the set (Holtzman et al., 2020, section 3.1).

    Args:
        scores: logits; -inf excludes a token.
        top_p: in (0, 1]; 1 keeps every token.
        top_k: only the so many likeliest tokens are considered, and what ties with the last of
            them; 0 considers all.
    """
    excluded = float("-inf")
    if 0 < top_k < scores.shape[1]:
        least = scores.topk(top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, excluded)
    if top_p < 1.0:
        ordered, order = scores.sort(descending=True)
        reached = ordered.softmax(dim=-1).cumsum(dim=-1) > top_p
        outside = torch.zeros_like(reached)
        outside[:, 1:] = reached[:, :-1]
        scores = scores.masked_fill(outside.scatter(1, order, outside), excluded)
    return scores.softmax(dim=-1)
