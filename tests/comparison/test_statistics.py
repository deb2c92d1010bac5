"""Intervals over seeds and images against numbers made by hand and against the other bootstrap."""

import numpy as np
import pytest

from openblip.comparison.findings import SeedScores, seed_scores, stored_units, verdict
from openblip.evaluation.results import unit_scores
from openblip.metrics.bootstrap import Difference
from openblip.runtime.errors import DataError


def figure(*seeds: list[float], is_shared: bool = False) -> SeedScores:
    """One metric, images of weight 1."""
    rows = tuple(np.array([[[score, 1.0] for score in scores]]) for scores in seeds)
    return SeedScores(rows, is_shared)


def test_the_estimate_is_the_mean_over_seeds_of_the_mean_over_metrics_of_quotients() -> None:
    first = np.array([[[100.0, 1.0], [0.0, 1.0]], [[300.0, 5.0], [200.0, 5.0]]])
    second = np.array([[[0.0, 1.0], [0.0, 1.0]], [[500.0, 5.0], [500.0, 5.0]]])
    scores = SeedScores((first, second), is_shared=True)
    assert scores.of_seeds == pytest.approx([(50 + 50) / 2, (0 + 100) / 2])
    assert scores.estimate == pytest.approx(50.0)
    assert scores.num_images == 2


@pytest.mark.parametrize("is_shared", [True, False])
def test_so_many_images_would_decide_a_difference_of_this_size(is_shared: bool) -> None:
    # A mean of 1, a deviation of 10: (2.8 * 10 / 1) squared, of each seed where these have others.
    better = [11.0, -9.0] * 200
    for count in (1, 3):
        mine = figure(*[better] * count, is_shared=is_shared)
        other = figure(*[[0.0] * 400] * count, is_shared=is_shared)
        assert mine.images_needed(other) == pytest.approx(784, rel=0.06)
        assert other.images_needed(mine) == mine.images_needed(other)


def test_no_number_of_images_decides_what_the_seeds_disagree_about() -> None:
    zero = figure(*[[0.0] * 50] * 3, is_shared=True)
    apart = figure([9.0] * 50, [-9.0] * 50, [3.0] * 50, is_shared=True)
    assert apart.images_needed(zero) is None
    assert zero.images_needed(zero) is None
    assert figure(*[[5.0] * 50] * 3, is_shared=True).images_needed(zero) == 1


def test_equal_images_and_seeds_have_no_width() -> None:
    assert figure([40.0] * 9, [40.0] * 9).interval() == pytest.approx((40.0, 40.0, 40.0))


def test_with_equal_images_only_the_seeds_are_drawn() -> None:
    estimate, low, high = figure([10.0] * 5, [20.0] * 5, [60.0] * 5).interval()
    assert estimate == pytest.approx(30.0)
    # All three the lowest, or all three the highest, each in one of 27 resamples: 3.7 %.
    assert (low, high) == pytest.approx((10.0, 60.0))


def test_one_seed_has_the_interval_over_images() -> None:
    scores = (100.0 * (np.arange(400) % 3 == 0)).tolist()
    mine, known = figure(scores).interval(), unit_scores(scores).interval()
    assert mine.estimate == pytest.approx(known.estimate)
    assert mine.low == pytest.approx(known.low, abs=0.8)
    assert mine.high == pytest.approx(known.high, abs=0.8)


def test_a_large_split_is_drawn_in_parts() -> None:
    images = (100.0 * (np.arange(5000) % 10 < 3)).tolist()
    deviation = 100 * (0.3 * 0.7 / 5000) ** 0.5
    for is_shared in (True, False):
        found = figure(images, is_shared=is_shared).interval()
        assert found == pytest.approx(
            (30.0, 30.0 - 1.96 * deviation, 30.0 + 1.96 * deviation), abs=0.15
        )


def test_more_images_do_not_help_where_seeds_share_them() -> None:
    images = (100.0 * (np.arange(300) % 2)).tolist()
    shared, own = (figure(images, images, images, is_shared=s).interval() for s in (True, False))
    width = {s: i.high - i.low for s, i in ((True, shared), (False, own))}
    assert width[True] == pytest.approx(width[False] * 3**0.5, rel=0.1)
    assert figure(images, images, is_shared=True).num_images == 300
    assert figure(images, images).num_images == 600


def test_what_two_models_have_in_common_takes_no_part_in_their_difference() -> None:
    generator = np.random.default_rng(0)
    seeds = [(100 * generator.random(50)).tolist() for _ in range(3)]
    better = figure(*([score + 2 for score in scores] for scores in seeds))
    found = better.minus(figure(*seeds))
    assert found[:3] == pytest.approx((2.0, 2.0, 2.0))
    assert found.p_value == pytest.approx(2 / 2001)
    assert better.interval().high - better.interval().low > 5


def test_no_difference_is_as_sure_as_can_be() -> None:
    scores = figure([1.0, 2.0, 3.0])
    assert scores.minus(scores).p_value == 1.0


def test_other_images_cannot_be_paired() -> None:
    with pytest.raises(DataError, match="cannot be paired"):
        figure([1.0, 2.0]).minus(figure([1.0]))
    with pytest.raises(DataError, match="different numbers of images"):
        figure([1.0, 2.0], [1.0], is_shared=True)
    with pytest.raises(DataError, match="at least one image"):
        SeedScores((), is_shared=False)


def test_a_verdict_needs_the_whole_interval() -> None:
    assert verdict(Difference(2.0, 0.1, 3.0, 0.01)) == "holds"
    assert verdict(Difference(-2.0, -3.0, -0.1, 0.01)) == "does not hold"
    assert verdict(Difference(2.0, 0.0, 3.0, 0.05)) == "not decided"


def test_weights_are_stored_exactly() -> None:
    # Of the mean per class an image of a frequent class weighs little.
    weights = np.full(66_000, 1 / 66_000)
    units = {"mean per class": unit_scores(100 * weights, weights)}
    found = seed_scores([stored_units(units)], ["mean per class"], is_shared=True)
    assert found is not None
    assert found.estimate == pytest.approx(100.0, abs=1e-9)


def test_stored_units_become_scores_and_what_is_missing_none() -> None:
    units = {"TR@1": {"scores": [100.0, 0.0], "weights": [1.0, 1.0]}}
    units["IR@1"] = {"scores": [200.0, 100.0], "weights": [2.0, 2.0]}
    found = seed_scores([units], ["TR@1", "IR@1"], is_shared=True)
    assert found is not None
    assert found.estimate == pytest.approx((50 + 75) / 2)
    assert seed_scores([units, {}], ["TR@1"], is_shared=True) is None
