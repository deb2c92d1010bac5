"""Precision and recall of a filter at thresholds, with intervals, from a reviewed sample.

Estimates weigh each verdict by the inverse of the probability with which its text was drawn
(Horvitz and Thompson, 1952): of each stratum, and of its parts above and below the threshold, the
share of right texts counts as often as the part has texts.

Intervals invert a score test, as Wilson (1927) did for one proportion. For strata the variance
under the hypothesis needs every stratum's share; the likeliest shares for which the hypothesis
holds are taken (Miettinen and Nurminen, 1985), so that a stratum of which all labels are right does
not count as one of which all texts are. A correction for continuity makes them about as careful as
those of Clopper and Pearson (1934), and one for finite strata makes them points where everything is
labelled. They are held to simulation in the tests and in `benchmarks/review.py`.

Each interval is one for its own threshold. A threshold that was chosen by looking at the curve
needs `certificate.py`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openblip.review.strata import Design, Labels

_Z = 1.959963984540054
"""Of the normal distribution: 2.5 % lie above."""
# What is known and not estimated has so many labels.
_CERTAIN = 1e12
# Halvings of the ranges below: to 80 / 2^30 of a multiplier's logarithm, and 1 / 2^16 of recall.
_MULTIPLIER_STEPS, _RECALL_STEPS = 30, 16


@dataclass(frozen=True, eq=False)
class Curve:
    """A share at each threshold, with its 95 % interval; NaN where nothing is known of it."""

    estimate: NDArray[np.float64]
    """(thresholds,)."""
    low: NDArray[np.float64]
    """(thresholds,); texts that nobody could judge, and parts without labels, count as wrong."""
    high: NDArray[np.float64]
    """(thresholds,); these count as right."""


@dataclass(frozen=True, eq=False)
class _Parts:
    """Labels by threshold and part of a stratum, all (thresholds, parts)."""

    sizes: NDArray[np.float64]
    counts: NDArray[np.float64]
    rights: NDArray[np.float64]

    def filled(self, share: float) -> "_Parts":
        """The same, with a known share in the parts of which there is no label."""
        is_dark = (self.counts == 0) & (self.sizes > 0)
        counts = np.where(is_dark, self.sizes, self.counts)
        return _Parts(self.sizes, counts, np.where(is_dark, share * self.sizes, self.rights))

    @property
    def evidence(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Labels, and right ones, that would tell as much of infinitely many texts."""
        left = np.maximum(self.sizes - self.counts, 0.0)
        # Drawn without replacement: the variance is smaller by (N - n) / (N - 1).
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(left > 0, (self.sizes - 1) / left, _CERTAIN)
        counts = np.minimum(self.counts * np.maximum(scale, 1.0), _CERTAIN)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(self.counts > 0, self.rights / self.counts, 0.0)
        return counts, counts * shares


def precision_curve(design: Design, labels: Labels, thresholds: NDArray[np.float64]) -> Curve:
    """The share of right texts among those above each threshold."""
    low, middle, high = (_parts(design, made, thresholds, above=True) for made in _readings(labels))
    totals = low.sizes.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(totals > 0, low.sizes / totals, 0.0)
        estimate = _weighted(weights, middle)
    is_empty = (totals[:, 0] == 0) | (middle.counts.sum(axis=1) == 0)
    bounds = (_lower(weights, low.filled(0.0)), 1 - _lower(weights, _mirrored(high.filled(1.0))))
    return Curve(*(np.where(is_empty, np.nan, line) for line in (estimate, *bounds)))


def recall_curve(design: Design, labels: Labels, thresholds: NDArray[np.float64]) -> Curve:
    """The share of the right texts that lies above each threshold."""
    wrong, middle, right = _readings(labels)
    above, below = (
        [_parts(design, made, thresholds, above=side) for made in readings]
        for side, readings in ((True, (wrong, middle, right)), (False, (right, middle, wrong)))
    )
    rights = [_expected(part[1]) for part in (above, below)]
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = rights[0] / (rights[0] + rights[1])
    low = _recall_bound(above[0].filled(0.0), below[0].filled(1.0), is_lower=True)
    high = _recall_bound(above[2].filled(1.0), below[2].filled(0.0), is_lower=False)
    is_empty = np.isnan(estimate) & (len(middle) == 0)
    return Curve(*(np.where(is_empty, np.nan, line) for line in (estimate, low, high)))


def _readings(labels: Labels) -> tuple[Labels, Labels, Labels]:
    """Labels with the unsure ones as wrong, left out, and as right."""
    told = ~np.isnan(labels.right)
    sure = Labels(labels.strata[told], labels.itm[told], labels.right[told])
    return labels.unsure_as(0.0), sure, labels.unsure_as(1.0)


def _parts(design: Design, labels: Labels, thresholds: NDArray[np.float64], above: bool) -> _Parts:
    sizes = design.kept(thresholds)
    # All thresholds at once, (thresholds, labels).
    inside = labels.itm > thresholds[:, None]
    if not above:
        sizes, inside = design.sizes - sizes, ~inside
    of_stratum = np.zeros((len(labels), len(design.sizes)))
    of_stratum[np.arange(len(labels)), labels.strata] = 1.0
    counts = inside @ of_stratum
    return _Parts(sizes.astype(np.float64), counts, (inside * labels.right) @ of_stratum)


def _mirrored(parts: _Parts) -> _Parts:
    return _Parts(parts.sizes, parts.counts, parts.counts - parts.rights)


