"""WUPS: accuracy of answers that forgives similar words (Malinowski and Fritz 2014, section 4)."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from openblip.errors import DataError
from openblip.evaluation.metrics.wordnet import WordNet

Key = TypeVar("Key", bound=Hashable)
Similarity = Callable[[str, str], float]

WUPS_THRESHOLDS = (0.9, 0.0)
"""Those that are reported for DAQUAR."""

# What a similarity below the threshold counts.
_DISSIMILAR = 0.1


def items_of(answer: str) -> frozenset[str]:
    """The set that an answer names: "Chair, table" is {"chair", "table"}."""
    items = (" ".join(item.lower().split()) for item in answer.split(","))
    return frozenset(item for item in items if item)


def wups(
    answers: Mapping[Key, str],
    references: Mapping[Key, str],
    thresholds: Sequence[float] = WUPS_THRESHOLDS,
    similarity: Similarity | None = None,
) -> dict[str, float]:
    """Returns "WUPS@t" for each threshold t, the mean over questions in per cent.

    An answer and its reference are sets of words A and T. The score of a question is

        min( prod_{a in A} max_{t in T} s(a, t),  prod_{t in T} max_{a in A} s(a, t) )

    where s is the similarity of two words (1 if they are equal), times 0.1 if it is below the
    threshold.

    Args:
        answers: one text per question; items are separated by commas.
        references: the right answer per question.
        thresholds: 0 to 1; "WUPS@0.0" has none.
        similarity: of two different words, 0 to 1; None takes Wu and Palmer's over WordNet,
            which must be there (`WordNet.find`).

    Raises:
        DataError: there is nothing to evaluate, answers and references are of other questions, or
            WordNet is not there.
    """
    scores = wups_scores(answers, references, thresholds, similarity)
    return {name: 100.0 * float(values.mean()) for name, values in scores.items()}


def wups_scores(
    answers: Mapping[Key, str],
    references: Mapping[Key, str],
    thresholds: Sequence[float] = WUPS_THRESHOLDS,
    similarity: Similarity | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Returns the score of each question in the order of the references, 0 to 1; see `wups`."""
    if not references:
        raise DataError("there are no answers to evaluate")
    unlike: set[Any] = set(references) ^ set(answers)
    if unlike:
        raise DataError(
            f"answers and references are of other questions: {len(unlike)} stand in one of them "
            f"alone, such as {next(iter(unlike))!r}"
        )
    of_words = _remembered(similarity or WordNet.find().similarity)
    pairs = [(items_of(answers[key]), items_of(text)) for key, text in references.items()]
    return {
        f"WUPS@{threshold}": np.array([_score(*pair, threshold, of_words) for pair in pairs])
        for threshold in thresholds
    }


def _score(
    answer: frozenset[str], reference: frozenset[str], threshold: float, of_words: Similarity
) -> float:
    if not answer or not reference:
        return float(answer == reference)

    def alike(first: str, second: str) -> float:
        value = of_words(first, second)
        return value if value >= threshold else _DISSIMILAR * value

    return min(
        prod(max(alike(item, other) for other in those) for item in these)
        for these, those in ((answer, reference), (reference, answer))
    )


def _remembered(similarity: Similarity) -> Similarity:
    """The similarity of two words, 1 for equal ones, computed once for a pair."""
    known: dict[tuple[str, str], float] = {}

    def of_words(first: str, second: str) -> float:
        pair = (min(first, second), max(first, second))
        if pair not in known:
            known[pair] = 1.0 if first == second else similarity(*pair)
        return known[pair]

    return of_words
