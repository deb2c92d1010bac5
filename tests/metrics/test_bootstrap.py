import numpy as np
import pytest

from openblip.metrics import bootstrap_interval, paired_bootstrap
from openblip.metrics.caption import bleu
from openblip.runtime.errors import DataError


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=2000)
    found = bootstrap_interval(values)
    error = values.std() / np.sqrt(len(values))
    assert found.estimate == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [
        bootstrap_interval(rng.normal(size=50), num_samples=200, confidence=0.8, seed=trial)
        for trial in range(200)
    ]
    share = np.mean([found.low <= 0.0 <= found.high for found in intervals])
    assert 0.7 < share < 0.9


def test_equal_values_have_no_spread():
    assert bootstrap_interval([3.0, 3.0, 3.0]) == (3.0, 3.0, 3.0)


def test_the_seed_decides():
    values = np.arange(30.0)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)


def test_rows_are_resampled_together():
    # Every row matches all of its words, so any resample has BLEU-1 = 1.
    rows = np.array([[n, n, n, 0, 0, 0, n, n - 1, n - 2, n - 3] for n in range(4, 24)])
    found = bootstrap_interval(rows, lambda sample: bleu(sample)[0])
    assert found == pytest.approx((1.0, 1.0, 1.0))


def test_a_clear_difference_is_significant_and_noise_is_not():
    rng = np.random.default_rng(2)
    base = rng.normal(size=400)
    better = paired_bootstrap(base + 0.2 + rng.normal(0, 0.5, 400), base)
    same = paired_bootstrap(base + rng.normal(0, 0.5, 400), base)
    assert better.p_value < 0.01
    assert better.low < better.difference < better.high
    assert better.low > 0.0
    assert same.p_value > 0.05
    assert same.low < 0.0 < same.high


def test_pairing_removes_what_units_have_in_common():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 10, size=200)
    assert paired_bootstrap(hard + 0.1, hard).p_value < 0.01


def test_the_test_is_two_sided():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=100), rng.normal(size=100)
    one, other = paired_bootstrap(first, second), paired_bootstrap(second, first)
    assert one.p_value == other.p_value
    assert one.difference == -other.difference


def test_a_system_against_itself_has_p_one():
    values = np.arange(10.0)
    assert paired_bootstrap(values, values) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: bootstrap_interval([]), "nothing to resample"),
        (lambda: bootstrap_interval(3.0), "nothing to resample"),
        (lambda: bootstrap_interval([1.0], confidence=1.0), "confidence is 1.0"),
        (lambda: bootstrap_interval([1.0], num_samples=0), "num_samples is 0"),
        (lambda: paired_bootstrap([1.0, 2.0], [1.0]), "no common units"),
    ],
)
def test_damaged_input_is_named(call, reason):
    with pytest.raises(DataError, match=reason):
        call()
