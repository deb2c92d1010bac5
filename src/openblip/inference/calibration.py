"""How far probabilities can be trusted, and one temperature that mends them (Guo et al., 2017)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openblip.runtime.errors import DataError, RecipeError

# Of a sure prediction float32 makes 1, and 0 for the other class: its logarithm is infinite.
_SMALLEST = 1e-12
# A temperature outside says that the labels can be told apart without error, or not at all.
_LOWEST, _HIGHEST = 1e-2, 1e2
_NEWTON_STEPS = 100


@dataclass(frozen=True)
class ReliabilityBin:
    """The predictions whose confidence falls into one interval (low, high]."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean confidence; NaN where the bin is empty."""
    accuracy: float
    """Share of correct predictions; NaN where the bin is empty."""
    weight: float
    """Sum of their weights; their number, where they have none."""


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, and the calibration error without and with it."""

    temperature: float
    """Logits are divided by it: above 1 where the model is too sure."""
    ece_before: float
    """Expected calibration error in [0, 1] of the given probabilities."""
    ece_after: float
    """The same with the temperature, on the same pairs."""
    before: tuple[ReliabilityBin, ...]
    """The reliability table of the given probabilities, all bins."""
    after: tuple[ReliabilityBin, ...]
    """The same with the temperature."""

    def apply(self, probabilities: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probabilities, of the same shape as the given ones.

        Args:
            probabilities: (n,) of "match" or of "yes", or (n, classes), summing to one.
        """
        values = _checked(probabilities, "probabilities")
        scaled = _softmax(_as_logits(values) / self.temperature)
        return scaled[:, 1] if values.ndim == 1 else scaled


def calibrate(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    logits: bool = False,
    num_bins: int = 15,
    weights: ArrayLike | None = None,
) -> Calibration:
    """One temperature that minimises the negative log-likelihood of labelled predictions.

    The likelihood is convex in the inverse temperature; Newton's method finds its minimum. The
    order of the classes never changes: accuracy stays.

    The expected calibration error is the mean over predictions, in `num_bins` equally wide bins of
    the confidence, of |accuracy - mean confidence| of the bin (Guo et al., 2017, equation 3). The
    confidence is the largest probability, and a prediction is right where its class is the
    label; of two classes too.

    Args:
        probabilities: of matches (n,), `Match.itm`, or of answers (n, classes), each row summing
            to one, of which those below 1e-12 count as that; or logits of the same shapes, those
            of matches being log-odds.
        labels: (n,): 1 or True where a pair matches; or the index of the right answer.
        logits: whether logits are given.
        num_bins: of the reliability tables; 15 is the paper's.
        weights: (n,), positive: how many predictions each stands for, where they were drawn with
            unequal probabilities; by default all count alike.

    Raises:
        DataError: if there is nothing to fit: shapes or values that are none, only one class among
            the labels, or labels that the model predicts without error or as badly as chance.
        RecipeError: if `num_bins` is below 1.
    """
    if num_bins < 1:
        raise RecipeError(f"num_bins is {num_bins}; give 1 or more")
    values = _checked(probabilities, "logits" if logits else "probabilities")
    scores = _binary_logits(values) if logits else _as_logits(values)
    targets = _checked_labels(labels, *scores.shape)
    each = _checked_weights(weights, len(targets))
    temperature = 1.0 / _fit_inverse_temperature(scores, targets, each)
    before = reliability(_softmax(scores), targets, num_bins, each)
    after = reliability(_softmax(scores / temperature), targets, num_bins, each)
    return Calibration(temperature, expected_error(before), expected_error(after), before, after)


def reliability(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    num_bins: int = 15,
    weights: NDArray[np.float64] | None = None,
) -> tuple[ReliabilityBin, ...]:
    """The reliability table of predictions (n, classes), bins of equal width over (0, 1]."""
    each = np.ones(len(labels)) if weights is None else weights
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    # The lowest edge belongs to the first bin, although intervals are open below.
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    bins = []
    for number in range(num_bins):
        inside = places == number
        count = int(inside.sum())
        bins.append(
            ReliabilityBin(
                float(edges[number]),
                float(edges[number + 1]),
                count,
                _mean(confidence[inside], each[inside]),
                _mean(correct[inside], each[inside]),
                float(each[inside].sum()),
            )
        )
    return tuple(bins)


