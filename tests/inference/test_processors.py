"""Constraints on next-token scores, and the nucleus."""

from dataclasses import replace

import pytest
import torch

from openblip.inference.decoding import Decoding
from openblip.inference.generation import constrain, nucleus_probabilities

END = 3
OFF = Decoding(min_length=0)


def test_a_penalty_moves_scores_of_seen_ids_away_from_likely():
    scores = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    ids = torch.tensor([[0, 1, 1]])
    penalised = constrain(scores, ids, replace(OFF, repetition_penalty=2.0), END)
    assert penalised.tolist() == [[1.0, -4.0, 2.0, -2.0]]
    assert scores.tolist() == [[2.0, -2.0, 2.0, -2.0]], "the given scores stay"


@pytest.mark.parametrize(("length", "may_end"), [(4, False), (5, True), (6, True)])
def test_a_text_shorter_than_the_minimum_does_not_end(length, may_end):
    scores = torch.zeros(2, 5)
    ids = torch.zeros(2, length, dtype=torch.int64)
    constrained = constrain(scores, ids, Decoding(min_length=5), END)
    assert bool((constrained[:, END] == 0).all()) == may_end
    assert (constrained[:, :END] == 0).all()
    assert (constrained[:, END + 1 :] == 0).all()


def test_without_constraints_nothing_changes():
    scores = torch.randn(2, 5)
    assert constrain(scores, torch.zeros(2, 3, dtype=torch.int64), OFF, END) is scores


PROBABILITIES = torch.tensor([[0.15, 0.5, 0.05, 0.3]])


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.4, [1]), (0.6, [1, 3]), (0.85, [0, 1, 3]), (0.97, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])],
)
def test_the_nucleus_is_the_smallest_set_that_exceeds_p(top_p, kept):
    nucleus = nucleus_probabilities(PROBABILITIES.log(), top_p=top_p)
    expected = torch.zeros(1, 4)
    expected[:, kept] = PROBABILITIES[:, kept] / PROBABILITIES[:, kept].sum()
    torch.testing.assert_close(nucleus, expected)


def test_top_k_comes_before_top_p():
    # Of the two likeliest tokens the first holds 0.5 / 0.8 = 0.625: p = 0.6 is reached by it alone.
    nucleus = nucleus_probabilities(PROBABILITIES.log(), top_p=0.6, top_k=2)
    assert nucleus.tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_top_k_keeps_ties_and_may_exceed_the_vocabulary():
    assert (nucleus_probabilities(torch.zeros(1, 4), top_p=1.0, top_k=2) == 0.25).all()
    assert (nucleus_probabilities(torch.zeros(1, 4), top_p=1.0, top_k=9) == 0.25).all()


def test_an_excluded_token_stays_excluded():
    scores = torch.tensor([[0.0, float("-inf"), 0.0]])
    assert nucleus_probabilities(scores, top_p=0.9, top_k=3).tolist() == [[0.5, 0.0, 0.5]]
