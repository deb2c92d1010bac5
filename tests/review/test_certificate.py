"""Certificates: they hold as often as they say, also when people stop as soon as there is one."""

from copy import deepcopy
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from openblip.review.certificate import (
    _STARTS,
    Certificate,
    _State,
    bet,
    certify,
    joined,
    sequence,
)
from openblip.review.strata import Design, Labels
from openblip.runtime.errors import RecipeError

from .conftest import Population, separating, useless


def test_the_order_of_tests_depends_on_scores_alone_and_goes_from_strict_to_lenient() -> None:
    design, _ = separating().design()
    thresholds, weights = sequence(design, 0.5)
    assert (np.diff(thresholds) < 0).all()
    assert weights.sum() == pytest.approx(1.0)
    kept = design.kept(thresholds).sum(axis=1) / design.sizes.sum()
    assert kept[0] == pytest.approx(0.025, abs=0.01)
    assert kept[-1] == 1.0


def test_one_of_several_starts_is_the_current_threshold() -> None:
    design, _ = separating().design()
    thresholds, weights = sequence(design, 0.5)
    starts = thresholds[weights > 0]
    inside = design.kept(np.array([0.5])).sum()
    parts = design.kept(starts).sum(axis=1) / inside
    assert parts == pytest.approx(list(_STARTS), abs=0.02)
    assert weights[weights > 0] == pytest.approx(list(_STARTS.values()))


def test_joint_capitals_are_the_worst_of_every_choice_of_hypotheses() -> None:
    """Against all 127 sets of seven tests; and where tests agree, sharing costs nothing."""
    dice = np.random.default_rng(2)
    weights = np.array([0.1, 0.0, 0.3, 0.0, 0.0, 0.6, 0.0])
    sets = [set(own) for size in range(1, 8) for own in combinations(range(7), size)]
    for _ in range(20):
        capital = dice.normal(0, 2, 7)
        worst = np.full(7, np.inf)
        for own in sets:
            after = [min((n for n in own if n >= start), default=None) for start in range(7)]
            total = sum(
                weight * np.exp(capital[first])
                for weight, first in zip(weights, after, strict=True)
                if first is not None
            )
            for number in own:
                worst[number] = min(worst[number], total)
        assert np.exp(joined(capital, weights)) == pytest.approx(worst)
    alike = np.exp(joined(np.full(7, 3.0), weights)) / np.exp(3.0)
    assert alike == pytest.approx(np.cumsum(weights))


def test_in_a_sequence_at_most_one_in_ten_refutes_a_true_hypothesis() -> None:
    """All thresholds are tested together, and none of them keeps enough."""
    dice = np.random.default_rng(4)
    itm = dice.random(1200)
    right = dice.random(1200) < 0.7 + 0.05 * itm
    population = Population(itm, right)
    design, _ = population.design()
    thresholds, weights = sequence(design, 0.5)
    above = np.array([population.precision(t) for t in thresholds])
    targets = above + 1e-9
    false = 0
    for seed in range(80):
        _, labels = population.review(120, seed)
        bets = bet(design, labels, thresholds, targets, weights)
        false += bool((bets.joined >= np.log(10)).any())
    # One in ten by right; 17 of 80 would have a probability of 0.003.
    assert false < 17


def test_thresholds_of_scores_below_0_are_tested_too() -> None:
    """The same review, of scores that say the same on another scale."""
    population = separating()
    odds = 8 * population.itm - 6
    moved = Population(odds, population.right)
    design, _ = moved.design(-2.0)
    thresholds, weights = sequence(design, -2.0)
    assert (np.diff(thresholds) < 0).all()
    assert weights.sum() == pytest.approx(1.0)
    assert design.kept(thresholds)[-1].sum() == len(odds)
    found = certify(*moved.review(300, seed=0, threshold=-2.0), threshold=-2.0, precision=0.9)
    assert found.threshold is not None
    assert found.threshold < 0
    assert moved.precision(found.threshold) >= 0.9


def test_a_threshold_of_minus_1_is_one_like_others() -> None:
    design, _ = Population(np.linspace(-2.0, -0.5, 400), np.ones(400, dtype=bool)).design(-1.0)
    thresholds, weights = sequence(design, -1.0)
    assert -1.0 in thresholds
    assert weights.sum() == pytest.approx(1.0)


def test_a_good_filter_gets_a_certificate_that_is_true() -> None:
    population = separating()
    found = certify(*population.review(300, seed=0), threshold=0.5, precision=0.9)
    assert found.threshold is not None
    assert population.precision(found.threshold) >= 0.9
    assert found.kept == int((population.itm > found.threshold).sum())
    assert 0.3 < found.keeps < 0.6
    assert str(found) == (
        f"at threshold {found.threshold} at least 90 % of what is kept is right, with 95 % "
        f"confidence; it keeps {100 * found.keeps:.0f} %"
    )


