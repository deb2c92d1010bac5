"""What the verdicts of a sample say of the filter, as plain numbers for a page or a program.

And how far reviewers agree, beyond what chance alone would let them.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import isclose
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openblip.inference.calibration import Calibration, calibrate
from openblip.review.certificate import sequence
from openblip.review.intervals import Curve, precision_curve, recall_curve
from openblip.review.strata import Design, Labels
from openblip.runtime.errors import DataError


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval; NaN where nothing is known."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "-"
        return f"{100 * self.value:.0f} % ({100 * self.low:.0f} to {100 * self.high:.0f})"


@dataclass(frozen=True)
class CurvePoint:
    """The filter at one threshold."""

    threshold: float
    kept: int
    """Texts above it."""
    keeps: float
    """Their share of all texts."""
    labels: int
    """Texts above it with a verdict."""
    precision: Estimate
    """The share of right texts among those above it."""
    recall: Estimate | None
    """The share of the right texts that lies above it; None where only texts on one side of the
    current threshold were drawn from."""


@dataclass(frozen=True)
class Pair:
    """Two reviewers."""

    first: str
    second: str
    texts: int
    """That both have judged."""
    kappa: float
    """Cohen's: 1 for agreement, 0 for that of chance."""


@dataclass(frozen=True)
class Agreement:
    """How far reviewers agree: pair by pair, and all together (`krippendorff_alpha`)."""

    texts: int
    """With verdicts of two reviewers at least."""
    alpha: float
    """Krippendorff's, of all reviewers together."""
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class ReviewEstimates:
    """What the verdicts say of the filter."""

    labels: int
    """Texts with a verdict."""
    unsure: int
    """Those of them about which nobody could tell, or reviewers are of two minds."""
    points: tuple[CurvePoint, ...]
    """By threshold, ascending."""
    current: CurvePoint
    """The one at the current threshold."""
    calibration: Calibration | None
    """A temperature for the match probabilities, texts weighed by how many each stands for."""
    not_calibrated: str
    """Why there is none; empty where there is."""
    isotonic: tuple[tuple[float, float], ...]
    """Steps (match probability, share of right texts from there on) of the best fit that never
    falls; empty without a label."""
    agreement: Agreement

    def as_plain(self) -> dict[str, Any]:
        """Numbers, texts, lists and dictionaries of them; not the tables of the calibration."""
        plain = asdict(self)
        found = self.calibration
        plain["calibration"] = found and {
            "temperature": found.temperature,
            "ece_before": found.ece_before,
            "ece_after": found.ece_after,
        }
        return plain


def estimate(
    design: Design,
    labels: Labels,
    threshold: float,
    verdicts: dict[str, dict[str, str]],
) -> ReviewEstimates:
    """What labels say of the filter.

    Args:
        design: what their texts were drawn from.
        labels: one for each judged text.
        threshold: the current one.
        verdicts: by reviewer, then by text.
    """
    # The current one is among them as it is, so that it is found again below.
    thresholds = np.unique([*sequence(design, threshold)[0], threshold])
    precision = precision_curve(design, labels, thresholds)
    recall = None if design.is_one_sided else recall_curve(design, labels, thresholds)
    kept = design.kept(thresholds).sum(axis=1)
    total = max(int(design.sizes.sum()), 1)
    points = tuple(
        CurvePoint(
            float(value),
            int(kept[place]),
            float(kept[place] / total),
            int((labels.itm > value).sum()),
            _at(precision, place),
            None if recall is None else _at(recall, place),
        )
        for place, value in enumerate(thresholds)
    )
    # What nobody could tell widens the intervals, and neither calibrates nor counts as wrong here.
    told = ~np.isnan(labels.right)
    itm, right, weights = labels.itm[told], labels.right[told], stands_for(design, labels)[told]
    calibration, why = _calibrated(itm, right, weights)
    return ReviewEstimates(
        len(labels),
        int((~told).sum()),
        points,
        points[int(np.flatnonzero(thresholds == threshold)[0])],
        calibration,
        why,
        isotonic_steps(itm, right, weights),
        _agreement(verdicts),
    )


def stands_for(design: Design, labels: Labels) -> NDArray[np.float64]:
    """How many texts of the collection each label stands for, (labels,)."""
    counts = np.bincount(labels.strata, minlength=len(design.sizes))
    # No label asks for a stratum without labels, in which NumPy would divide by 0.
    return np.asarray((design.sizes / np.maximum(counts, 1))[labels.strata])


def isotonic_steps(
    itm: NDArray[np.float64], right: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[tuple[float, float], ...]:
    """The function of the score that never falls and is nearest in weighted squares.

    Neighbours that fall are pooled until none does (Ayer et al., 1955). Labels of the same score
    count as one from the beginning.

    Returns:
        Steps, ascending: the lowest score of each, and the share of right texts from there on.
    """
    scores, places = np.unique(itm, return_inverse=True)
    sums = np.bincount(places, weights * right, len(scores))
    blocks: list[tuple[float, float, float]] = []
    for score, rights, weight in zip(
        scores, sums, np.bincount(places, weights, len(scores)), strict=True
    ):
        block = (float(score), float(rights), float(weight))
        # Equal shares are pooled too, and make one step.
        while blocks and blocks[-1][1] * block[2] >= block[1] * blocks[-1][2]:
            first, others, heavy = blocks.pop()
            block = (first, block[1] + others, block[2] + heavy)
        blocks.append(block)
    return tuple((score, rights / weight) for score, rights, weight in blocks)


def _at(curve: Curve, place: int) -> Estimate:
    return Estimate(float(curve.estimate[place]), float(curve.low[place]), float(curve.high[place]))


def _calibrated(
    itm: NDArray[np.float64], right: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[Calibration | None, str]:
    if not len(itm):
        return None, "there is no label yet"
    if itm.min() < 0 or itm.max() > 1:
        return None, "the score is no probability, so there is nothing to calibrate"
    try:
        return calibrate(itm, right.astype(np.int64), weights=weights), ""
    except DataError as error:
        return None, str(error)


def _agreement(verdicts: dict[str, dict[str, str]]) -> Agreement:
    of_texts = defaultdict[str, list[str]](list)
    for own in verdicts.values():
        for text, verdict in own.items():
            of_texts[text].append(verdict)
    several: Sequence[list[str]] = [own for own in of_texts.values() if len(own) > 1]
    pairs = tuple(Pair(*pair) for pair in pairwise_kappas(verdicts))
    return Agreement(len(several), krippendorff_alpha(several), pairs)


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
    # Where no two verdicts differ nothing could disagree: the quotient would be 0 / 0.
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
