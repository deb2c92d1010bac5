"""Random choices that no library version can change."""

from collections import Counter

import pytest

from openblip.world.scene import Dice


def test_the_stream_is_splitmix64():
    """First outputs of SplitMix64 from state 0, as its authors' reference code gives them."""
    dice = Dice()
    assert [dice.bits() for _ in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_equal_keys_give_equal_streams_and_other_keys_other_ones():
    first, same, other = Dice(1, 2, 3), Dice(1, 2, 3), Dice(1, 3, 2)
    stream = [first.bits() for _ in range(8)]
    assert stream == [same.bits() for _ in range(8)]
    assert stream != [other.bits() for _ in range(8)]


def test_weights_are_frequencies():
    dice = Dice(5)
    counts = Counter(dice.weighted((0.7, 0.0, 0.3)) for _ in range(4000))
    assert counts[1] == 0
    assert counts[0] / 4000 == pytest.approx(0.7, abs=0.03)


def test_between_includes_both_ends():
    dice = Dice(6)
    assert {dice.between(-1, 1) for _ in range(100)} == {-1, 0, 1}


def test_samples_have_no_repetition():
    dice = Dice(7)
    orders = {tuple(dice.sample("abc", 3)) for _ in range(200)}
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(orders) == 6
