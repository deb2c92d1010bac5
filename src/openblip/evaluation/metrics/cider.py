"""CIDEr-D of captions (Vedantam et al. 2015), with the choices of the COCO evaluation."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from openblip.evaluation.metrics.ngrams import MAX_ORDER, Ngram, NgramCounts

# Standard deviation of the penalty on a difference in length, in words.
_SIGMA = 6.0


class _Weighted(NamedTuple):
    """TF-IDF weights of one caption: per order, weights and their Euclidean norm."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    num_pairs: int


def cider(
    candidates: Sequence[NgramCounts], references: Sequence[Sequence[NgramCounts]]
) -> NDArray[np.float64]:
    """Returns CIDEr-D of each caption, 0 to 10; a corpus' CIDEr is the mean.

    The weight of an n-gram is its count times log(images / images whose references hold it).
    The score is 10 times the mean over references and orders 1 to 4 of the cosine, with the
    candidate's weights cut to the reference's, times exp(-d² / (2 · 6²)), d the difference in
    length. As in the COCO evaluation, document frequencies come from these references, lengths
    are counted in pairs of words, and one image alone scores 0 (every frequency is 1 of 1).
    """
    rarity = _rarity(references)
    unseen = math.log(max(1, len(references)))
    scores = np.zeros(len(candidates))
    for row, (candidate, human) in enumerate(zip(candidates, references, strict=True)):
        own = _weigh(candidate, rarity, unseen)
        total = sum(_similarity(own, _weigh(reference, rarity, unseen)) for reference in human)
        scores[row] = 10.0 * total / len(human)
    return scores


def _rarity(references: Sequence[Sequence[NgramCounts]]) -> dict[Ngram, float]:
    """Returns log(images / images that hold it) of each n-gram of the references."""
    frequency: Counter[Ngram] = Counter()
    for human in references:
        frequency.update({ngram for counts in human for order in counts for ngram in order})
    num_images = math.log(max(1, len(references)))
    return {ngram: num_images - math.log(count) for ngram, count in frequency.items()}


def _weigh(counts: NgramCounts, rarity: dict[Ngram, float], unseen: float) -> _Weighted:
    weights = [
        {ngram: count * rarity.get(ngram, unseen) for ngram, count in order.items()}
        for order in counts
    ]
    norms = [math.sqrt(sum(w * w for w in order.values())) for order in weights]
    return _Weighted(weights, norms, counts[1].total())


def _similarity(candidate: _Weighted, reference: _Weighted) -> float:
    """Returns the mean over the orders of the clipped cosine, penalised for the length."""
    total = 0.0
    for order in range(MAX_ORDER):
        norm = candidate.norms[order] * reference.norms[order]
        if norm:
            theirs = reference.weights[order]
            common = candidate.weights[order].keys() & theirs.keys()
            ours = candidate.weights[order]
            total += sum(min(ours[ngram], theirs[ngram]) * theirs[ngram] for ngram in common) / norm
    difference = candidate.num_pairs - reference.num_pairs
    return total / MAX_ORDER * math.exp(-(difference**2) / (2.0 * _SIGMA**2))
