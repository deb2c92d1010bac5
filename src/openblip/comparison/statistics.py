"""Intervals over seeds and images, and paired differences (bootstrap, Efron 1979).

A figure is the mean over seeds of a metric, which is a quotient of sums over images. A resample
draws as many seeds as there are, with replacement, and for each of them as many images as its test
split has: the same images for all seeds if they share one split, else anew for each. A figure that
is the mean of two metrics has both from the same images. Two models are compared on equal draws of
seeds and of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openblip.errors import DataError
from openblip.evaluation.metrics.bootstrap import Comparison, Interval

NUM_SAMPLES = 2000
_TAILS = [0.025, 0.975]


@dataclass(frozen=True)
class SeedScores:
    """What a figure is computed from."""

    seeds: tuple[NDArray[np.float64], ...]
    """For each seed (metrics, images, 2): of each image score and weight."""
    is_shared: bool
    """Whether all seeds have the same images, in the same order."""

    def __post_init__(self) -> None:
        if not self.seeds or any(rows.ndim != 3 or not rows.shape[1] for rows in self.seeds):
            raise DataError("a figure needs the scores of at least one image for each seed")
        if self.is_shared and len({rows.shape for rows in self.seeds}) > 1:
            raise DataError("seeds of one test split have different numbers of images")

    @property
    def of_seeds(self) -> NDArray[np.float64]:
        """The figure of each seed."""
        return np.array([_figure(rows.sum(axis=1)) for rows in self.seeds])

    @property
    def estimate(self) -> float:
        """The mean over seeds."""
        return float(self.of_seeds.mean())

    @property
    def num_images(self) -> int:
        """Different test images over all seeds."""
        return sum(rows.shape[1] for rows in self.seeds[: 1 if self.is_shared else None])

    def interval(self, num_samples: int = NUM_SAMPLES, seed: int = 0) -> Interval:
        """The figure with its 95 % percentile interval."""
        return Interval(self.estimate, *_bounds(self._samples(num_samples, seed)))

    def minus(
        self, other: "SeedScores", num_samples: int = NUM_SAMPLES, seed: int = 0
    ) -> Comparison:
        """The difference to another model on the same seeds and images.

        The p-value is two-sided, as that of `paired_bootstrap`.

        Raises:
            DataError: the other one has other seeds or images.
        """
        mine, others = [[rows.shape[1] for rows in one.seeds] for one in (self, other)]
        if mine != others or self.is_shared != other.is_shared:
            raise DataError(f"images of each seed are {mine} and {others}: they cannot be paired")
        difference = self.of_seeds - other.of_seeds
        samples = self._samples(num_samples, seed) - other._samples(num_samples, seed)
        rarer = min(np.count_nonzero(samples <= 0.0), np.count_nonzero(samples >= 0.0))
        p_value = min(1.0, 2.0 * (rarer + 1) / (num_samples + 1))
        return Comparison(float(difference.mean()), *_bounds(samples), float(p_value))

    def _samples(self, num_samples: int, seed: int) -> NDArray[np.float64]:
        """The figure of each resample; equal numbers of seeds and images give equal draws."""
        generator = np.random.default_rng(seed)
        count = len(self.seeds)
        drawn_seeds = generator.integers(count, size=(num_samples, count))
        total = np.zeros(num_samples)
        shared = _draws(generator, num_samples, self.seeds[0]) if self.is_shared else None
        for place in range(count):
            figures = np.empty((count, num_samples))
            for number, rows in enumerate(self.seeds):
                drawn = _draws(generator, num_samples, rows) if shared is None else shared
                figures[number] = _figure(np.stack([drawn @ metric for metric in rows]))
            total += figures[drawn_seeds[:, place], np.arange(num_samples)]
        return total / count


def _draws(
    generator: np.random.Generator, num_samples: int, rows: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How often each image is drawn in each resample, (samples, images)."""
    images = rows.shape[1]
    return generator.multinomial(images, [1 / images] * images, size=num_samples).astype(np.float64)


def _figure(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over metrics of the quotients of (metrics, ..., 2)."""
    scores, weights = sums[..., 0], sums[..., 1]
    quotients = np.divide(scores, weights, out=np.full_like(scores, np.nan), where=weights > 0)
    mean: NDArray[np.float64] = quotients.mean(axis=0)
    return mean


def _bounds(samples: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(samples, _TAILS)
    return float(low), float(high)


def verdict(difference: Comparison) -> str:
    """Whether a claimed difference above zero holds, by its interval."""
    if difference.low > 0:
        return "holds"
    return "does not hold" if difference.high < 0 else "not decided"


def seed_scores(
    units: Sequence[dict[str, dict[str, list[float]]]], metrics: Sequence[str], is_shared: bool
) -> SeedScores | None:
    """The scores of some metrics from the stored units of each seed; None where one lacks them."""
    if any(metric not in found for found in units for metric in metrics):
        return None
    rows = [
        np.array([np.stack([found[m]["scores"], found[m]["weights"]], axis=1) for m in metrics])
        for found in units
    ]
    return SeedScores(tuple(rows), is_shared)
