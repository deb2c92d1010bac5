"""ROUGE-L of captions (Lin 2004), with the choices of the COCO evaluation."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Weight of recall against precision in the F measure.
_BETA = 1.2


def rouge_l(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> NDArray[np.float64]:
    """Returns ROUGE-L of each caption, 0 to 1.

    F = (1 + b^2) P R / (R + b^2 P), b = 1.2; P and R are the longest common subsequence over the
    length of the candidate and of the reference. As in the COCO evaluation, the best P and the
    best R may come from different references, and an empty caption counts as one empty word.
    """
    scores = np.zeros(len(candidates))
    for row, (candidate, human) in enumerate(zip(candidates, references, strict=True)):
        words = candidate or ("",)
        common = [(longest_common_subsequence(words, r or ("",)), len(r) or 1) for r in human]
        precision = max(length for length, _ in common) / len(words)
        recall = max(length / total for length, total in common)
        if precision and recall:
            weight = _BETA**2
            scores[row] = (1 + weight) * precision * recall / (recall + weight * precision)
    return scores


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence.

    Bit-parallel (Hyyro 2004): the bits of one integer are a row of the table of lengths, a zero
    bit where the length grows.
    """
    places: defaultdict[str, int] = defaultdict(int)
    for place, word in enumerate(first):
        places[word] |= 1 << place
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(first) - row.bit_count()