def test_without_enough_labels_it_says_how_many_more() -> None:
    design, labels = separating().review(400, seed=0)
    few = certify(design, labels.first(40), 0.5, 0.9)
    assert few.threshold is None
    assert few.needed is not None
    assert str(few).endswith(f"with these 40 labels; about {few.needed:,} more are needed")
    # An estimate: within a factor of four here.
    enough = next(
        count
        for count in range(40, 400, 5)
        if certify(design, labels.first(count), 0.5, 0.9).threshold is not None
    )
    assert few.needed / 4 < enough - 40 < 4 * few.needed
    assert str(certify(design, labels.first(0), 0.5, 0.9)).endswith("there is no label yet")
    # Of a collection of 50 texts nobody can judge hundreds more.
    small = str(replace(few, total=50))
    assert f"about {few.needed:,} more would be needed, and there are 10 further texts" in small


def test_where_too_little_is_right_more_labels_are_said_to_be_of_no_use() -> None:
    found = certify(*useless().review(400, seed=0), threshold=0.5, precision=0.95)
    assert (found.threshold, found.needed) == (None, None)
    assert "would not help" in str(found)


def test_a_handful_of_labels_decides_nothing() -> None:
    design, labels = separating().review(400, seed=0)
    for right in ([1.0, 1.0, 0.0, 1.0], [0.0, 1.0]):
        few = replace(labels.first(len(right)), right=np.array(right))
        found = certify(design, few, 0.5, 0.9)
        assert found.threshold is None
        assert "would not help" not in str(found)


def test_on_average_no_bet_wins_against_a_hypothesis_that_is_just_true() -> None:
    """Every order in which texts can be drawn, each with its probability; also if one watches."""
    scores = (np.array([0.2, 0.3]), np.array([0.55, 0.6, 0.65]), np.array([0.8, 0.9]))
    right = {0.2: 0, 0.3: 1, 0.55: 1, 0.6: 0, 0.65: 1, 0.8: 1, 0.9: 0}
    design = Design(("rejected", "low", "high"), np.array([0.2, 0.5, 0.3]), scores)
    # One that divides a stratum, the current one, and one that keeps all.
    thresholds = np.array([0.58, 0.5, 0.1])
    # A little more: what is just true is known to be so when all right texts are labelled.
    targets = np.array([np.mean([right[s] for s in right if s > t]) for t in thresholds]) + 1e-9
    finals, watched, total = np.zeros(3), np.zeros(3), 0.0

    def draw_all(state: _State, left: tuple[tuple[float, ...], ...], chance: float) -> None:
        nonlocal total, finals, watched
        if sum(map(len, left)) == 7 - 4:
            total += chance
            finals += chance * np.exp(np.logaddexp.reduce(state.parts, axis=1))
            watched += chance * (state.highest >= np.log(1.5))
            return
        shares = np.where([bool(own) for own in left], design.shares, 0.0)
        for stratum, own in enumerate(left):
            for score in own:
                after = deepcopy(state)
                after.take(stratum, score, float(right[score]))
                rest = tuple(tuple(s for s in each if s != score) for each in left)
                draw_all(after, rest, chance * shares[stratum] / shares.sum() / len(own))

    draw_all(_State.begin(design, thresholds, targets), tuple(map(tuple, scores)), 1.0)
    assert total == pytest.approx(1.0)
    assert finals == pytest.approx(np.ones(3), abs=1e-6)
    # Ville's inequality, of which no simulation could say more.
    assert (watched < 1 / 1.5).all()
    assert (watched > 0).any()


def test_the_capital_after_one_label_is_the_one_on_paper() -> None:
    design = Design(("all",), np.ones(1), (np.full(10, 0.5),))
    labels = Labels(np.zeros(1, dtype=np.int64), np.array([0.5]), np.ones(1))
    found = bet(design, labels, np.array([0.4]), np.array([0.8])).highest
    # Half are thought to be right: the variance is 1/4, and X moves from 0.5 to 1, which is 0.2
    # above the target. Stakes are 0.13, 0.25 and 0.5 over 1/2; the following part stakes nothing.
    assert np.exp(found) == pytest.approx(
        0.2 * (1 + 0.26 * 0.2) + 0.5 * (1 + 0.5 * 0.2) + 0.2 * (1 + 1.0 * 0.2) + 0.1
    )


def test_whatever_a_label_says_some_capital_is_left() -> None:
    """Also where predictions are sure, strata are nearly exhausted, and all labels are wrong."""
    population = separating(60)
    design, labels = population.review(60, seed=0)
    thresholds = np.repeat([0.1, 0.5, 0.9], 3)
    targets = np.tile([0.001, 0.5, 0.999], 3)
    for right in (np.zeros(60), np.ones(60), labels.right):
        state = _State.begin(design, thresholds, targets)
        for stratum, score, is_right in zip(labels.strata, labels.itm, right, strict=True):
            state.take(int(stratum), float(score), float(is_right))
            # Where the labels so far leave the hypothesis possible.
            is_open = state.sure + state.rest.sum(axis=1) > 0
            assert np.isfinite(state.parts[is_open]).all()


