"""Intervals of precision and recall, held to known truth and to Clopper and Pearson's."""

import numpy as np
import pytest

from openblip.review.intervals import precision_curve, recall_curve
from openblip.review.strata import Design, Labels

from .conftest import Population, separating, useless

THRESHOLDS = np.array([0.2, 0.5, 0.8])


def one_stratum(size: int, count: int, right: int) -> tuple[Design, Labels]:
    design = Design(("all",), np.ones(1), (np.linspace(0.6, 0.9, size),))
    told = np.arange(count) < right
    return design, Labels(np.zeros(count, np.int64), np.full(count, 0.7), told.astype(float))


@pytest.mark.parametrize(
    ("count", "right", "low", "high"),
    # Clopper and Pearson's, by the quantiles of the beta distribution.
    [
        (20, 18, 0.6830, 0.9877),
        (50, 50, 0.9289, 1.0),
        (10, 0, 0.0, 0.3085),
        (100, 50, 0.3983, 0.6017),
    ],
)
def test_of_one_stratum_it_is_about_that_of_clopper_and_pearson(
    count: int, right: int, low: float, high: float
) -> None:
    curve = precision_curve(*one_stratum(10**7, count, right), np.array([0.5]))
    assert curve.estimate[0] == pytest.approx(right / count)
    assert curve.low[0] == pytest.approx(low, abs=0.04)
    assert curve.high[0] == pytest.approx(high, abs=0.04)


def test_where_everything_is_labelled_it_is_a_point() -> None:
    population = separating(80)
    design, labels = population.review(80, seed=0)
    curves = (
        (precision_curve(design, labels, THRESHOLDS), population.precision),
        (
            recall_curve(design, labels, THRESHOLDS),
            population.recall,
        ),
    )
    for curve, truth in curves:
        wanted = [truth(threshold) for threshold in THRESHOLDS]
        assert curve.estimate == pytest.approx(wanted)
        assert curve.low == pytest.approx(wanted, abs=1e-3)
        assert curve.high == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("make", [pytest.param(separating, marks=pytest.mark.slow), useless])
def test_in_nineteen_of_twenty_reviews_the_truth_is_inside(make: object) -> None:
    population = make()  # type: ignore[operator]
    hits = np.zeros((2, len(THRESHOLDS)))
    repetitions = 60
    for seed in range(repetitions):
        design, labels = population.review(120, seed)
        for number, (curve, truth) in enumerate(
            [
                (precision_curve(design, labels, THRESHOLDS), population.precision),
                (recall_curve(design, labels, THRESHOLDS), population.recall),
            ]
        ):
            wanted = np.array([truth(threshold) for threshold in THRESHOLDS])
            hits[number] += (curve.low <= wanted) & (wanted <= curve.high)
            assert ((curve.low <= curve.estimate) & (curve.estimate <= curve.high)).all()
    # 57 are expected, and fewer than 52 in one of six cases with a probability of 0.03.
    assert (hits >= 52).all(), hits


def test_estimates_have_no_bias_though_some_texts_are_drawn_more_often() -> None:
    population = separating()
    found = []
    for seed in range(60):
        design, labels = population.review(200, seed)
        found.append(precision_curve(design, labels, THRESHOLDS).estimate)
    wanted = [population.precision(threshold) for threshold in THRESHOLDS]
    spread = np.std(found, axis=0) / np.sqrt(60)
    assert (np.abs(np.mean(found, axis=0) - wanted) < 3.5 * spread).all()


def test_unsure_widens_the_interval_and_moves_no_estimate() -> None:
    design, labels = separating().review(100, seed=0)
    doubtful = labels.right.copy()
    doubtful[::10] = np.nan
    plain = precision_curve(design, labels, THRESHOLDS)
    wide = precision_curve(design, Labels(labels.strata, labels.itm, doubtful), THRESHOLDS)
    assert (wide.low <= plain.low + 1e-9).all()
    assert (wide.high >= plain.high - 1e-9).all()
    assert wide.estimate == pytest.approx(plain.estimate, abs=0.05)


def test_a_part_without_labels_may_be_anything() -> None:
    design = Design(("a", "b"), np.full(2, 0.5), (np.full(100, 0.6), np.full(100, 0.8)))
    labels = Labels(np.zeros(50, np.int64), np.full(50, 0.6), np.ones(50))
    curve = precision_curve(design, labels, np.array([0.5]))
    assert curve.estimate[0] == 1.0
    assert curve.low[0] == pytest.approx(0.48, abs=0.02)
    assert curve.high[0] == pytest.approx(1.0)


def test_hard_collections_give_numbers_or_nothing(populations: dict[str, Population]) -> None:
    for name, population in populations.items():
        for count in (0, 1, 30):
            design, labels = population.review(count, seed=2)
            for make in (precision_curve, recall_curve):
                curve = make(design, labels, THRESHOLDS)
                known = ~np.isnan(curve.estimate)
                assert (curve.low[known] >= 0).all(), name
                assert (curve.high[known] <= 1).all(), name
                assert (curve.low[known] <= curve.high[known]).all(), name
            assert count or np.isnan(precision_curve(design, labels, THRESHOLDS).low).all()
