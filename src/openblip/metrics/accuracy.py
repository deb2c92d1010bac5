"""Accuracy: of ranked classes, and of NLVR2 with its consistency as its official script does.

Where a model says the same of nearly everything, its figures need to be read with that: `dominant`
tells.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openblip.metrics.retrieval import Ranks, candidate_ranks, score_matrix
from openblip.runtime.errors import DataError


def class_ranks(scores: ArrayLike, classes_of_image: Sequence[Sequence[int]]) -> Ranks:
    """Where the best right class of each image stands; equal scores are in no order (`Ranks`).

    Args:
        scores: (images, classes), higher is better.
        classes_of_image: for each image the columns of its classes; finding any one is a hit.
            Classes that no image has are candidates all the same.

    Raises:
        DataError: shapes do not fit, a score is NaN, or an image has no class.
    """
    matrix = score_matrix(scores, "scores (images, classes)")
    if len(classes_of_image) != len(matrix):
        raise DataError(
            f"classes_of_image lists {len(classes_of_image)} images, the scores have {len(matrix)}"
        )
    for image, classes in enumerate(classes_of_image):
        if not classes or not 0 <= min(classes) <= max(classes) < matrix.shape[1]:
            raise DataError(
                f"image {image} has the classes {list(classes)}; give at least one of 0 to "
                f"{matrix.shape[1] - 1}, or leave the image out of the scores"
            )
    return candidate_ranks(matrix, [np.unique(classes) for classes in classes_of_image])


def class_accuracy(
    hits: ArrayLike, classes_of_image: Sequence[Sequence[int]], num_classes: int
) -> NDArray[np.float64]:
    """Per cent of hits among the images of each class; NaN for a class without images.

    Args:
        hits: (images,), 1 for a hit and 0 for none, or the probability of one.
        classes_of_image: for each image its classes; it counts in each of them.
        num_classes: how many there are.
    """
    found, images = np.zeros(num_classes), np.zeros(num_classes)
    for hit, classes in zip(np.asarray(hits, np.float64), classes_of_image, strict=True):
        found[list(classes)] += 100 * hit
        images[list(classes)] += 1
    accuracy = np.full(num_classes, np.nan)
    np.divide(found, images, out=accuracy, where=images > 0)
    return accuracy


# "split-set_id-pair_id-sentence_id": a sentence was written for one set of images.
_IDENTIFIER = re.compile(r"(?P<set>\w+-\d+)-\d+-(?P<sentence>\d+)")


def nlvr(predictions: Mapping[str, bool], labels: Mapping[str, bool]) -> dict[str, float]:
    """Per cent of right predictions, and of sentences that are judged rightly wherever they occur.

    Args:
        predictions: by identifier; those without a label are not counted.
        labels: whether the sentences are true, by identifier.

    Returns:
        "accuracy", and "consistency" where all identifiers have the official form, which tells
        what belongs to one sentence.

    Raises:
        DataError: there is no label, or a prediction is missing.
    """
    if not labels:
        raise DataError("there are no labels to judge predictions by")
    missing = [key for key in labels if key not in predictions]
    if missing:
        raise DataError(
            f"no prediction for {missing[0]} ({len(missing)} of {len(labels)} are missing)"
        )
    right = {key: predictions[key] == label for key, label in labels.items()}
    metrics = {"accuracy": 100 * sum(right.values()) / len(right)}
    consistent = consistent_sentences(right)
    if consistent is not None:
        metrics["consistency"] = 100 * sum(consistent.values()) / len(consistent)
    return metrics


def consistent_sentences(right: Mapping[str, bool]) -> dict[tuple[str, str], bool] | None:
    """For each (set of images, sentence) whether all of its examples are right.

    None if an identifier has another form than the official one.
    """
    consistent: dict[tuple[str, str], bool] = defaultdict(lambda: True)
    for identifier, is_right in right.items():
        found = _IDENTIFIER.fullmatch(identifier)
        if found is None:
            return None
        consistent[found["set"], found["sentence"]] &= is_right
    return dict(consistent)


def image_set(identifier: str) -> str:
    """What examples that share images have in common; the identifier where it does not say."""
    found = _IDENTIFIER.fullmatch(identifier)
    return found["set"] if found else identifier


_SHARE = 0.95
# Of few examples the right answers may be all the same.
_LEAST = 10
_LONGEST = 60
# Captions of a large collection are nearly all different: what they are must not fill the memory.
_MOST_TEXTS = 10_000


@dataclass(frozen=True)
class Dominant:
    """What a model says of nearly all examples."""

    text: str
    count: int
    """Examples of which it says so."""
    of: int
    """Examples."""

    def __str__(self) -> str:
        """One line for people."""
        text = self.text if len(self.text) <= _LONGEST else f"{self.text[:_LONGEST]}..."
        return f"nearly all results are the same: {self.count:,} of {self.of:,} are {text!r}"


class Tally:
    """Counts results as they come, however many there are, for the one that covers nearly all."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._total = 0

    def add(self, text: str) -> None:
        """Count a result."""
        self._total += 1
        # A text that so many others come before is not what the model says of nearly everything.
        if text in self._counts or len(self._counts) < _MOST_TEXTS:
            self._counts[text] += 1

    @property
    def dominant(self) -> Dominant | None:
        """What at least 95 % of ten or more results say; None where there is no such text."""
        if self._total < _LEAST:
            return None
        ((text, count),) = self._counts.most_common(1)
        return Dominant(text, count, self._total) if count >= _SHARE * self._total else None


def dominant(texts: Iterable[str]) -> Dominant | None:
    """What at least 95 % of ten or more results say; None where there is no such text."""
    tally = Tally()
    for text in texts:
        tally.add(text)
    return tally.dominant
