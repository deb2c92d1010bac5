"""Scores per independent unit, so that a metric can be given with an interval and compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openblip.evaluation.metrics.bootstrap import (
    Comparison,
    Interval,
    bootstrap_interval,
    paired_bootstrap,
)
from openblip.evaluation.metrics.retrieval import RECALL_AT, image_ranks, text_ranks


@dataclass(frozen=True)
class UnitScores:
    """A metric that is a quotient of sums over units drawn independently: images, mostly.

    For IR@1 a unit is an image, its score the number of its captions that find it and its weight
    the number of its captions; the five captions of an image are not independent.
    """

    scores: NDArray[np.float64]
    """(units,), in per cent of the weight: 100 times the weight where all is right."""
    weights: NDArray[np.float64]
    """(units,), above 0 in sum."""

    @property
    def estimate(self) -> float:
        """The metric over all units."""
        return _quotient(self.rows)

    @property
    def rows(self) -> NDArray[np.float64]:
        """(units, 2): score and weight, to resample."""
        return np.stack([self.scores, self.weights], axis=1)

    def interval(self, *, num_samples: int = 1000, seed: int = 0) -> Interval:
        """The metric with its 95 % bootstrap interval over units."""
        return bootstrap_interval(self.rows, _quotient, num_samples=num_samples, seed=seed)

    def minus(self, other: "UnitScores", *, num_samples: int = 1000, seed: int = 0) -> Comparison:
        """The difference to another system on the same units, by the paired bootstrap.

        Raises:
            DataError: if the units are others.
        """
        return paired_bootstrap(
            self.rows, other.rows, _quotient, num_samples=num_samples, seed=seed
        )


def unit_scores(scores: Any, weights: Any = None) -> UnitScores:
    """Scores of units in per cent, of equal weight unless `weights` says otherwise."""
    values = np.asarray(scores, np.float64)
    return UnitScores(
        values, np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    )


def summed_units(scores: ArrayLike, owner: ArrayLike, units: int) -> UnitScores:
    """Scores of parts, such as questions, summed over the units that they belong to.

    Args:
        scores: (parts,), in per cent.
        owner: (parts,), the unit of each.
        units: how many there are.
    """
    owners = np.asarray(owner)
    sums = np.bincount(owners, np.asarray(scores, np.float64), units).astype(np.float64)
    return UnitScores(sums, np.bincount(owners, minlength=units).astype(np.float64))


def retrieval_units(
    scores: ArrayLike, captions_of_image: Sequence[Sequence[int]], scores_t2i: ArrayLike
) -> dict[str, UnitScores]:
    """TR@k and IR@k image by image; arguments as of `openblip.metrics.retrieval`.

    A text that belongs to several images counts with the first of them.
    """
    of_text = text_ranks(scores, captions_of_image)
    of_image = image_ranks(scores_t2i, captions_of_image)
    owner = np.full(len(of_image.above), -1)
    for image, texts in reversed(list(enumerate(captions_of_image))):
        owner[list(texts)] = image
    images = len(captions_of_image)
    units = {}
    for k in RECALL_AT:
        units[f"TR@{k}"] = unit_scores(100 * of_text.hits(k))
        units[f"IR@{k}"] = summed_units(100 * of_image.hits(k), owner, images)
    return units


def _quotient(rows: NDArray[Any]) -> float:
    scores, weights = rows.sum(axis=0)
    return float(scores / weights) if weights else float("nan")
