"""Certificates: they hold as often as they say, also when people stop as soon as there is one."""

from dataclasses import replace

import numpy as np
import pytest

from openblip.review.certificate import Certificate, bet, certify, sequence
from openblip.review.strata import Labels
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