def test_strata_halve_the_labels_of_a_certificate() -> None:
    """Its width is at most 0.7 times that of a random sample of as many: 0.49 of the labels."""
    population = separating()
    whole = Design(("all",), np.ones(1), (np.sort(population.itm),))
    targets = np.arange(0.6, 0.96, 0.005)
    thresholds = np.full(len(targets), 0.5)
    gaps = np.zeros(2)
    for seed in range(20):
        design, labels = population.review(120, seed)
        order = np.random.default_rng(seed).permutation(len(population.itm))[:120]
        plain = Labels(
            np.zeros(120, dtype=np.int64), population.itm[order], population.right[order] * 1.0
        )
        for place, (own, given) in enumerate(((design, labels), (whole, plain))):
            won = bet(own, given, thresholds, targets).highest >= np.log(20)
            gaps[place] += population.precision(0.5) - targets[won].max(initial=0.6)
    assert gaps[0] < 0.7 * gaps[1]


def test_a_false_hypothesis_is_not_refuted_more_often_than_the_confidence_allows() -> None:
    """Precision is just below the target at every threshold, and every label is watched."""
    population = useless(2000)
    targets = np.full(3, 0.0)
    thresholds = np.array([0.2, 0.5, 0.7])
    targets = np.array([population.precision(t) + 1e-9 for t in thresholds])
    wins = np.zeros(3)
    repetitions = 100
    for seed in range(repetitions):
        design, labels = population.review(150, seed)
        wins += bet(design, labels, thresholds, targets).highest >= np.log(10)
    # At most one in ten; 20 of 100 would have a probability of 0.002.
    assert (wins < 20).all(), wins


def test_who_stops_as_soon_as_there_is_a_certificate_is_still_right() -> None:
    dice = np.random.default_rng(0)
    itm = dice.random(1500)
    # At no threshold are 80 % right, but nearly.
    population = Population(itm, dice.random(1500) < 0.77)
    false = sum(
        certify(*population.review(200, seed), threshold=0.5, precision=0.8).threshold is not None
        for seed in range(50)
    )
    # The largest capital so far is what counts, so one look at the end sees all earlier ones.
    assert false <= 5


def test_what_was_earned_is_kept_when_more_is_labelled() -> None:
    design, labels = separating().review(300, seed=4)
    earned = [certify(design, labels.first(n), 0.5, 0.9).threshold for n in range(60, 301, 40)]
    first = next(place for place, found in enumerate(earned) if found is not None)
    assert None not in earned[first:]
    lenient = [value for value in earned[first:] if value is not None]
    assert sorted(lenient, reverse=True) == lenient


def test_where_everything_is_labelled_the_truth_is_known() -> None:
    population = separating(60)
    design, labels = population.review(60, seed=0)
    found = certify(design, labels, 0.5, 0.8, confidence=0.999)
    assert found.threshold is not None
    assert population.precision(found.threshold) >= 0.8


def test_hard_collections(populations: dict[str, Population]) -> None:
    for name, population in populations.items():
        for count in (0, 1, 25, 500):
            found = certify(*population.review(count, seed=1), threshold=0.5, precision=0.75)
            assert str(found), name
            if found.threshold is not None:
                assert population.precision(found.threshold) >= 0.75, name
    assert certify(*populations["all right"].review(200, 0), 0.5, 0.9).keeps > 0.8
    assert certify(*populations["all wrong"].review(200, 0), 0.5, 0.9).threshold is None
    assert certify(*populations["one text"].review(1, 0), 0.5, 0.9).keeps == 1.0


def test_unsure_counts_as_wrong() -> None:
    design, labels = separating().review(300, seed=0)
    doubtful = np.where(np.arange(300) % 3 == 0, np.nan, labels.right)
    found = certify(design, Labels(labels.strata, labels.itm, doubtful), 0.5, 0.9)
    assert (found.threshold, found.unsure) == (None, 100)


def test_only_probabilities_can_be_asked_for() -> None:
    design, labels = separating().review(10, seed=0)
    with pytest.raises(RecipeError, match="precision is 1;"):
        certify(design, labels, 0.5, 1.0)
    with pytest.raises(RecipeError, match="confidence is 0;"):
        certify(design, labels, 0.5, 0.9, 0.0)


def test_what_it_is_about_is_said() -> None:
    found = certify(*separating().review(300, seed=0), threshold=0.5, precision=0.9)
    about: Certificate = replace(found, scope="12 web texts")
    assert str(about) == f"{found} (of 12 web texts)"
