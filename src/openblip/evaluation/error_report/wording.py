"""What captions say more, or less, often than human ones do."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log, sqrt

from openblip.evaluation.metrics.caption_tokens import caption_tokens

_LONGEST = 3
# Part of the pooled counts that every n-gram has beforehand on both sides.
_PRIOR = 0.1


@dataclass(frozen=True)
class NgramUse:
    """How often an n-gram stands in the captions, and in the references."""

    words: str
    captions: int
    references: int
    z: float
    """Log-odds of the captions against the references, in its standard deviations."""


def ngram_use(captions: Iterable[str], references: Iterable[str]) -> list[NgramUse]:
    """N-grams of 1 to 3 words, the most overused first and the most underused last.

    Compared by the log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn,
    2008, "Fightin' Words", section 3.3), which neither favours rare words nor common ones; the
    prior is a tenth of the pooled counts, order by order.
    """
    ours, theirs = (_counts(texts) for texts in (captions, references))
    found = []
    for counts, human in zip(ours, theirs, strict=True):
        prior = {ngram: _PRIOR * (counts[ngram] + human[ngram]) for ngram in {*counts, *human}}
        total = sum(prior.values())
        sizes = counts.total() + total, human.total() + total
        for ngram, beforehand in prior.items():
            a, b = counts[ngram] + beforehand, human[ngram] + beforehand
            odds = log(a) - log(sizes[0] - a or beforehand)
            odds -= log(b) - log(sizes[1] - b or beforehand)
            words = " ".join(ngram)
            found.append(NgramUse(words, counts[ngram], human[ngram], odds / sqrt(1 / a + 1 / b)))
    return sorted(found, key=lambda use: (-use.z, use.words))


def lengths(texts: Iterable[str]) -> list[float]:
    """Share of the texts that have 0, 1, 2, ... words."""
    counts = Counter(len(caption_tokens(text)) for text in texts)
    longest = max(counts, default=0)
    return [counts[length] / counts.total() for length in range(longest + 1)]


def vocabulary(texts: Iterable[str]) -> int:
    """Number of different words."""
    return len({word for text in texts for word in caption_tokens(text)})


def _counts(texts: Iterable[str]) -> Sequence[Counter[tuple[str, ...]]]:
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(_LONGEST)]
    for text in texts:
        words = caption_tokens(text)
        for order, of_order in enumerate(counts, 1):
            of_order.update(words[at : at + order] for at in range(len(words) - order + 1))
    return counts
