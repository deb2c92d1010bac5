"""A temperature that makes probabilities true, and the error without it."""

import numpy as np
import pytest

from openblip.inference.calibration import calibrate, expected_error, reliability
from openblip.runtime.errors import DataError, RecipeError


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def drawn(classes, temperature, n=20000, seed=0):
    """Logits that are `temperature` times the true ones, and labels drawn from the truth."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, classes)) * 2.0
    truth = softmax(logits)
    labels = (generator.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return logits * temperature, labels


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(classes, temperature):
    logits, labels = drawn(classes, temperature)
    found = calibrate(logits, labels, logits=True)
    assert found.temperature == pytest.approx(temperature, rel=0.04)
    assert found.ece_after < 0.015
    if temperature != 1.0:
        assert found.ece_before > 5 * found.ece_after


def test_probabilities_and_logits_give_the_same():
    logits, labels = drawn(4, 2.0, n=500)
    one, other = calibrate(logits, labels, logits=True), calibrate(softmax(logits), labels)
    assert one.temperature == pytest.approx(other.temperature, rel=1e-6)
    assert one.ece_after == pytest.approx(other.ece_after, abs=1e-9)


def test_matches_are_two_classes():
    logits, labels = drawn(2, 2.5, n=500)
    both = calibrate(softmax(logits), labels)
    matches = calibrate(softmax(logits)[:, 1], labels == 1)
    log_odds = calibrate(logits[:, 1] - logits[:, 0], labels, logits=True)
    assert matches.temperature == pytest.approx(both.temperature, rel=1e-6)
    assert log_odds.temperature == pytest.approx(both.temperature, rel=1e-6)


def test_the_temperature_is_the_minimum_of_the_loss():
    logits, labels = drawn(3, 1.7, n=200)

    def loss(temperature):
        return -np.log(softmax(logits / temperature)[np.arange(200), labels]).mean()

    found = calibrate(logits, labels, logits=True).temperature
    others = np.geomspace(0.05, 20, 400)
    assert loss(found) <= min(loss(other) for other in others) + 1e-9


def test_applying_keeps_shape_order_and_sum():
    logits, labels = drawn(3, 3.0, n=300)
    given = softmax(logits)
    calibration = calibrate(given, labels)
    applied = calibration.apply(given)
    np.testing.assert_allclose(applied, softmax(logits / calibration.temperature), atol=1e-4)
    assert (applied.argmax(axis=1) == given.argmax(axis=1)).all()
    matches = calibrate(given[:, 1], labels == 1)
    assert matches.apply(given[:, 1]).shape == (300,)
    assert matches.apply([0.5]) == pytest.approx([0.5])
    assert matches.apply([0.0, 1.0]) == pytest.approx([0.0, 1.0], abs=1e-3)


def test_the_error_by_hand():
    # Confidence 0.9, half of them right; confidence 0.6, all right: (2 * 0.4 + 1 * 0.4) / 3.
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    table = reliability(probabilities, np.array([0, 0, 0]), num_bins=10)
    assert [(each.count, each.accuracy) for each in table if each.count] == [(1, 1.0), (2, 0.5)]
    assert expected_error(table) == pytest.approx(0.4)
    assert [each.high for each in table if each.count] == pytest.approx([0.6, 0.9])


def test_a_table_has_all_bins():
    found = calibrate([0.9, 0.6, 0.4, 0.8], [1, 0, 1, 1], num_bins=4)
    assert [each.count for each in found.before] == [0, 0, 2, 2]
    assert np.isnan(found.before[0].accuracy)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([], [], "n at least 1"),
        ([[0.5], [0.5]], [0, 0], "n at least 1"),
        (0.5, 1, "n at least 1"),
        ([0.5, float("nan"), 0.2], [0, 1, 1], "row 1 are not finite"),
        ([0.5, 1.5], [0, 1], "row 1 is no probability"),
        ([[0.5, 0.5], [0.5, 0.2]], [0, 1], "row 1 is no probability"),
        ([0.5, 0.4], [0, 1, 1], "for 2 predictions"),
        ([0.5, 0.4], [0, 2], "none of 0 to 1"),
        ([0.5, 0.4], [0, 0.5], "none of 0 to 1"),
        ([0.5, 0.4], [1, 1], "all labels are 1"),
        ([0.9, 0.1], [1, 0], "without error"),
        ([0.9, 0.1], [0, 1], "no better than chance"),
    ],
)
def test_what_cannot_be_fitted_is_an_error(probabilities, labels, message):
    with pytest.raises(DataError, match=message):
        calibrate(probabilities, labels)


def test_bins_are_at_least_one():
    with pytest.raises(RecipeError, match="num_bins"):
        calibrate([0.9, 0.2], [1, 0], num_bins=0)


def test_weights_count_as_repetitions() -> None:
    dice = np.random.default_rng(4)
    probabilities = dice.random(300)
    labels = (dice.random(300) < 0.3 + 0.4 * probabilities).astype(int)
    weights = dice.integers(1, 5, 300)
    weighed = calibrate(probabilities, labels, weights=weights)
    repeated = calibrate(np.repeat(probabilities, weights), np.repeat(labels, weights))
    assert weighed.temperature == pytest.approx(repeated.temperature)
    assert weighed.ece_before == pytest.approx(repeated.ece_before)
    assert weighed.ece_after == pytest.approx(repeated.ece_after)
    assert sum(each.count for each in weighed.before) == 300
    with pytest.raises(DataError, match="300 positive numbers"):
        calibrate(probabilities, labels, weights=np.zeros(300))