def _weighted(weights: NDArray[np.float64], parts: _Parts) -> NDArray[np.float64]:
    """The weighted mean of shares over the parts that have labels."""
    has = parts.counts > 0
    shares = np.where(has, parts.rights / np.maximum(parts.counts, 1.0), 0.0)
    known = (weights * has).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weights * shares).sum(axis=1) / known)


def _expected(parts: _Parts) -> NDArray[np.float64]:
    """Right texts, a part without labels being as the others."""
    total = parts.sizes.sum(axis=1)
    return np.where(total > 0, _weighted(parts.sizes, parts) * total, 0.0)


def _likeliest(
    multiplied: NDArray[np.float64], counts: NDArray[np.float64], rights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The shares p that maximise the likelihood less the sum of `multiplied` times p.

    Each is the root in [0, 1] of rights / p - (counts - rights) / (1 - p) = multiplied, a quadratic
    equation. Where `multiplied` is negative it is solved for 1 - p, so that nothing cancels.
    """
    sign = multiplied < 0
    size = np.abs(multiplied)
    wanted = np.where(sign, counts - rights, rights)
    total = counts + size
    # Below 0 by rounding alone.
    root = np.sqrt(np.maximum(total * total - 4 * size * wanted, 0.0))
    share = np.where(total > 0, 2 * wanted / np.maximum(total + root, 1e-300), 0.0)
    return np.clip(np.where(sign, 1 - share, share), 0.0, 1.0)


def _lower(weights: NDArray[np.float64], parts: _Parts) -> NDArray[np.float64]:
    """The smallest weighted mean that the score test does not reject, (thresholds,).

    The multiplier of Lagrange is what is searched for: it determines the likeliest shares, and they
    the mean that is tested, which falls as the multiplier grows.
    """
    counts, rights = parts.evidence
    found = (weights * np.where(counts > 0, rights / np.maximum(counts, 1e-300), 0.0)).sum(axis=1)
    step = _half_step(weights, counts)
    # Logarithms of the multiplier: at one end it moves hardly a share, at the other it leaves none.
    low, high = np.full(len(found), -20.0), np.full(len(found), 60.0)
    shares = np.zeros_like(counts)
    for _ in range(_MULTIPLIER_STEPS):
        middle = (low + high) / 2
        shares = _likeliest(np.exp(middle)[:, None] * weights, counts, rights)
        tested = (weights * shares).sum(axis=1)
        is_rejected = found - tested - step > _Z * _deviation(weights, counts, shares)
        low, high = np.where(is_rejected, low, middle), np.where(is_rejected, middle, high)
    return np.asarray(np.clip((weights * shares).sum(axis=1), 0.0, found))


def _recall_bound(above: _Parts, below: _Parts, is_lower: bool) -> NDArray[np.float64]:
    """The recall r at which "(1 - r) rights above = r rights below" is just not rejected."""
    parts = _Parts(
        np.concatenate([above.sizes, below.sizes], axis=1),
        np.concatenate([above.counts, below.counts], axis=1),
        np.concatenate([above.rights, below.rights], axis=1),
    )
    counts, rights = parts.evidence
    split = above.sizes.shape[1]
    total = np.maximum(parts.sizes.sum(axis=1, keepdims=True), 1.0)
    found = np.where(counts > 0, rights / np.maximum(counts, 1e-300), 0.0)
    low, high = np.zeros(len(counts)), np.ones(len(counts))
    for _ in range(_RECALL_STEPS):
        recall = (low + high)[:, None] / 2
        weights = parts.sizes / total
        weights = np.concatenate(
            [(1 - recall) * weights[:, :split], -recall * weights[:, split:]], 1
        )
        shares = _balanced(weights, counts, rights)
        gap = (weights * found).sum(axis=1)
        gap = gap if is_lower else -gap
        is_rejected = gap - _half_step(weights, counts) > _Z * _deviation(weights, counts, shares)
        move_up = is_rejected if is_lower else ~is_rejected
        low, high = np.where(move_up, recall[:, 0], low), np.where(move_up, high, recall[:, 0])
    return low if is_lower else high


def _balanced(
    weights: NDArray[np.float64], counts: NDArray[np.float64], rights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The likeliest shares whose weighted sum is 0."""
    # The sinh of it is the multiplier: both signs, and many orders of magnitude, in few steps.
    low, high = np.full(len(weights), -40.0), np.full(len(weights), 40.0)
    shares = np.zeros_like(counts)
    for _ in range(_MULTIPLIER_STEPS):
        middle = (low + high) / 2
        shares = _likeliest(np.sinh(middle)[:, None] * weights, counts, rights)
        is_above = (weights * shares).sum(axis=1) > 0
        low, high = np.where(is_above, middle, low), np.where(is_above, high, middle)
    return shares


def _deviation(
    weights: NDArray[np.float64], counts: NDArray[np.float64], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    terms = weights**2 * shares * (1 - shares) / np.maximum(counts, 1e-300)
    return np.asarray(np.sqrt(np.where(counts > 0, terms, 0.0).sum(axis=1)))


def _half_step(weights: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half of what one more right label changes, as the mean over texts."""
    total = np.maximum(np.abs(weights).sum(axis=1), 1e-300)
    steps = np.where(counts > 0, weights**2 / np.maximum(counts, 1e-300), 0.0)
    return np.asarray(0.5 * steps.sum(axis=1) / total)
