import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openblip.batches.shuffle import KeyedPermutation, keyed_hash, named_seed, shuffled

keys = st.integers(-(2**70), 2**70)


@given(st.integers(1, 3000), keys)
def test_every_index_has_its_own_place(size: int, key: int) -> None:
    places = KeyedPermutation(size, key)(np.arange(size))
    assert np.array_equal(np.sort(places), np.arange(size))


@given(st.integers(1, 2**61), keys, st.data())
def test_places_of_any_size_lie_inside_and_differ(size: int, key: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    places = KeyedPermutation(size, key)(np.array(indices))
    assert places.min() >= 0
    assert places.max() < size
    assert len(set(places.tolist())) == len(indices)


@given(st.integers(1, 1000), keys, st.data())
def test_one_index_gives_what_an_array_gives(size: int, key: int, data: st.DataObject) -> None:
    permutation = KeyedPermutation(size, key)
    index = data.draw(st.integers(0, size - 1))
    place = permutation(index)
    assert isinstance(place, int)
    assert place == permutation(np.array([[index]]))[0, 0]


@pytest.mark.parametrize("size", [2, 7, 12])
def test_over_many_keys_every_index_reaches_every_place_equally_often(size: int) -> None:
    num_keys = 600
    counts = np.zeros((size, size))
    for key in range(num_keys):
        counts[np.arange(size), KeyedPermutation(size, key)(np.arange(size))] += 1
    expected = num_keys / size
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    # Of permutation matrices it is distributed as size / (size - 1) times chi squared with
    # (size - 1)^2 degrees of freedom; the limit is five standard deviations above the mean.
    freedom = (size - 1) ** 2
    assert chi_squared < size / (size - 1) * (freedom + 5 * np.sqrt(2 * freedom))


def test_neighbours_do_not_stay_together() -> None:
    size = 100_000
    places = KeyedPermutation(size, 3)(np.arange(size))
    assert abs(np.corrcoef(places, np.arange(size))[0, 1]) < 0.02
    # The mean distance of two random places is a third of the size.
    assert np.abs(np.diff(places)).mean() == pytest.approx(size / 3, rel=0.02)


def test_different_keys_give_unrelated_orders() -> None:
    size = 10_000
    one, other = (KeyedPermutation(size, key)(np.arange(size)) for key in (0, 1))
    assert (one == other).sum() < 10


def test_the_order_never_changes_between_releases() -> None:
    # A run that resumes with a later release must meet the same samples.
    assert KeyedPermutation(10, 7)(np.arange(10)).tolist() == [4, 6, 0, 8, 9, 2, 7, 1, 5, 3]
    assert KeyedPermutation(10**12, 7)(np.arange(3)).tolist() == [
        579791963491,
        839708579664,
        805621376773,
    ]
    assert keyed_hash(1, 2, 3) == 14870301329324770519
    assert keyed_hash() == 0


def test_the_hash_depends_on_every_part_and_its_place() -> None:
    hashes = [keyed_hash(*p) for p in [(1,), (1, 0), (0, 1), (1, 1), (-1, 1), (1, 2, 3), (3, 2, 1)]]
    assert len(set(hashes)) == len(hashes)


def test_a_named_seed_never_changes_between_releases() -> None:
    assert named_seed(0, "a/b.jpg") == 5246812989459909255
    assert named_seed(7, "\udcff狗") == 5082837235049318931
    names = [f"{number}.jpg" for number in range(1000)]
    seeds = {named_seed(seed, name) for seed in (0, 1) for name in names}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(IndexError, match=r"0 \.\. 9"):
        KeyedPermutation(10, 0)(10)
    with pytest.raises(ValueError, match="size"):
        KeyedPermutation(0, 0)


class TestExamples:
    def test_every_epoch_shows_every_example_once_in_another_order(self) -> None:
        numbers, epochs = shuffled(7, 3, 0, 21)
        by_epoch = [numbers[epochs == epoch].tolist() for epoch in range(3)]
        assert all(sorted(order) == list(range(7)) for order in by_epoch)
        assert by_epoch[0] != by_epoch[1]

    def test_any_part_of_it_can_be_asked_for(self) -> None:
        whole, _ = shuffled(7, 3, 0, 30)
        part, _ = shuffled(7, 3, 11, 8)
        assert part.tolist() == whole[11:19].tolist()
