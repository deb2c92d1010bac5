"""Draws that depend on the row's own seed alone."""

import pytest
import torch

from openblip.inference.decoding import Decoding
from openblip.inference.generation import (
    NucleusChoice,
    invert_cumulative,
    likeliest,
    uniform_number,
)


def test_uniform_numbers_are_pinned():
    # A synthetic caption that is drawn again years later must be the same one.
    assert uniform_number(0, 0, 0) == pytest.approx(0.4375436332927225, abs=1e-15)
    assert uniform_number(2**63 - 1, 3, 7) == pytest.approx(0.09962383988210077, abs=1e-15)


def test_uniform_numbers_cover_the_unit_interval_evenly():
    numbers = torch.tensor([uniform_number(seed, 0, 0) for seed in range(4000)])
    assert ((numbers >= 0) & (numbers < 1)).all()
    shares = torch.histc(numbers, bins=10, min=0, max=1) / 4000
    assert (shares - 0.1).abs().max() < 0.02


def test_seed_caption_and_step_each_change_the_number():
    numbers = {uniform_number(s, c, t) for s in range(5) for c in range(5) for t in range(5)}
    assert len(numbers) == 125


def test_a_draw_is_the_token_whose_share_holds_the_number():
    probabilities = torch.tensor([0.25, 0.0, 0.5, 0.25, 0.0])
    uniform = [0.0, 0.2, 0.25, 0.7, 0.75, 1 - 2.0**-52]
    rows = probabilities.expand(len(uniform), -1)
    assert invert_cumulative(rows, uniform).tolist() == [0, 0, 2, 2, 3, 3]


def test_an_impossible_token_is_never_drawn():
    probabilities = torch.tensor([[0.0, 1.0, 0.0]]).expand(3, -1)
    assert invert_cumulative(probabilities, [0.0, 0.5, 1 - 2.0**-52]).tolist() == [1, 1, 1]


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    choice = NucleusChoice(Decoding(method="nucleus", top_p=1.0), range(4000), 1)
    drawn = choice(probabilities.log().expand(4000, -1), list(range(4000)), 0)
    assert (torch.bincount(drawn) / 4000 - probabilities).abs().max() < 0.02


def test_a_row_keeps_its_draw_when_others_leave():
    choice = NucleusChoice(Decoding(method="nucleus", top_p=1.0), [11, 12, 13], 2)
    scores = torch.zeros(6, 50)
    everyone = choice(scores, [0, 1, 2, 3, 4, 5], 3)
    assert torch.equal(choice(scores[:2], [4, 1], 3), everyone[[4, 1]])


def test_greedy_takes_the_likeliest():
    assert likeliest(torch.tensor([[0.0, 2.0, 1.0], [5.0, 1.0, 2.0]]), [0, 1], 0).tolist() == [1, 0]
