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
    """The scores with ids that were seen penalised; without n-grams that repeat, and early ends.

    Differs from a renormalised distribution on purpose: log-probabilities given to it no longer
    sum to one, as in the original.

    Args:
        scores: logits or log-probabilities.
        ids: each row's text so far, prompt included.
        decoding: its repetition penalty, size of n-grams and minimum length.
        end: id of the token that ends a text.
    """
    penalty = decoding.repetition_penalty
    if penalty != 1.0:
        ids = ids.to(scores.device)
        seen = scores.gather(1, ids)
        seen = torch.where(seen < 0, seen * penalty, seen / penalty)
        scores = scores.scatter(1, ids, seen)
    if decoding.no_repeat_ngram_size:
        scores = _without_repeats(scores, ids, decoding.no_repeat_ngram_size)
    if ids.shape[1] < decoding.min_length:
        column = torch.tensor([end], device=scores.device)
        scores = scores.index_fill(1, column, float("-inf"))
    return scores


def _without_repeats(
    scores: Float[Tensor, "rows vocab"], ids: Int[Tensor, "rows length"], size: int
) -> Float[Tensor, "rows vocab"]:
    """The scores without the ids that would end an n-gram of this size which a row has already."""
    if ids.shape[1] < size:
        return scores
    grams = ids.cpu().unfold(1, size, 1)
    begun = ids.cpu()[:, ids.shape[1] - size + 1 :]
    repeats = (grams[:, :, :-1] == begun[:, None]).all(dim=2)
    rows, places = repeats.nonzero(as_tuple=True)
    banned = grams[rows, places, -1]
    excluded = torch.tensor(float("-inf"), device=scores.device)
    at = (rows.to(scores.device), banned.to(scores.device))
    return scores.index_put(at, excluded)


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
