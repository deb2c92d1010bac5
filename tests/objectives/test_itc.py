"""Contrast: similarities, targets, loss."""

from math import exp, log

import pytest
import torch

from openblip.objectives.itc import (
    UNKNOWN_ID,
    itc_loss,
    own_pairs,
    ramped,
    same_id,
    similarities,
    soft_targets,
)

EYE = torch.eye(4)


def own(rows: int, keys: int, first: int = 0) -> torch.Tensor:
    return own_pairs(rows, keys, first, torch.device("cpu"))


def test_orthogonal_pairs_have_a_known_loss() -> None:
    sims = similarities(EYE, EYE, torch.tensor(0.5))
    loss = itc_loss(sims, sims, EYE, EYE)
    assert loss.item() == pytest.approx(log(1 + 3 * exp(-2)))


def test_loss_is_the_mean_of_both_directions() -> None:
    flat, sharp = torch.zeros(4, 4), 100 * EYE
    assert itc_loss(flat, sharp, EYE, EYE).item() == pytest.approx(log(4) / 2)
    assert itc_loss(sharp, flat, EYE, EYE).item() == pytest.approx(log(4) / 2)


def test_further_keys_are_further_wrong_answers() -> None:
    keys = torch.cat([EYE[:2], torch.zeros(5, 4)])
    sims = similarities(EYE[:2], keys, torch.tensor(1.0))
    loss = itc_loss(sims, sims, own(2, 7).float(), own(2, 7).float())
    assert loss.item() == pytest.approx(log(1 + 6 * exp(-1)))


def test_similarities_are_float32_under_autocast() -> None:
    third = torch.full((1, 3), 3**-0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sims = similarities(third, third, torch.tensor(0.07))
    assert sims.dtype == torch.float32
    assert sims.item() == pytest.approx(1 / 0.07, rel=1e-6)


def test_own_pairs_begin_at_the_ranks_first_key() -> None:
    assert own(2, 5).nonzero().tolist() == [[0, 0], [1, 1]]
    assert own(2, 5, first=2).nonzero().tolist() == [[0, 2], [1, 3]]


def test_unknown_ids_are_equal_to_none() -> None:
    rows, keys = torch.tensor([3, UNKNOWN_ID]), torch.tensor([UNKNOWN_ID, 3, 4])
    assert same_id(rows, keys).tolist() == [[False, True, False], [False, False, False]]


def test_positives_share_the_weight_of_a_row() -> None:
    positives = torch.tensor([[True, False, True, False], [False, True, False, False]])
    targets = soft_targets(torch.zeros(2, 4), positives, alpha=0.0)
    assert targets.tolist() == [[0.5, 0, 0.5, 0], [0, 1, 0, 0]]


def test_alpha_mixes_in_the_teachers_distribution() -> None:
    targets = soft_targets(torch.tensor([[0.0, 0.0, log(2.0)]]), own(1, 3), alpha=0.4)
    assert targets[0].tolist() == pytest.approx([0.4 / 4 + 0.6, 0.4 / 4, 0.4 / 2])


@pytest.mark.parametrize(("epoch", "expected"), [(0.0, 0.0), (0.5, 0.1), (2.0, 0.4), (7.0, 0.4)])
def test_alpha_rises_linearly_and_stays(epoch: float, expected: float) -> None:
    assert ramped(0.4, epoch, ramp_epochs=2.0) == pytest.approx(expected)


def test_alpha_without_ramp_is_there_at_once() -> None:
    assert ramped(0.4, 0.0, ramp_epochs=0.0) == 0.4
