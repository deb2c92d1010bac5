"""A threshold above which enough is right, with a stated confidence, from a reviewed sample.

Learn then test (Angelopoulos et al., 2021): each threshold is a hypothesis, "less than 90 % of what
it keeps is right", and one that is refuted may be used. Two things could spoil the confidence, and
are provided for:

*The threshold is chosen from the same labels.* The hypotheses are tested in an order that was fixed
before there was a label, from strict thresholds to lenient ones, each only if the one before it was
refuted (fixed-sequence testing). A wrong one is accepted only if the first wrong one in that order
is refuted, which has the probability of one test. Where a strict threshold keeps so little that few
labels fall above it, the sequence would end at its first step; so it has several starts, which
share the error between them, and a refuted hypothesis hands its share on to the next (the fallback
procedure: Wiens, 2003; Bretz et al., 2009, as a graph).

*People look at the result and stop when they like it.* So each test is a bet that may be watched
(Waudby-Smith and Ramdas, 2024): against a true hypothesis no strategy can expect to win, and that
its capital ever grows twentyfold has a probability of at most 1/20 (Ville's inequality). The
largest capital so far counts, so a certificate that was earned is not lost by further labels.

The bet on one label. Texts are drawn without replacement, the stratum at random with known
probabilities, and within it at random (`review/sampling.py`). Given the labels so far, those of a
threshold's kept texts that are not labelled yet therefore have known probabilities q of being the
next kept one, and with any predictions f that were made before,

    X = (rights seen + sum of f over the rest + (y - f) / q) / number kept

has the precision as its expectation (weighted sampling without replacement with predictions:
Shekhar et al., 2023). Good predictions make X vary little, which is what strata are for. The capital
is multiplied by 1 + c (X - target) / (target - smallest possible X), which is never negative for c
below 1; it starts in equal parts on several c, so that none needs to be guessed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openblip.review.design import Design, Labels

# Which part of what can be bet at most: of a label that is nearly sure to be right much, else less.
_FRACTIONS = np.array([0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 0.98])
# Labels of the same stratum that a prediction is worth before there is one.
_PRIOR_LABELS = 2.0


@dataclass(frozen=True)
class Capital:
    """What the bets against some hypotheses have come to."""

    highest: NDArray[np.float64]
    """Logarithm of the largest capital so far, (tests,); begins at 0."""
    growth: NDArray[np.float64]
    """What one more kept label may be expected to add to it, (tests,)."""
    kept: NDArray[np.int64]
    """Labels above each threshold, (tests,)."""


def bet(
    design: Design,
    labels: Labels,
    thresholds: NDArray[np.float64],
    targets: NDArray[np.float64],
) -> Capital:
    """Bets on every label against "the precision above this threshold is below this target".

    Args:
        design: the strata.
        labels: in the order in which they were given first.
        thresholds: (tests,).
        targets: (tests,), inside (0, 1).
    """
    kept = design.kept(thresholds)
    totals = np.maximum(kept.sum(axis=1), 1).astype(np.float64)
    rest, all_rest = kept.astype(np.float64), design.sizes.astype(np.float64)
    seen, right = np.zeros(len(design.sizes)), np.zeros(len(design.sizes))
    sure = np.zeros(len(thresholds))
    parts = np.full((len(thresholds), len(_FRACTIONS)), -math.log(len(_FRACTIONS)))
    highest, counts = np.zeros(len(thresholds)), np.zeros(len(thresholds), dtype=np.int64)
    for stratum, score, is_right in zip(labels.strata, labels.itm, labels.right, strict=True):
        inside = score > thresholds
        shares = np.where(all_rest > 0, design.shares, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            per_text = np.where(all_rest > 0, shares / all_rest, 0.0)
            steps = np.where(per_text > 0, 1.0 / per_text, 0.0)
        # How far one text of a stratum moves the estimate: 1 / q over the number kept.
        jumps = steps * ((rest @ per_text) / totals)[:, None]
        predicted = (right + _PRIOR_LABELS * design.guesses) / (seen + _PRIOR_LABELS)
        before = (sure + rest @ predicted) / totals
        worst = before - np.where(rest > 0, predicted * jumps, 0.0).max(axis=1)
        estimate = before + (is_right - predicted[stratum]) * jumps[:, stratum]
        room = np.maximum(targets - worst, 1e-12)
        gains = np.log1p(np.outer((estimate - targets) / room, _FRACTIONS))
        parts[inside] += gains[inside]
        counts += inside
        sure += inside * is_right
        rest[inside, stratum] -= 1
        all_rest[stratum] -= 1
        seen[stratum] += 1
        right[stratum] += is_right
        top = parts.max(axis=1)
        capital = top + np.log(np.exp(parts - top[:, None]).sum(axis=1))
        # What is labelled is known: with enough of it right nothing can be otherwise any more.
        capital = np.where(sure >= targets * totals, np.inf, capital)
        highest = np.maximum(highest, capital)
    return Capital(highest, highest * 0, counts)
