"""Metrics as quotients of sums over images, with intervals."""

import numpy as np
import pytest

from openblip.evaluation.results import UnitScores, retrieval_units, summed_units, unit_scores
from openblip.metrics import retrieval
from openblip.runtime.errors import DataError


def random_ranking(seed: int) -> tuple[np.ndarray, list[list[int]], np.ndarray]:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 5, 12)
    ends = np.cumsum(sizes)
    captions = [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    scores = generator.normal(size=(12, ends[-1]))
    for image, texts in enumerate(captions):
        scores[image, texts] += 1.0
    return scores, captions, scores.T + generator.normal(size=scores.T.shape)


@pytest.mark.parametrize("seed", range(5))
def test_the_units_of_a_ranking_add_up_to_its_recalls(seed: int) -> None:
    scores, captions, of_images = random_ranking(seed)
    whole = retrieval(scores, captions, of_images)
    for name, units in retrieval_units(scores, captions, of_images).items():
        assert units.estimate == pytest.approx(whole[name])
        assert len(units.scores) == len(captions)


def test_a_text_of_two_images_counts_once() -> None:
    scores = np.eye(2, 3)
    units = retrieval_units(scores, [[0, 2], [1, 2]], scores.T)
    assert units["IR@1"].weights.tolist() == [2, 1]


def test_the_interval_holds_the_estimate_and_narrows_with_more_units() -> None:
    few = unit_scores([0, 100] * 10).interval()
    many = unit_scores([0, 100] * 1000).interval()
    assert few.low < few.estimate == 50 < few.high
    assert many.high - many.low < (few.high - few.low) / 5


def test_a_unit_counts_by_its_weight() -> None:
    assert UnitScores(np.array([300.0, 0.0]), np.array([3.0, 1.0])).estimate == 75


def test_two_systems_are_compared_on_the_same_units() -> None:
    hard = np.random.default_rng(0).uniform(0, 90, 200)
    better, worse = unit_scores(hard + 5), unit_scores(hard)
    difference = better.minus(worse)
    assert difference.difference == pytest.approx(5)
    assert difference.low == pytest.approx(5)
    assert difference.p_value < 0.01
    with pytest.raises(DataError, match="common units"):
        better.minus(unit_scores(hard[:-1]))


def test_parts_are_summed_over_the_unit_that_they_belong_to() -> None:
    units = summed_units([100, 0, 50], [2, 0, 2], 3)
    assert units.scores.tolist() == [0, 0, 150]
    assert units.weights.tolist() == [1, 0, 2]
    assert units.estimate == pytest.approx(50.0)
