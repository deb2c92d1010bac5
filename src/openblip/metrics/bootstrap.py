"""How far a metric can be trusted: bootstrap intervals and paired comparisons."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openblip.runtime.errors import DataError

Statistic = Callable[[NDArray[Any]], float]


class Interval(NamedTuple):
    """An estimate with its bootstrap interval."""

    estimate: float
    low: float
    high: float


class Difference(NamedTuple):
    """The difference of two systems (first - second), its interval, and how sure it is."""

    difference: float
    low: float
    high: float
    p_value: float


def mean(values: NDArray[Any]) -> float:
    """Returns the mean of all values."""
    return float(np.mean(values))


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic = mean,
    *,
    num_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Returns a statistic of the units and its percentile bootstrap interval (Efron 1979).

    Args:
        values: one entry or row per unit. A unit is what was drawn independently: the image, not
            each of its five captions.
        statistic: of resampled `values`, for example `lambda rows: bleu(rows)[3]` on the rows of
            `bleu_statistics`.
        num_samples: resamples with replacement.
        confidence: share of the resamples that the interval holds, between 0 and 1.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        DataError: there are no values, or a setting is out of range.
    """
    array = _units(values)
    samples = _resample([array], statistic, num_samples, seed)[0]
    return Interval(statistic(array), *percentile_bounds(samples, confidence))


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Statistic = mean,
    *,
    num_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Returns the difference of two systems on the same units, tested by the paired bootstrap.

    The p-value is that of `two_sided_p`.

    Args:
        first: one entry or row per unit, see `bootstrap_interval`.
        second: the same units in the same order.
        statistic: of resampled values.
        num_samples: resamples; both systems are resampled with the same units.
        confidence: of the interval of the difference.
        seed: of the resampling.

    Raises:
        DataError: the systems have different units, no units, or a setting is out of range.
    """
    one, two = _units(first), _units(second)
    if one.shape != two.shape:
        raise DataError(f"systems of shapes {one.shape} and {two.shape} have no common units")
    differences = np.subtract(*_resample([one, two], statistic, num_samples, seed))
    low, high = percentile_bounds(differences, confidence)
    return Difference(statistic(one) - statistic(two), low, high, two_sided_p(differences))


def two_sided_p(differences: NDArray[np.float64]) -> float:
    """Returns twice the share of resampled differences that are zero or have the rarer sign.

    One is added to count and total (Koehn 2004), so that it is never zero.
    """
    # A difference of zero speaks for neither side, and so counts against both.
    rarer = min(np.count_nonzero(differences <= 0.0), np.count_nonzero(differences >= 0.0))
    return min(1.0, 2.0 * (rarer + 1) / (len(differences) + 1))


def percentile_bounds(
    samples: NDArray[np.float64], confidence: float = 0.95
) -> tuple[float, float]:
    """Returns the ends of the interval that holds a share of the resamples.

    Raises:
        DataError: the share is not between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise DataError(f"confidence is {confidence}; it must lie between 0 and 1")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail])
    return float(low), float(high)


def _units(values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim == 0 or not len(array):
        raise DataError(f"nothing to resample: the values have the shape {array.shape}")
    return array


def _resample(
    systems: list[NDArray[Any]], statistic: Statistic, num_samples: int, seed: int
) -> NDArray[np.float64]:
    """Returns the statistic of each resample, (systems, num_samples)."""
    if num_samples < 1:
        raise DataError(f"num_samples is {num_samples}; it must be at least 1")
    # One statistic after another, for it may be any function, as BLEU, which is no mean over units;
    # and a table of all draws (samples, units) would be larger than the scores by a thousand.
    generator = np.random.default_rng(seed)
    results = np.empty((len(systems), num_samples))
    for sample in range(num_samples):
        # The same units for all systems: what is hard for one mostly is for the other, and that
        # part of the variance leaves the difference.
        drawn = generator.integers(len(systems[0]), size=len(systems[0]))
        results[:, sample] = [statistic(values[drawn]) for values in systems]
    return results
