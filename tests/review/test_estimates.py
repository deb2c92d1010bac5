"""Agreement, on published worked examples."""

from math import isnan

import pytest

from openblip.review.estimates import cohen_kappa, krippendorff_alpha, pairwise_kappas

# "Computing Krippendorff's Alpha-Reliability" (2011), example C: four observers, twelve units.
KRIPPENDORFF = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""


def test_kappa_of_fifty_grant_proposals() -> None:
    """Two readers: both say yes to 20, both no to 15, one alone to 5 and to 10; kappa is 0.4."""
    first = ["yes"] * 20 + ["yes"] * 5 + ["no"] * 10 + ["no"] * 15
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_alpha_of_four_observers_with_gaps() -> None:
    observers = [line.split() for line in KRIPPENDORFF.strip().splitlines()]
    units = [[value for value in unit if value != "."] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_two_observers_of_binary_data() -> None:
    """The same paper, example A: ten units, of which they agree on six; alpha is 0.095."""
    first, second = "0100000010", "1110010000"
    units = [list(pair) for pair in zip(first, second, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.095, abs=5e-4)


def test_where_nothing_can_be_said_it_is_no_number() -> None:
    assert isnan(cohen_kappa([], []))
    assert isnan(cohen_kappa(["right"] * 3, ["right"] * 3))
    assert isnan(krippendorff_alpha([["right"], ["wrong"]]))
    assert isnan(krippendorff_alpha([["right", "right"]]))
    assert cohen_kappa(["right", "wrong"], ["right", "wrong"]) == 1.0


def test_pairs_are_those_who_have_judged_a_text_both() -> None:
    found = pairwise_kappas(
        {"b": {"x": "right", "y": "wrong"}, "a": {"x": "right", "y": "wrong"}, "c": {"z": "right"}}
    )
    assert found == [("a", "b", 2, 1.0)]
