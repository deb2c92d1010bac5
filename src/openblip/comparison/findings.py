"""What finished stages say of a comparison: figures with intervals, compute, differences, verdicts.

A figure is the mean over seeds of a metric, which is a quotient of sums over images. A resample
draws as many seeds as there are, with replacement, and for each of them as many images as its test
split has: the same images for all seeds if they share one split, else anew for each (bootstrap,
Efron 1979). A figure that is the mean of two metrics has both from the same images. Two models are
compared on equal draws of seeds and of images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openblip.comparison.graph import StageGraph
from openblip.comparison.protocols import parts_of
from openblip.comparison.spec import ClaimSpec, ComparisonSpec
from openblip.comparison.stages import Given, Stage, closure, rows_of, undone
from openblip.evaluation.results import UnitScores
from openblip.metrics.bootstrap import Difference, Interval, percentile_bounds, two_sided_p
from openblip.runtime.errors import DataError
from openblip.training.utilisation import added

# Scores and weights of the images by metric.
StoredUnits = dict[str, dict[str, list[float]]]
_NUM_SAMPLES = 2000
# Standard errors of a difference that is decided at a level of 5 % in four tests of five.
_DECIDED = 1.96 + 0.84
# Numbers of draws that are held at a time, where a split is not larger than that: 32 MB.
_BLOCK_NUMBERS = 4_000_000


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

    def interval(self) -> Interval:
        """The figure with its 95 % percentile interval."""
        return Interval(self.estimate, *percentile_bounds(self._samples))

    def minus(self, other: "SeedScores") -> Difference:
        """The difference to another model on the same seeds and images.

        The p-value is two-sided, as that of `paired_bootstrap`.

        Raises:
            DataError: the other one has other seeds or images.
        """
        mine, others = [[rows.shape[1] for rows in one.seeds] for one in (self, other)]
        if mine != others or self.is_shared != other.is_shared:
            raise DataError(f"images of each seed are {mine} and {others}: they cannot be paired")
        difference = float((self.of_seeds - other.of_seeds).mean())
        samples = self._samples - other._samples
        return Difference(difference, *percentile_bounds(samples), two_sided_p(samples))

    def images_needed(self, other: "SeedScores") -> int | None:
        """Test images for a difference as large as this one to be decided in four tests of five.

        The seeds stay as they are: the error that images make falls with the root of their number,
        the seeds' own does not.

        Returns:
            None where no number is enough: more seeds are needed, or there is no difference.

        Raises:
            DataError: the other one has other seeds or images.
        """
        difference = self.minus(other).difference
        resampled = self._by_images - other._by_images
        of_images = float(resampled.mean(axis=0).var())
        left = (difference / _DECIDED) ** 2 - self._of_seeds(other, resampled, of_images)
        # A resample without any image that counts has no figure (NaN).
        if not left > 0.0:
            return None
        # At least one: where all images agree nothing is left to find.
        return max(1, math.ceil(self.num_images * of_images / left))

    def _of_seeds(
        self, other: "SeedScores", resampled: NDArray[np.float64], of_images: float
    ) -> float:
        """Variance of the mean difference that seeds make, whatever the number of images.

        Args:
            other: the other model.
            resampled: differences over resamples of images, (seeds, samples).
            of_images: variance of their mean over seeds.
        """
        count = len(self.seeds)
        if count < 2:
            # One seed says nothing of others.
            return 0.0
        # The differences of seeds vary by their images as well: by those of its own, or, where all
        # have the same, by what a seed makes of these and another does not.
        by_images = float(resampled.var(axis=1).mean())
        if self.is_shared:
            by_images = (by_images - of_images) * count / (count - 1)
        by_seed = float((self.of_seeds - other.of_seeds).var(ddof=1))
        return max(0.0, by_seed - by_images) / count

    @cached_property
    def _by_images(self) -> NDArray[np.float64]:
        """Each seed's figure of resamples of images, (seeds, samples); equal draws as above."""
        figures = []
        for number, rows in enumerate(self.seeds):
            generator = np.random.default_rng(0 if self.is_shared else number)
            size = max(1, _BLOCK_NUMBERS // rows.shape[1])
            counts = [min(size, _NUM_SAMPLES - n) for n in range(0, _NUM_SAMPLES, size)]
            blocks = [_resampled(_times_drawn(generator, n, rows.shape[1]), rows) for n in counts]
            figures.append(np.concatenate(blocks))
        return np.stack(figures)

    @cached_property
    def _samples(self) -> NDArray[np.float64]:
        """The figure of each resample; equal numbers of seeds and images give equal draws."""
        # A fixed seed: two models with equal splits have equal draws, and can be subtracted.
        generator = np.random.default_rng(0)
        most = max(rows.shape[1] for rows in self.seeds)
        size = max(1, _BLOCK_NUMBERS // most)
        starts = range(0, _NUM_SAMPLES, size)
        draw = self._drawn_together if self.is_shared else self._drawn_apart
        return np.concatenate([draw(generator, min(size, _NUM_SAMPLES - n)) for n in starts])

    def _drawn_together(
        self, generator: np.random.Generator, num_samples: int
    ) -> NDArray[np.float64]:
        """Resamples of seeds, all of which have a resample's images."""
        count = len(self.seeds)
        drawn = generator.integers(count, size=(num_samples, count))
        times = _times_drawn(generator, num_samples, self.seeds[0].shape[1])
        # Of all seeds by the same images, then those that were drawn, each as often as it was.
        figures = np.stack([_resampled(times, rows) for rows in self.seeds], axis=1)
        mean: NDArray[np.float64] = np.take_along_axis(figures, drawn, axis=1).mean(axis=1)
        return mean

    def _drawn_apart(self, generator: np.random.Generator, num_samples: int) -> NDArray[np.float64]:
        """Resamples of seeds, each of which has images of its own whenever it is drawn."""
        count = len(self.seeds)
        drawn = generator.integers(count, size=(num_samples, count))
        figures = np.empty((num_samples, count))
        for number, rows in enumerate(self.seeds):
            places = drawn == number
            times = _times_drawn(generator, int(places.sum()), rows.shape[1])
            figures[places] = _resampled(times, rows)
        mean: NDArray[np.float64] = figures.mean(axis=1)
        return mean


def _times_drawn(
    generator: np.random.Generator, num_samples: int, images: int
) -> NDArray[np.float64]:
    """How often each image is drawn in each resample, (samples, images)."""
    # Counts instead of places: a resample is then one row of a matrix product.
    return generator.multinomial(images, [1 / images] * images, size=num_samples).astype(np.float64)


def _resampled(times: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The figure of each resample, (samples,), of images drawn so many times, (samples, images)."""
    return _figure(np.stack([times @ metric for metric in rows]))


def _figure(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over metrics of the quotients of (metrics, ..., 2)."""
    scores, weights = sums[..., 0], sums[..., 1]
    # A resample may draw no image that counts for a metric.
    quotients = np.divide(scores, weights, out=np.full_like(scores, np.nan), where=weights > 0)
    mean: NDArray[np.float64] = quotients.mean(axis=0)
    return mean


def verdict(difference: Difference) -> str:
    """Whether a claimed difference above zero holds, by its interval."""
    if difference.low > 0:
        return "holds"
    return "does not hold" if difference.high < 0 else "not decided"


def stored_units(units: Mapping[str, UnitScores]) -> StoredUnits:
    """Scores by metric as plain values, exact: weights may be small, as those of rare classes."""
    return {
        metric: {"scores": found.scores.tolist(), "weights": found.weights.tolist()}
        for metric, found in units.items()
    }


def seed_scores(
    units: Sequence[StoredUnits], metrics: Sequence[str], is_shared: bool
) -> SeedScores | None:
    """The scores of some metrics from the stored units of each seed; None where one lacks them."""
    if any(metric not in found for found in units for metric in metrics):
        return None
    rows = [
        np.array([np.stack([found[m]["scores"], found[m]["weights"]], axis=1) for m in metrics])
        for found in units
    ]
    return SeedScores(tuple(rows), is_shared)


@dataclass(frozen=True)
class StageState:
    """How far a stage is."""

    kind: str
    name: str
    folder: str
    """Name of its folder."""
    is_finished: bool


@dataclass(frozen=True)
class Compute:
    """What a model took, with all that it needs: means over seeds."""

    flops: float | None
    """Of training and of CapFilt; None where that of a task was not counted."""
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """A claim by one figure."""

    claim: ClaimSpec
    figure: str
    difference: Difference | None
    """None where a figure is missing."""

    @property
    def word(self) -> str:
        """`holds`, `does not hold`, `not decided`, or `not measured`."""
        return verdict(self.difference) if self.difference else "not measured"


class Findings:
    """The figures of a comparison, as far as its stages are finished.

    Args:
        spec: the comparison.
        root: folder of the stages.
    """

    def __init__(self, spec: ComparisonSpec, root: Path) -> None:
        self.spec = spec
        self._graph, self._root = StageGraph(spec), root
        self._scores: dict[tuple[str, str], SeedScores | None] = {}

    @cached_property
    def evaluations(self) -> list[Stage]:
        """The evaluations that tables and claims need, each once.

        Raises:
            FieldError: the file asks for what cannot be.
        """
        wanted = dict.fromkeys(
            (model, figure.partition(".")[0]) for _, model, figure in self.spec.pairs()
        )
        return [
            self._graph.evaluation(model, task, seed)
            for seed in self.spec.seeds
            for model, task in wanted
        ]

    @property
    def stages(self) -> list[StageState]:
        """All stages in an order in which they can be carried out."""
        every = closure(self.evaluations)
        missing = undone(every, self._root)
        return [
            StageState(stage.kind, stage.name, stage.folder(self._root).name, key not in missing)
            for key, stage in every.items()
        ]

    def scores(self, model: str, figure: str) -> SeedScores | None:
        """A figure of a model; None if it cannot do the task, or a stage is not finished."""
        key = (model, figure)
        if key not in self._scores:
            self._scores[key] = self._read(model, figure)
        return self._scores[key]

    def why_missing(self, model: str, figure: str) -> str | None:
        """Why a figure has no value though all is done; None if it has one, or is not finished."""
        if self.scores(model, figure) is not None:
            return None
        results = [stage.result(self._root) for stage in self._stages(model, figure)]
        finished = [result for result in results if result is not None]
        if len(finished) < len(results):
            return None
        for result in finished:
            if "missing" in result:
                return str(result["missing"])
        measured = set.intersection(*(set(result["units"]) for result in finished))
        if not measured:
            return "the data has nothing to compare with"
        return f"the data gives {', '.join(sorted(measured))} alone"

    def difference(self, model: str, baseline: str, figure: str) -> Difference | None:
        """A model's figure less that of another one, on the same seeds and images."""
        mine, other = self.scores(model, figure), self.scores(baseline, figure)
        return mine.minus(other) if mine and other else None

    def compute(self, model: str) -> Compute | None:
        """What the model took; None for one that was there before, or is unfinished."""
        flops: float | None = 0.0
        seconds = 0.0
        for seed in self.spec.seeds:
            stage = self._graph.model(model, seed)
            if isinstance(stage, Given):
                return None
            for needed in closure([stage]).values():
                result = needed.result(self._root)
                if result is None:
                    return None
                # Making data is no computation of a model's.
                if needed.kind != "data":
                    flops = added(flops, result["flops"])
                    seconds += result["seconds"]
        count = len(self.spec.seeds)
        return Compute(None if flops is None else flops / count, seconds / count)

    def verdicts(self) -> list[Verdict]:
        """Every claim by each of its figures."""
        return [
            Verdict(claim, figure, self.difference(claim.better, claim.than, figure))
            for claim in self.spec.claims
            for figure in claim.figures
        ]

    def _stages(self, model: str, figure: str) -> list[Stage]:
        task = figure.partition(".")[0]
        return [self._graph.evaluation(model, task, seed) for seed in self.spec.seeds]

    def _read(self, model: str, figure: str) -> SeedScores | None:
        stages = self._stages(model, figure)
        results = [stage.result(self._root) for stage in stages]
        units = [result["units"] for result in results if result is not None]
        if len(units) < len(results):
            return None
        # Seeds share their test images where their tables have their rows from one and the same.
        tables = {rows_of(stage.inputs["table"]) for stage in stages}
        metrics = parts_of(figure.partition(".")[2])
        return seed_scores(units, metrics, is_shared=len(tables) == 1)
