"""Counts of the n-grams of a caption, shared by BLEU and CIDEr."""

from collections import Counter
from collections.abc import Sequence

MAX_ORDER = 4

Ngram = tuple[str, ...]
NgramCounts = tuple[Counter[Ngram], ...]
"""One counter per order: of single words, of pairs, up to `MAX_ORDER` words."""


def ngram_counts(words: Sequence[str]) -> NgramCounts:
    """Returns how often each run of 1 to 4 words occurs."""
    return tuple(
        Counter(zip(*(words[start:] for start in range(order)), strict=False))
        for order in range(1, MAX_ORDER + 1)
    )


def num_words(counts: NgramCounts) -> int:
    """Returns the length of the caption that was counted."""
    return counts[0].total()
