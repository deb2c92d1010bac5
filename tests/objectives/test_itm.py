"""Matching: weights of negatives, the draw, the loss."""

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.objectives.itm import hard_negatives, itm_loss, keyed_uniforms, negative_weights


def test_weights_are_the_softmax_plus_a_floor_except_where_excluded() -> None:
    sims = torch.tensor([[0.0, log(3.0)], [log(3.0), 0.0]])
    weights = negative_weights(sims, torch.eye(2, dtype=torch.bool), floor=0.01)
    assert weights.tolist() == [[0, pytest.approx(0.76)], [pytest.approx(0.76), 0]]


def test_each_candidate_has_its_part_of_the_unit_interval() -> None:
    weights = torch.tensor([[1.0, 0.0, 2.0, 1.0]])
    uniforms = torch.arange(8) / 8
    drawn = hard_negatives(weights.expand(8, -1), uniforms)
    assert drawn.tolist() == [0, 0, 2, 2, 2, 2, 3, 3]


def test_frequencies_follow_the_weights() -> None:
    weights = torch.tensor([0.1, 0.0, 0.6, 0.3])
    drawn = hard_negatives(weights.expand(20000, -1), keyed_uniforms(20000, "frequencies"))
    frequencies = drawn.bincount(minlength=4) / 20000
    torch.testing.assert_close(frequencies, weights, atol=0.015, rtol=0)


# Weights of one row may lie anywhere from subnormal numbers to large ones.
magnitudes = st.one_of(
    st.just(0.0),
    st.floats(0, 1, width=32),
    st.floats(0, 2**-130, width=32, allow_subnormal=True),
    st.floats(2.0**90, 2.0**100, width=32),
)
uniform_numbers = st.one_of(
    st.floats(0, 1, exclude_max=True, width=32), st.sampled_from([0.0, 1 - 2**-24])
)


@settings(deadline=None)
@given(st.lists(magnitudes, min_size=1, max_size=9).filter(any), uniform_numbers)
def test_weight_zero_is_never_drawn(row: list[float], uniform: float) -> None:
    drawn = hard_negatives(torch.tensor([row]), torch.tensor([uniform]))
    assert row[int(drawn)] > 0


def test_a_row_without_candidates_gives_an_index_all_the_same() -> None:
    weights = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert hard_negatives(weights, torch.tensor([0.9, 0.0])).tolist() == [0, 1]


def test_uniforms_depend_on_the_key_alone() -> None:
    before = torch.get_rng_state()
    assert torch.equal(keyed_uniforms(5, 7, "image"), keyed_uniforms(5, 7, "image"))
    assert not torch.equal(keyed_uniforms(5, 7, "image"), keyed_uniforms(5, 7, "text"))
    assert not torch.equal(keyed_uniforms(5, 7, "image"), keyed_uniforms(5, 8, "image"))
    assert torch.equal(torch.get_rng_state(), before)


def test_loss_of_undecided_and_of_certain_logits() -> None:
    matched = torch.tensor([True, False, False])
    counted = torch.ones(3, dtype=torch.bool)
    assert itm_loss(torch.zeros(3, 2), matched, counted).item() == pytest.approx(log(2))
    certain = torch.tensor([[-9.0, 9.0], [9.0, -9.0], [9.0, -9.0]])
    assert itm_loss(certain, matched, counted).item() == pytest.approx(0, abs=1e-6)


def test_rows_left_out_change_neither_loss_nor_gradient() -> None:
    logits = torch.tensor([[0.0, 0.0], [float("nan"), 5.0]], requires_grad=True)
    loss = itm_loss(logits, torch.tensor([True, False]), torch.tensor([True, False]))
    loss.backward()
    assert loss.item() == pytest.approx(log(2))
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [0.5, -0.5]
