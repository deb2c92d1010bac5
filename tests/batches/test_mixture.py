"""What a mixture shows when: exact counts, from any starting point."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.batches.mixture import Mixture, WeightedIndex
from openblip.batches.shuffle import KeyedPermutation, keyed_hash
from openblip.runtime.errors import RecipeError
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView, ViewIndex

MakeMixture = Callable[..., Mixture]

weights = st.builds(Fraction, st.integers(1, 7), st.integers(1, 5))
tables = st.lists(st.tuples(st.integers(1, 12), weights), min_size=1, max_size=4)
seeds = st.integers(0, 2**40)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> MakeMixture:
    """Makes a mixture of tables with so many admitted rows, (count, weight) for each.

    What stands in a row does not matter here, so that all are views of the same few rows.
    """
    folder = tmp_path_factory.mktemp("mixture")
    row = PairRow("r", b"x", captions=["a text"])
    opened = [PairTable.create(folder / f"{number}.lance", [row]) for number in range(4)]

    def mixture(sizes: Sequence[tuple[int, float | Fraction]], seed: int = 0) -> Mixture:
        return Mixture(
            [
                WeightedIndex(
                    ViewIndex(table, CaptionView(), np.arange(count) * 3 + 1, {}, {}), float(weight)
                )
                for (count, weight), table in zip(sizes, opened, strict=False)
            ],
            seed,
        )

    return mixture


def _shown(mixture: Mixture, start: int, stop: int) -> list[tuple[int, int, int]]:
    return list(zip(*(column.tolist() for column in mixture.samples(start, stop)), strict=True))


def _counts(mixture: Mixture, num_epochs: int) -> Counter[tuple[int, int]]:
    shown = _shown(mixture, 0, mixture.pairs_before(num_epochs))
    return Counter((part, row) for part, row, _ in shown)


@settings(deadline=None, max_examples=60)
@given(tables, seeds, st.integers(1, 2))
def test_after_epochs_of_whole_weight_every_row_came_that_often(
    make: MakeMixture, sizes: list[tuple[int, Fraction]], seed: int, times: int
) -> None:
    num_epochs = times * math.lcm(*(weight.denominator for _, weight in sizes))
    expected = {
        (part, 3 * number + 1): num_epochs * weight
        for part, (count, weight) in enumerate(sizes)
        for number in range(count)
    }
    assert _counts(make(sizes, seed), num_epochs) == expected


@settings(deadline=None, max_examples=60)
@given(tables, seeds, st.integers(1, 6))
def test_after_any_epoch_rows_of_a_table_are_one_turn_apart_at_most(
    make: MakeMixture, sizes: list[tuple[int, Fraction]], seed: int, num_epochs: int
) -> None:
    counts = _counts(make(sizes, seed), num_epochs)
    for part, (count, weight) in enumerate(sizes):
        own = [counts[part, 3 * number + 1] for number in range(count)]
        assert sum(own) == math.floor(weight * count * num_epochs)
        assert max(own) - min(own) <= 1


@settings(deadline=None, max_examples=60)
@given(tables, seeds, st.integers(0, 200), st.integers(1, 30), st.data())
def test_a_sample_depends_on_its_number_alone(
    make: MakeMixture,
    sizes: list[tuple[int, Fraction]],
    seed: int,
    start: int,
    length: int,
    data: st.DataObject,
) -> None:
    """However the numbers are divided among steps, ranks and restarts."""
    mixture = make(sizes, seed)
    whole = _shown(mixture, start, start + length)
    cut = data.draw(st.integers(start, start + length - 1))
    again = make(sizes, seed)
    after = _shown(again, cut, start + length)
    assert whole[cut - start :] == after
    assert whole[: cut - start] == [
        sample for number in range(start, cut) for sample in _shown(again, number, number + 1)
    ]


@settings(deadline=None, max_examples=60)
@given(tables, seeds, st.integers(1, 5))
def test_each_showing_of_a_row_is_its_next_pass(
    make: MakeMixture, sizes: list[tuple[int, Fraction]], seed: int, num_epochs: int
) -> None:
    mixture = make(sizes, seed)
    passes: dict[tuple[int, int], list[int]] = {}
    for part, row, turn in _shown(mixture, 0, mixture.pairs_before(num_epochs)):
        passes.setdefault((part, row), []).append(turn)
    # Within an epoch the passes of a row come in any order.
    assert all(sorted(seen) == list(range(len(seen))) for seen in passes.values())


def test_one_table_alone_comes_in_the_order_of_the_keyed_permutation(make: MakeMixture) -> None:
    mixture = make([(20, 1.0)], seed=3)
    for epoch in range(3):
        order = KeyedPermutation(20, keyed_hash(3, epoch))(np.arange(20)) * 3 + 1
        assert mixture.samples(20 * epoch, 20 * (epoch + 1)).rows.tolist() == order.tolist()


def test_the_order_never_changes_between_releases(make: MakeMixture) -> None:
    mixture = make([(5, 0.5), (3, 2.0)], seed=7)
    shown = [(part, row) for part, row, _ in _shown(mixture, 0, 8)]
    assert shown == [(0, 4), (1, 7), (1, 1), (1, 7), (0, 1), (1, 4), (1, 1), (1, 4)]


def test_tables_are_mixed_evenly_within_an_epoch(make: MakeMixture) -> None:
    mixture = make([(4000, 0.5), (1000, 3.0)])
    assert mixture.pairs_per_epoch == 5000
    shares = [
        float((mixture.samples(start, start + 1000).parts == 0).mean())
        for start in range(0, 10_000, 1000)
    ]
    # The standard deviation of a share is 0.014 at most.
    assert all(abs(share - 0.4) < 0.07 for share in shares)
    assert len(set(shares)) > 5


def test_another_epoch_takes_the_other_half_in_another_order(make: MakeMixture) -> None:
    mixture = make([(1000, 0.5)])
    halves = [mixture.samples(500 * epoch, 500 * (epoch + 1)).rows.tolist() for epoch in range(4)]
    assert set(halves[0]).isdisjoint(halves[1])
    assert 200 < len(set(halves[0]) & set(halves[2])) < 300


def test_any_step_is_found_at_once(make: MakeMixture) -> None:
    mixture = make([(7, 1 / 3), (1000, 0.1)])
    far = 10**15
    epoch = mixture.epoch_of(far)
    assert mixture.pairs_before(epoch) <= far < mixture.pairs_before(epoch + 1)
    assert _shown(mixture, far, far + 3) == _shown(mixture, far - 1, far + 3)[1:]


def test_images_of_different_tables_have_different_ids(make: MakeMixture) -> None:
    mixture = make([(5, 1.0), (5, 1.0)])
    samples = mixture.samples(0, 10)
    ids = mixture.image_ids(samples)
    assert len(set(ids.tolist())) == 10
    assert ids[samples.parts == 0].tolist() == samples.rows[samples.parts == 0].tolist()


def test_a_table_that_occurs_with_two_views_is_one_set_of_images(tmp_path: Path) -> None:
    rows = [
        PairRow("a", b"x", captions=["one"], origin="human"),
        PairRow("b", b"x", captions=["two"], origin="web"),
        PairRow("c", b"x", captions=["three"], origin="web"),
    ]
    table = PairTable.create(tmp_path / "t.lance", rows)
    views = CaptionView(), CaptionView(sources=("human",))
    mixture = Mixture([WeightedIndex(view.resolve(table)) for view in views], seed=0)
    samples = mixture.samples(0, 4)
    assert sorted(mixture.image_ids(samples).tolist()) == [0, 0, 1, 2]
    # What is drawn for the two is not the same.
    assert len(set(mixture.draw_keys(samples).tolist())) == 4


def test_the_summary_tells_what_an_epoch_takes_of_each_table(make: MakeMixture) -> None:
    human, web = make([(1000, 2.0), (6000, 0.5)]).summary()
    assert "0.lance: 2,000 pairs per epoch (40 %), weight 2 x 1,000 rows" in human
    assert "1.lance: 3,000 pairs per epoch (60 %), weight 0.5 x 6,000 rows" in web


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e-9, math.nan, math.inf])
def test_a_weight_that_shows_nothing_is_refused(make: MakeMixture, weight: float) -> None:
    with pytest.raises(RecipeError, match=r"weight of .*0\.lance.*give more than 0"):
        make([(5, weight)])


@st.composite
def weighed_parts(draw: st.DrawFn) -> list[WeightedIndex]:
    """Tables of which some weigh their rows, as a view by calibrated scores does."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 40))
        units = draw(st.lists(st.integers(1, 65536), min_size=count, max_size=count))
        own = np.array(units, np.float32) / 65536 if draw(st.booleans()) else None
        index = ViewIndex(_NOWHERE, CaptionView(), np.arange(count) * 3 + 1, {}, {}, weights=own)
        parts.append(WeightedIndex(index, float(draw(weights))))
    return parts