def expected_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """The expected calibration error of a reliability table, in [0, 1]."""
    total = sum(each.weight for each in bins)
    # The means of an empty bin are NaN, and so would be the sum.
    gaps = (each.weight * abs(each.accuracy - each.confidence) for each in bins if each.count)
    return sum(gaps) / total


def _fit_inverse_temperature(
    logits: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> float:
    """Newton's method on the mean loss, kept inside a bracket of its derivative's root.

    The derivative is the mean expected logit minus the mean logit of the label, and grows with
    the inverse temperature; the second derivative is the mean variance of the logits.
    """
    of_label = _mean(logits[np.arange(len(labels)), labels], weights)

    def derivatives(inverse: float) -> tuple[float, float]:
        probabilities = _softmax(logits * inverse)
        expected = (probabilities * logits).sum(axis=1)
        variance = (probabilities * (logits - expected[:, None]) ** 2).sum(axis=1)
        return _mean(expected, weights) - of_label, _mean(variance, weights)

    low, high = 1.0 / _HIGHEST, 1.0 / _LOWEST
    # Up to rounding: with any prediction wrong it is the mean distance to the largest logit.
    if derivatives(high)[0] < 1e-9:
        raise DataError(
            "the labels are predicted without error, so that no temperature is low enough; "
            "give pairs that the model finds difficult, or more of them"
        )
    if derivatives(low)[0] > 0.0:
        raise DataError(
            "the predictions are no better than chance, so that no temperature is high enough; "
            "give more pairs, or check that labels and predictions are in the same order"
        )
    inverse = 1.0
    for _ in range(_NEWTON_STEPS):
        slope, curvature = derivatives(inverse)
        # The bracket shrinks at every step, also where Newton would leave it: then it is halved.
        low, high = (inverse, high) if slope < 0.0 else (low, inverse)
        # `low` is no step within the bracket: without a curvature it is halved.
        step = inverse - slope / curvature if curvature > 0.0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - inverse) < 1e-10 * inverse:
            break
        inverse = following
    return inverse


def _checked(given: ArrayLike, name: str) -> NDArray[np.float64]:
    values = np.asarray(given, dtype=np.float64)
    if values.ndim not in (1, 2) or not values.size or (values.ndim == 2 and values.shape[1] < 2):
        raise DataError(f"{name} of shape {values.shape}; give (n,) or (n, classes), n at least 1")
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise DataError(f"{name} of row {row} are not finite; leave such rows out")
    if name == "probabilities":
        sums = values.sum(axis=1) if values.ndim == 2 else np.ones(len(values))
        wrong = ((values < 0) | (values > 1)).reshape(len(values), -1).any(axis=1)
        wrong |= abs(sums - 1) > 1e-3
        if wrong.any():
            raise DataError(
                f"row {int(wrong.argmax())} is no probability distribution; give numbers in "
                "[0, 1] that sum to one, or logits=True"
            )
    return values


def _checked_labels(given: ArrayLike, rows: int, classes: int) -> NDArray[np.int64]:
    values = np.asarray(given)
    if values.shape != (rows,):
        raise DataError(f"labels of shape {values.shape} for {rows} predictions; give one each")
    labels = values.astype(np.int64)
    # The cast cuts: a label of 0.7 would be class 0.
    if (labels != values).any() or labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"a label is none of 0 to {classes - 1}")
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"all labels are {labels[0]}; a temperature needs pairs of at least 2 classes"
        )
    return labels


def _checked_weights(given: ArrayLike | None, rows: int) -> NDArray[np.float64]:
    values = np.ones(rows) if given is None else np.asarray(given, dtype=np.float64)
    if values.shape != (rows,) or not (np.isfinite(values) & (values > 0)).all():
        raise DataError(f"weights must be {rows} positive numbers, one for each prediction")
    return values


def _mean(values: NDArray[Any], weights: NDArray[np.float64]) -> float:
    # NumPy refuses weights that sum to zero, as those of nothing do.
    return float(np.average(values, weights=weights)) if len(values) else float("nan")


def _binary_logits(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.zeros_like(values), values], axis=1) if values.ndim == 1 else values


def _as_logits(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits whose softmax is the given probabilities, of which none is below 1e-12."""
    if probabilities.ndim == 1:
        probabilities = np.stack([1.0 - probabilities, probabilities], axis=1)
    return np.log(np.maximum(probabilities, _SMALLEST))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    # Less the largest, so that no power overflows; the quotient is the same.
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
