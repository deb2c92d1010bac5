"""How far reviewers agree, beyond what chance alone would let them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isclose

NOT_DEFINED = float("nan")


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Cohen's kappa (1960) of two reviewers on the same texts: 1 is agreement, 0 that of chance.

    Args:
        first: verdicts of one reviewer.
        second: those of the other, on the same texts in the same order.

    Returns:
        NaN without a text, or where chance alone would let them agree: both say one thing always.
    """
    count = len(first)
    if not count:
        return NOT_DEFINED
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / count
    of_first, of_second = Counter(first), Counter(second)
    expected = sum(of_first[verdict] * of_second[verdict] for verdict in of_first) / count**2
    return NOT_DEFINED if isclose(expected, 1.0) else (observed - expected) / (1 - expected)


def krippendorff_alpha(verdicts: Sequence[Sequence[str]]) -> float:
    """Krippendorff's alpha for names without an order: any number of reviewers, with gaps.

    A text that only one reviewer has judged says nothing. The rest is his table of coincidences
    ("Computing Krippendorff's Alpha-Reliability", 2011).

    Args:
        verdicts: of each text, one for each reviewer who judged it.

    Returns:
        1 for agreement, 0 for that of chance; NaN without two verdicts on one text, or where all
        verdicts are the same.
    """
    paired = [Counter(own) for own in verdicts if len(own) > 1]
    totals = sum(paired, Counter[str]())
    count = totals.total()
    if count == 0 or len(totals) < 2:
        return NOT_DEFINED
    # Pairs of different verdicts on one text, each text counting as its number of verdicts.
    observed = sum(
        (own.total() ** 2 - sum(n * n for n in own.values())) / (own.total() - 1) for own in paired
    )
    expected = (count**2 - sum(n * n for n in totals.values())) / (count - 1)
    return 1 - observed / expected


def pairwise_kappas(
    verdicts: Mapping[str, Mapping[str, str]],
) -> list[tuple[str, str, int, float]]:
    """Cohen's kappa of every two reviewers.

    Args:
        verdicts: by reviewer, then by text.

    Returns:
        Both reviewers, the number of texts that both have judged, and the kappa, for those two
        who have such a text.
    """
    found = []
    for first, second in combinations(sorted(verdicts), 2):
        both = [text for text in verdicts[first] if text in verdicts[second]]
        if both:
            pair = ([verdicts[name][text] for text in both] for name in (first, second))
            found.append((first, second, len(both), cohen_kappa(*pair)))
    return found