_NOWHERE = cast(PairTable, SimpleNamespace(uri="nowhere"))


@settings(deadline=None, max_examples=60)
@given(weighed_parts(), seeds, st.integers(1, 12))
def test_rows_with_weights_come_in_proportion_to_them(
    parts: list[WeightedIndex], seed: int, num_epochs: int
) -> None:
    mixture = Mixture(parts, seed)
    shown = mixture.samples(0, mixture.pairs_before(num_epochs))
    for number, part in enumerate(parts):
        own = shown.rows[shown.parts == number]
        assert len(own) == part.rows_before(num_epochs)
        counts = np.bincount((own - 1) // 3, minlength=len(part.index))
        row_weights = part.index.weights
        shares = np.ones(len(part.index)) if row_weights is None else row_weights
        # A row has come once more than another besides where a pass is half over.
        assert np.abs(counts - len(own) * shares / shares.sum()).max() < 4.5
        # No pass has a row twice.
        turns = Counter(zip(own.tolist(), shown.passes[shown.parts == number], strict=True))
        assert max(turns.values(), default=1) == 1


@settings(deadline=None, max_examples=60)
@given(weighed_parts(), seeds, st.integers(0, 300), st.integers(2, 60), st.integers(1, 4))
def test_ranks_and_restarts_meet_the_same_weighed_rows(
    parts: list[WeightedIndex], seed: int, start: int, length: int, num_ranks: int
) -> None:
    whole = _shown(Mixture(parts, seed), start, start + num_ranks * length)
    of_ranks = [
        _shown(Mixture(parts, seed), start + rank * length, start + (rank + 1) * length)
        for rank in range(num_ranks)
    ]
    assert whole == [sample for own in of_ranks for sample in own]


def test_weights_of_one_are_no_weights_but_for_the_order() -> None:
    index = ViewIndex(_NOWHERE, CaptionView(), np.arange(50), {}, {}, weights=np.ones(50, "f4"))
    mixture = Mixture([WeightedIndex(index, 2.0)], 0)
    assert mixture.pairs_per_epoch == 100
    assert _counts(mixture, 1) == {(0, row): 2 for row in range(50)}
