"""Accuracy and consistency of NLVR2, worked by hand."""

import pytest

from openblip.metrics import nlvr
from openblip.runtime.errors import DataError

LABELS = {
    "dev-850-0-0": True, "dev-850-1-0": False, "dev-850-0-1": True,
    "dev-851-0-0": False, "dev-851-2-0": True,
}  # fmt: skip


def test_a_sentence_is_consistent_where_all_its_pairs_are_right() -> None:
    predictions = LABELS | {"dev-851-2-0": False}
    # Sentences: 850 first (two pairs), 850 second (one pair), 851 first (two, one of them wrong).
    assert nlvr(predictions, LABELS) == pytest.approx({"accuracy": 80, "consistency": 200 / 3})
    assert nlvr(LABELS, LABELS) == {"accuracy": 100, "consistency": 100}


def test_one_wrong_pair_does_not_spoil_the_other_sentence_of_its_set() -> None:
    predictions = LABELS | {"dev-850-0-1": False}
    assert nlvr(predictions, LABELS)["consistency"] == pytest.approx(200 / 3)


def test_other_identifiers_have_no_consistency() -> None:
    assert nlvr({"a/0": True, "a/1": True}, {"a/0": True, "a/1": False}) == {"accuracy": 50}


def test_predictions_must_be_complete() -> None:
    with pytest.raises(DataError, match=r"no prediction for dev-850-0-0 \(1 of 5"):
        nlvr(dict.fromkeys(list(LABELS)[1:], True), LABELS)
    with pytest.raises(DataError, match="no labels"):
        nlvr({"a": True}, {})
