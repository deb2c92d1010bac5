"""Strata: the parts of a collection from which texts are drawn, each with a known probability.

The texts come in a random order: for each place of it a stratum is drawn, with probabilities that
depend on scores alone, and in the stratum a text, all that are left having the same chance. So the
first texts of the order are a sample of the same kind as all of it, whatever their number: whoever
stops after 37 verdicts has 37 texts drawn with known probabilities. Nothing that a reviewer says
changes what comes next. (Strata in turn, by a fixed pattern, would be a little more even. Then the
number of the place, and not chance, would say which stratum comes next, and the one martingale that
`certificate.py` bets on would no longer be one.)

In a stratum every text has the same chance, and so it has in each part of it: where a threshold
divides a stratum, the texts above are a simple random sample of those above. Thresholds therefore
need not be the bounds of strata.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

# Of the verdicts, this part goes to texts that the current threshold keeps: precision and the
# certificate are about these. The others are needed for recall and for more lenient thresholds.
KEPT_SHARE = 0.85
# A guess at how often a text is right before anybody has looked: its score, drawn to the middle,
# because filters are too sure. Of a score that is no probability nothing follows.
_LEAST_GUESS, _GUESS_SLOPE = 0.1, 0.8
_DRAWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Design:
    """The strata of a collection: all that estimates need to know of what was not labelled."""

    names: tuple[str, ...]
    shares: NDArray[np.float64]
    """Probability that the next text is of each stratum, (strata,); together 1. A stratum that is
    exhausted leaves its part to the others, in proportion."""
    scores: tuple[NDArray[np.float64], ...]
    """Scores of all texts of each stratum, by default match probabilities, ascending."""
    floor: float = -np.inf
    """The lowest threshold that may be asked about: 0 where scores are probabilities, the current
    one where no text below it is in a stratum; any number by default."""
    is_one_sided: bool = False
    """Whether the strata hold texts of one side of the current threshold alone: then nothing is
    known of recall."""

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Texts of each stratum, (strata,)."""
        return np.array([len(own) for own in self.scores], dtype=np.int64)

    @cached_property
    def guesses(self) -> NDArray[np.float64]:
        """How often its texts are right, judged by their scores alone, (strata,)."""
        return _guesses(self.scores, is_probability(np.concatenate([*self.scores, np.zeros(0)])))

    def kept(self, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Texts of each stratum above each threshold, (thresholds, strata)."""
        below = [np.searchsorted(own, thresholds, side="right") for own in self.scores]
        return self.sizes - np.stack(below, axis=-1)


@dataclass(frozen=True, eq=False)
class Labels:
    """What people said of drawn texts, in the order in which each was judged first."""

    strata: NDArray[np.int64]
    """Stratum of each text, (labels,)."""
    itm: NDArray[np.float64]
    """Match probability of each text, (labels,)."""
    right: NDArray[np.float64]
    """1 where the text is right, 0 where it is not, NaN where nobody could tell, (labels,)."""

    def __len__(self) -> int:
        return len(self.strata)

    def first(self, count: int) -> "Labels":
        """The labels as they were when there were so many."""
        return Labels(self.strata[:count], self.itm[:count], self.right[:count])

    def unsure_as(self, value: float) -> "Labels":
        """The labels, with a value in the place of those that nobody could tell."""
        told = np.where(np.isnan(self.right), value, self.right)
        return Labels(self.strata, self.itm, told)


@dataclass(frozen=True, eq=False)
class Kind:
    """Texts that are of interest for one reason."""

    name: str
    members: NDArray[np.bool_]
    """Which texts are, (texts,)."""
    attention: float
    """Part of the verdicts that goes to them, relative to other kinds."""


def stratify(
    itm: NDArray[np.float64],
    sources: NDArray[np.int8],
    source_names: Sequence[str],
    threshold: float,
    kinds: Sequence[Kind],
    bins: tuple[int, int],
) -> tuple[Design, NDArray[np.int64]]:
    """The strata of some texts: kind, side of the threshold, source, and range of scores.

    Within a kind, `KEPT_SHARE` of the verdicts goes to what is kept (all, where all is). There half
    of them go to strata by their size, which bounds how much one verdict can weigh, and half by
    size times the standard deviation that the scores let expect, which is the best there is for
    the precision (Neyman, 1934).

    Args:
        itm: match probabilities, or other finite scores, (texts,).
        sources: number of each text's source, (texts,).
        source_names: by that number.
        threshold: the current one.
        kinds: each text is of one.
        bins: ranges of scores, for what is kept and for what is rejected.

    Returns:
        The design, and the number of each text's stratum, (texts,).
    """
    of_text = np.zeros(len(itm), dtype=np.int64)
    names: list[str] = []
    shares: list[float] = []
    scores: list[NDArray[np.float64]] = []
    is_guess = is_probability(itm)
    for kind in kinds:
        is_kept = itm > threshold
        part = float(is_kept[kind.members].mean()) if kind.members.any() else 0.0
        # Where nearly all is kept, nearly all verdicts go there.
        for_kept = 1.0 if part == 1 else max(KEPT_SHARE, part) if part else 0.0
        for side, count, portion in (
            (is_kept, bins[0], for_kept),
            (~is_kept, bins[1], 1 - for_kept),
        ):
            cells = _cells(itm, kind.members & side, sources, count)
            portions = _portions([itm[cell] for cell in cells], is_guess)
            for cell, share in zip(cells, portions, strict=True):
                of_text[cell] = len(scores)
                own = np.sort(itm[cell])
                words = [kind.name, source_names[sources[cell[0]]], f"{own[0]:.3g}-{own[-1]:.3g}"]
                names.append(" ".join(filter(None, words)))
                shares.append(kind.attention * portion * share)
                scores.append(own)
    total = np.array(shares, dtype=np.float64)
    return Design(tuple(names), total / total.sum(), tuple(scores)), of_text


def draw(design: Design, of_text: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """The first `count` texts of the random order, or all of them if there are fewer.

    The first of a longer draw are those of a shorter one.

    Args:
        design: the strata.
        of_text: number of each text's stratum, (texts,).
        count: how many.
        seed: decides the order, together with the strata.
    """
    chances = np.random.default_rng([seed, 0])
    left = design.sizes.copy()
    taken: list[int] = []
    count = min(count, int(left.sum()))
    while len(taken) < count:
        # A fixed number at once, so that how many are asked for changes nothing.
        for chance in chances.random(_DRAWS_AT_ONCE).tolist():
            if not left.any():
                break
            edges = np.cumsum(np.where(left > 0, design.shares, 0.0))
            stratum = int(np.searchsorted(edges, chance * edges[-1], side="right"))
            stratum = min(stratum, int(np.flatnonzero(left)[-1]))  # a chance rounded up to 1
            taken.append(stratum)
            left[stratum] -= 1
    strata = np.array(taken[:count], dtype=np.int64)
    order = np.zeros(count, dtype=np.int64)
    by_stratum = np.argsort(of_text, kind="stable")
    ends = np.cumsum(design.sizes)
    for number in np.unique(strata).tolist():
        own = by_stratum[ends[number] - design.sizes[number] : ends[number]]
        shuffled = np.random.default_rng([seed, 1, number]).permutation(own)
        places = np.flatnonzero(strata == number)
        order[places] = shuffled[: len(places)]
    return order


def _cells(
    itm: NDArray[np.float64], members: NDArray[np.bool_], sources: NDArray[np.int8], count: int
) -> list[NDArray[np.int64]]:
    """The texts of each source among the members, in so many ranges of scores with equally many."""
    cells = []
    for source in np.unique(sources[members]):
        own = np.flatnonzero(members & (sources == source))
        edges = np.quantile(itm[own], np.linspace(0, 1, count + 1)[1:-1])
        # Equal scores stay together, so that there may be fewer ranges.
        places = np.searchsorted(edges, itm[own], side="left")
        cells += [own[places == place] for place in np.unique(places)]
    return cells


def is_probability(scores: NDArray[np.float64]) -> bool:
    """Whether scores may be probabilities: all from 0 to 1."""
    return bool(((scores >= 0) & (scores <= 1)).all())


def _portions(scores: Sequence[NDArray[np.float64]], is_guess: bool) -> NDArray[np.float64]:
    """The part of the verdicts for each cell of one side; together 1."""
    sizes = np.array([len(own) for own in scores], dtype=np.float64)
    guesses = _guesses(scores, is_guess)
    best = sizes * np.sqrt(guesses * (1 - guesses))
    return 0.5 * sizes / sizes.sum() + 0.5 * best / best.sum() if len(scores) else sizes


def _guesses(scores: Sequence[NDArray[np.float64]], is_guess: bool) -> NDArray[np.float64]:
    """How often texts are right, of several groups: by their mean score, where that is a guess."""
    means = [float(own.mean()) if is_guess and len(own) else 0.5 for own in scores]
    return _LEAST_GUESS + _GUESS_SLOPE * np.array(means, dtype=np.float64)
