"""BLEU over a corpus of captions (Papineni et al. 2002, "closest" reference length)."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from openblip.evaluation.metrics.ngrams import (
    MAX_ORDER,
    Ngram,
    NgramCounts,
    num_words,
)

# Against division by zero, in the places and sizes of the COCO evaluation.
_SMALL = 1e-9
_TINY = 1e-15


def bleu_statistics(
    candidates: Sequence[NgramCounts], references: Sequence[Sequence[NgramCounts]]
) -> NDArray[np.int64]:
    """Returns what BLEU needs of each caption, (captions, 2 + 4 + 4).

    Columns: length of the candidate, length of its closest reference (the shorter one of two
    equally close), matched n-grams of order 1 to 4, n-grams of order 1 to 4. A corpus' statistics
    are the sum, so rows may be resampled.
    """
    rows = np.zeros((len(candidates), 2 + 2 * MAX_ORDER), dtype=np.int64)
    for row, (candidate, human) in enumerate(zip(candidates, references, strict=True)):
        length = num_words(candidate)
        closest = min((abs(num_words(r) - length), num_words(r)) for r in human)[1]
        matched = [_num_matched(candidate, human, order) for order in range(MAX_ORDER)]
        possible = [max(0, length - order) for order in range(MAX_ORDER)]
        rows[row] = [length, closest, *matched, *possible]
    return rows


def bleu(statistics: NDArray[np.int64]) -> tuple[float, ...]:
    """Returns BLEU-1 to BLEU-4 of a corpus, 0 to 1.

    BLEU-n = brevity · (p_1 · ... · p_n)^(1/n), brevity = exp(1 - r/c) if c < r, else 1.

    Args:
        statistics: from `bleu_statistics`, one row per caption.
    """
    length, closest, *counts = statistics.sum(axis=0).tolist()
    ratio = (length + _TINY) / (closest + _SMALL)
    brevity = math.exp(1.0 - 1.0 / ratio) if ratio < 1.0 else 1.0
    scores, product = [], 1.0
    for order, (matched, possible) in enumerate(
        zip(counts[:MAX_ORDER], counts[MAX_ORDER:], strict=True), start=1
    ):
        product *= (matched + _TINY) / (possible + _SMALL)
        scores.append(brevity * product ** (1.0 / order))
    return tuple(scores)


def _num_matched(candidate: NgramCounts, human: Sequence[NgramCounts], order: int) -> int:
    """N-grams that a reference has too, each at most as often as one reference has it."""
    counted: Counter[Ngram] = candidate[order]
    return sum(
        min(count, max(reference[order][ngram] for reference in human))
        for ngram, count in counted.items()
    )
