import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.batches.shuffle import (
    KeyedPermutation,
    Thinning,
    keyed_hash,
    named_seed,
    shuffled,
    thinned_size,
)

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


row_weights = st.lists(st.floats(0.001, 1), min_size=1, max_size=600).map(np.array)


@settings(deadline=None)
@given(row_weights, keys, st.integers(0, 10**9))
def test_a_pass_shows_no_row_twice_and_as_many_as_the_weights_add_up_to(
    weights: np.ndarray, key: int, number: int
) -> None:
    thinning = Thinning(weights, key)
    size = thinned_size(weights)
    assert thinning.size == size == max(1, int(np.rint(weights * 65536).sum()) // 65536)
    rows = thinning(np.arange(size), np.full(size, number))
    assert len(set(rows.tolist())) == size
    assert rows.min() >= 0
    assert rows.max() < len(weights)


@settings(deadline=None)
@given(row_weights, keys)
def test_a_row_of_a_pass_depends_on_its_turn_alone(weights: np.ndarray, key: int) -> None:
    thinning, again = Thinning(weights, key), Thinning(weights, key)
    turns = np.arange(3 * thinning.size)
    passes, within = np.divmod(turns, thinning.size)
    whole = thinning(within, passes)
    single = [int(again(within[at : at + 1], passes[at : at + 1])[0]) for at in turns[::7]]
    assert whole[::7].tolist() == single


@settings(deadline=None)
@given(row_weights, keys, st.integers(1, 60))
def test_after_any_number_of_passes_rows_came_in_proportion_to_their_weights(
    weights: np.ndarray, key: int, num_passes: int
) -> None:
    thinning = Thinning(weights, key)
    turns = np.arange(num_passes * thinning.size)
    passes, within = np.divmod(turns, thinning.size)
    counts = np.bincount(thinning(within, passes), minlength=len(weights))
    expected = num_passes * thinning.size * weights / weights.sum()
    # Independent draws would be off by the root of the number of passes.
    assert np.abs(counts - expected).max() < 3.5


def test_rows_that_weigh_one_come_once_in_every_pass() -> None:
    thinning = Thinning(np.ones(700), 5)
    assert thinning.size == 700
    for number in range(3):
        rows = thinning(np.arange(700), np.full(700, number))
        assert sorted(rows.tolist()) == list(range(700))


def test_which_rows_come_together_changes_from_pass_to_pass_and_with_the_key() -> None:
    weights = np.random.default_rng(0).uniform(0.3, 0.7, 10_000)

    def shown(key: int, number: int) -> np.ndarray:
        thinning = Thinning(weights, key)
        mask = np.zeros(len(weights))
        mask[thinning(np.arange(thinning.size), np.full(thinning.size, number))] = 1
        return mask

    first = shown(0, 0)
    assert (first != shown(0, 1)).mean() > 0.2
    # Of two independent halves, nearly half are different.
    assert (first != shown(1, 0)).mean() == pytest.approx(0.47, abs=0.03)
    # Neighbours in the table are no neighbours on the line.
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05


def test_a_thinning_of_many_rows_is_pinned() -> None:
    """A run that resumes years later meets the same samples."""
    weights = (np.arange(1000) % 7 + 1) / 7
    thinning = Thinning(weights, 11)
    assert thinning.size == 571
    assert thinning(np.array([0, 1, 570]), np.array([0, 1, 2])).tolist() == [767, 711, 604]
