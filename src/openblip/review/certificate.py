"""A threshold above which enough is right, with a stated confidence, from a reviewed sample.

Learn then test (Angelopoulos et al., 2021): each threshold is a hypothesis, "less than 90 % of what
it keeps is right", and one that is refuted may be used. Two things could spoil the confidence, and
are provided for.

*The threshold is chosen from the same labels.* The hypotheses are tested in an order that was fixed
before there was a label, from strict thresholds to lenient ones, each only if the one before it was
refuted (fixed-sequence testing). To accept a wrong one, the first wrong one in that order must be
refuted, which has the probability of one test. Where a strict threshold keeps so little that few
labels fall above it, such a sequence would end at its first step. So it has several starts, which
share the error between them, and a refuted hypothesis hands its share on to the next one (the
fallback procedure: Wiens, 2003; a graph in Bretz et al., 2009; several starts also in the paper).
Sharing costs little where tests agree, for their capitals may be added: see `joined`.

*People look at the result, and stop when they like it.* So each test is a bet that may be watched
(Waudby-Smith and Ramdas, 2024): against a true hypothesis no strategy can expect to win, and that
its capital ever grows twentyfold has a probability of at most 1/20 (Ville's inequality). The
largest capital so far counts, so a certificate that was earned is not lost by further labels.

The bet on one label. Texts are drawn without replacement, the stratum at random with known
probabilities, and in the stratum at random (`strata.py`). So, given the labels so far, each kept
text that has none has a known probability q to be the next kept one that gets one. With whatever
predictions f, made before,

    X = (rights seen + sum of f over the kept rest + (y - f) / q) / number kept

has the precision as its expectation (Horvitz and Thompson, 1952; without replacement, and with
predictions: Shekhar et al., 2023). Good predictions make X vary little: that is what strata gain.
The capital is multiplied by 1 + s (X - target). Whatever the stake s is, if it was chosen before
the label, this has an expectation of 1 at most where the precision is the target or less; and it
is above 0, as s is below 1 / (target - smallest possible X). So the capital is a nonnegative
supermartingale, which is all that Ville's inequality asks for, and so is a sum of such capitals.

How much is staked. Of all stakes, sqrt(2 ln 20 / (n V)) refutes after n labels what lies nearest to
the truth, where V is the variance of X (Waudby-Smith and Ramdas, 2024, of which only the variance
is another one: that which X would have if the hypothesis were just true, the predictions being
lowered in proportion). So the capital begins in parts, three of which stake as is best for about
24, 100 and 360 kept labels; half of all is on the middle one, for what is split in equal parts is
thin everywhere. The fourth stakes what would be best if the predictions of this moment were the
truth, (estimate - target) / V (Kelly, 1956; GRAPA in the paper): in a long review, which narrow
margins need, the others stake too much. How `benchmarks/review.py` finds these parts beside others
is in its results.

A text that nobody could judge counts as wrong here: the truth can only be better.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openblip.review.intervals import precision_curve
from openblip.review.strata import Design, Labels
from openblip.runtime.errors import RecipeError
from openblip.table.scores import threshold_above

# Stakes in standard deviations of X, and the part of the capital on each: k is best for about
# 6 / k^2 kept labels.
_STAKES = {0.13: 0.2, 0.25: 0.5, 0.5: 0.2}
# The part of the capital whose stake follows the predictions.
_FOLLOWING = 0.1
# Of the largest stake that leaves some capital whatever the label says.
_MOST_STAKED = 0.98
# A guess that was made without a label is worth as many labels.
_PRIOR_LABELS = 2.0
# Where sequences start: the part of what the current threshold keeps, and the part of the error.
# The test of the current threshold sees all labels that its strata are there for: where scores say
# little of what is right it succeeds first, and the stricter ones before it, with fewer labels,
# would only be in its way.
_STARTS = {0.1: 0.02, 0.35: 0.08, 0.7: 0.6, 1.0: 0.3}
_STEPS_INSIDE, _STEPS_OUTSIDE = 20, 16
_SMALLEST = 1e-12


# With fewer labels a review has hardly begun.
_FEW = 30


@dataclass(frozen=True)
class Certificate:
    """What was asked for, and the threshold that gives it, if one does; `str` says it."""

    precision: float
    """What was asked for: the least share of right texts among those that are kept."""
    confidence: float
    """That the certificate, if there is one, is true."""
    labels: int
    """Texts with a verdict."""
    unsure: int
    """Those of them that nobody could judge; they counted as wrong."""
    threshold: float | None
    """The most lenient threshold that is certified; None if none is."""
    kept: int
    """Texts that it keeps."""
    total: int
    """Texts that it was chosen for."""
    needed: int | None
    """Without a threshold: about how many more labels are needed, if further ones turn out like
    those that are there; None where that leads nowhere."""
    is_open: bool = False
    """Without a threshold and a number: whether so few labels leave it open all the same that
    enough of what the current threshold keeps is right."""
    scope: str = ""
    """What it is about, in words; empty where that is all scored texts of a table."""
    score: str = "itm"
    """Which score the threshold is one of."""

    @property
    def keeps(self) -> float:
        """The share of the texts that the threshold keeps; 0 without a threshold."""
        return self.kept / self.total if self.total else 0.0

    def __str__(self) -> str:
        about = f" (of {self.scope})" if self.scope else ""
        return f"{self._finding()}{about}"

    def _finding(self) -> str:
        wanted = f"{100 * self.precision:g} %"
        sure = f"{100 * self.confidence:g} %"
        if self.threshold is not None:
            of = "" if self.score == "itm" else f" of the score {self.score}"
            shown = f"{100 * self.keeps:.{0 if self.keeps > 0.1 else 2}f}"
            return (
                f"at threshold {self.threshold}{of} at least {wanted} of what is kept is right, "
                f"with {sure} confidence; it keeps {shown} %"
            )
        failed = f"{wanted} right with {sure} confidence is not certifiable"
        if not self.labels:
            return f"{failed}: there is no label yet"
        labels = "this 1 label" if self.labels == 1 else f"these {self.labels:,} labels"
        if self.needed is None and self.is_open:
            more = max(_FEW, self.labels)
            return f"{failed} with {labels}: too few to say more; judge some {more:,} further texts"
        if self.needed is None:
            return (
                f"{failed} with {labels}, and more of the same would not help: what the filter "
                "keeps is right too seldom; ask for less, review around another threshold, or use "
                "a better filter"
            )
        left = self.total - self.labels
        if self.needed > left:
            return (
                f"{failed} with {labels}: about {self.needed:,} more would be needed, and there "
                f"are {left:,} further texts; ask for less, or import more pairs"
            )
        return f"{failed} with {labels}; about {self.needed:,} more are needed"


@dataclass(frozen=True, eq=False)
class Bets:
    """What the bets against some hypotheses have come to."""

    highest: NDArray[np.float64]
    """Logarithm of the largest capital so far, (tests,); it begins at 0."""
    growth: NDArray[np.float64]
    """What one more label may be expected to add to it, (tests,), if it is like those before."""
    joined: NDArray[np.float64]
    """Logarithm of the largest joint capital so far, (tests,): see `joined`."""


def certify(
    design: Design,
    labels: Labels,
    threshold: float,
    precision: float,
    confidence: float = 0.95,
    scope: str = "",
) -> Certificate:
    """The most lenient threshold of which a precision is certain enough.

    Args:
        design: what the labelled texts were drawn from.
        labels: in the order in which each text was judged first.
        threshold: the current one, around which texts were drawn.
        precision: inside (0, 1).
        confidence: inside (0, 1).
        scope: what the design holds, in words.

    Raises:
        RecipeError: precision or confidence is not inside (0, 1).
    """
    for name, value in (("precision", precision), ("confidence", confidence)):
        if not 0 < value < 1:
            raise RecipeError(f"{name} is {value:g}; give a number between 0 and 1, such as 0.9")
    thresholds, weights = sequence(design, threshold)
    bets = bet(design, labels, thresholds, np.full(len(thresholds), precision), weights)
    error = 1 - confidence
    certified, needed, budget = -1, math.inf, 0.0
    for place, weight in enumerate(weights):
        budget += weight * error
        missing = -math.log(budget) - bets.highest[place] if budget else math.inf
        if missing <= 0 or bets.joined[place] >= -math.log(error):
            certified = place
        if missing > 0 and budget:
            if bets.growth[place] > 0:
                needed = min(needed, missing / bets.growth[place])
            budget = 0.0
    is_certified = certified >= 0
    # The bets say whether more labels would help if they turned out like these, which a handful
    # does not tell: while the interval holds what was asked for, nothing is decided.
    upper = precision_curve(design, labels, np.array([threshold])).high[0] if len(labels) else 1.0
    kept = int(design.kept(thresholds[certified : certified + 1]).sum()) if is_certified else 0
    return Certificate(
        precision,
        confidence,
        len(labels),
        int(np.isnan(labels.right).sum()),
        float(thresholds[certified]) if is_certified else None,
        kept,
        int(design.sizes.sum()),
        None if is_certified or math.isinf(needed) else max(1, math.ceil(needed)),
        bool(upper >= precision),
        scope,
    )


def sequence(design: Design, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The thresholds in the order in which they are tested, and the part of the error of each.

    Both follow from scores and the current threshold alone; no label has a say.
    """
    itm = np.sort(np.concatenate([*design.scores, np.zeros(0)]))
    total = len(itm)
    # A threshold that keeps nothing, or next to nothing, is none to divide by.
    inside = max(int(total - np.searchsorted(itm, threshold, side="right")), total // 20, 1)
    steps = [inside * step / _STEPS_INSIDE for step in range(1, _STEPS_INSIDE + 1)]
    outside = (total - inside) / _STEPS_OUTSIDE
    steps += [inside + outside * step for step in range(1, _STEPS_OUTSIDE + 1)]
    starts = {inside * part: weight for part, weight in _STARTS.items()}
    weights: dict[float, float] = {}
    undivided = 0.0
    for kept in sorted({*steps, *starts}):
        # Rounded up: equal scores go together, and the strictest threshold keeps something.
        rejected = total - min(math.ceil(kept), total)
        found = max(threshold_above(itm, rejected, inside // (4 * _STEPS_INSIDE)), design.floor)
        if found < (itm[-1] if total else 0.0):
            weights[found] = weights.get(found, 0.0) + starts.get(kept, 0.0)
        elif kept in starts:  # what no threshold divides starts where one does
            undivided += starts[kept]
    order = np.array(list(weights), dtype=np.float64)
    parts = np.array(list(weights.values()), dtype=np.float64)
    if len(parts):
        parts[0] += undivided
    return order, parts


def bet(
    design: Design,
    labels: Labels,
    thresholds: NDArray[np.float64],
    targets: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
) -> Bets:
    """Bets on every label against "the precision above this threshold is below this target".

    Args:
        design: the strata.
        labels: in the order in which each text was judged first.
        thresholds: (tests,).
        targets: (tests,), inside (0, 1).
        weights: the part of the error of each test, in their order, if they are one sequence.
    """
    state = _State.begin(design, thresholds, targets)
    told = labels.unsure_as(0.0)
    best = np.full(len(thresholds), -np.inf)
    for stratum, score, is_right in zip(told.strata, told.itm, told.right, strict=True):
        state.take(int(stratum), float(score), float(is_right))
        if weights is not None:
            best = np.maximum(best, joined(state.capital(), weights))
    return Bets(state.highest, state.expected_growth(), best)


def joined(capital: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """What refutes each hypothesis of a sequence, as if there was one test, when it is twentyfold.

    Suppose that some hypotheses are true, whichever they are, and that each start has put its
    weight on the first of them that comes after it. The sum of what these have won is a capital
    too, whose bets nobody can expect to win. A hypothesis is refuted if this sum is twentyfold for
    every choice of hypotheses of which it is one (closed testing: Marcus, Peritz and Gabriel, 1976;
    sums of capitals: Vovk and Wang, 2021). The worst choice is easily found: for each start the
    poorest test from there to the hypothesis. The fallback procedure is the same with the largest
    summand in the place of the sum, but lets each test have its best moment; so either may refute.

    Args:
        capital: logarithms, (tests,), from strict to lenient.
        weights: of the starts, 0 elsewhere, (tests,); together 1 at most.

    Returns:
        Logarithms, (tests,).
    """
    total = np.full(len(capital), -np.inf)
    for start in np.flatnonzero(weights):
        poorest = np.minimum.accumulate(capital[start:])
        total[start:] = np.logaddexp(total[start:], math.log(weights[start]) + poorest)
    return total


@dataclass(eq=False)
class _State:
    """The bets between two labels: what is known, and the capital in its parts."""

    design: Design
    thresholds: NDArray[np.float64]
    targets: NDArray[np.float64]
    totals: NDArray[np.float64]
    """Kept texts, (tests,)."""
    rest: NDArray[np.float64]
    """Kept texts without a label, (tests, strata)."""
    left: NDArray[np.float64]
    """Texts without a label, (strata,)."""
    seen: NDArray[np.float64]
    right: NDArray[np.float64]
    """Labels, and right ones, (strata,)."""
    sure: NDArray[np.float64]
    """Kept texts that are known to be right, (tests,)."""
    parts: NDArray[np.float64]
    """Logarithms of the capital on each kind of stake, (tests, stakes)."""
    highest: NDArray[np.float64]

    @classmethod
    def begin(
        cls, design: Design, thresholds: NDArray[np.float64], targets: NDArray[np.float64]
    ) -> "_State":
        tests, strata = len(thresholds), len(design.sizes)
        rest = design.kept(thresholds).astype(np.float64)
        return cls(
            design=design,
            thresholds=thresholds,
            targets=targets,
            totals=np.maximum(rest.sum(axis=1), 1.0),
            rest=rest,
            left=design.sizes.astype(np.float64),
            seen=np.zeros(strata),
            right=np.zeros(strata),
            sure=np.zeros(tests),
            parts=np.tile(np.log([*_STAKES.values(), _FOLLOWING]), (tests, 1)),
            highest=np.zeros(tests),
        )

    def chances(self) -> NDArray[np.float64]:
        """That one text is the next, for a text of each stratum, up to a factor, (strata,)."""
        return np.where(self.left > 0, self.design.shares, _SMALLEST) / np.maximum(self.left, 1.0)

    def predictions(self) -> NDArray[np.float64]:
        """How often a text of each stratum is right, as far as is known, (strata,)."""
        return np.asarray(
            (self.right + _PRIOR_LABELS * self.design.guesses) / (self.seen + _PRIOR_LABELS)
        )

    def outlook(
        self, chances: NDArray[np.float64], predicted: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """What the next kept label may bring, and what is staked on it.

        Returns:
            The estimate before it, (tests,); what it moves X by, times the chance of its text,
            (tests,); the stakes, (tests, stakes).
        """
        before = (self.sure + self.rest @ predicted) / self.totals
        any_kept = self.rest @ chances / self.totals
        # A wrong label moves X by its prediction over its chance: most where that is largest.
        falls = np.where(self.rest > 0, predicted / chances, 0.0).max(axis=1)
        room = np.maximum(self.targets - before + any_kept * falls, _SMALLEST)
        # The variance of X if the precision were the target: predictions are lowered to it.
        lowered = np.minimum(self.targets / np.maximum(before, _SMALLEST), 1.0)
        squares = lowered * (self.rest @ (predicted / chances))
        squares -= lowered**2 * (self.rest @ (predicted**2 / chances))
        variance = np.maximum(any_kept / self.totals * squares, _SMALLEST)
        following = np.maximum(before - self.targets, 0.0) / variance
        stakes = np.column_stack([np.outer(variance**-0.5, list(_STAKES)), following])
        return before, any_kept, np.minimum(stakes, _MOST_STAKED / room[:, None])

    def take(self, stratum: int, score: float, is_right: float) -> None:
        """Bets on a label, and learns it."""
        chances, predicted = self.chances(), self.predictions()
        before, any_kept, stakes = self.outlook(chances, predicted)
        inside = score > self.thresholds
        drawn = before + any_kept * (is_right - predicted[stratum]) / chances[stratum]
        gains = (drawn - self.targets)[inside, None]
        self.parts[inside] += np.log1p(stakes[inside] * gains)
        self.sure += inside * is_right
        self.rest[inside, stratum] -= 1
        self.left[stratum] -= 1
        self.seen[stratum] += 1
        self.right[stratum] += is_right
        self.highest = np.maximum(self.highest, self.capital())

    def capital(self) -> NDArray[np.float64]:
        """Its logarithm at this moment, (tests,)."""
        # With enough texts known to be right, the others cannot change it any more.
        is_known = self.sure >= self.targets * self.totals
        return np.where(is_known, np.inf, np.logaddexp.reduce(self.parts, axis=1))

    def expected_growth(self) -> NDArray[np.float64]:
        """What one more label adds on average, if predictions hold, with the best stake."""
        chances, predicted = self.chances(), self.predictions()
        before, any_kept, stakes = self.outlook(chances, predicted)
        before, any_kept = before[:, None], any_kept[:, None]
        outcomes = [
            before + any_kept * (is_right - predicted) / chances - self.targets[:, None]
            for is_right in (0.0, 1.0)
        ]
        of_strata = self.rest * chances
        growth = []
        for stake in stakes.T[:, :, None]:
            # Of strata without a kept text anything may come out: their chance is 0.
            wrong, right = (np.log(np.maximum(1 + stake * gain, _SMALLEST)) for gain in outcomes)
            each = (1 - predicted) * wrong + predicted * right
            growth.append((of_strata * each).sum(axis=1))
        return np.asarray(np.max(growth, axis=0) / max(self.left @ chances, _SMALLEST))
