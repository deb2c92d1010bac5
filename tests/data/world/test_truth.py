"""Exact precision and recall of a filter, from the known kinds of noise."""

import math

import numpy as np
import pytest

from openblip.data.table import PairRow, PairTable
from openblip.data.world.truth import filter_quality, noise_kinds, precision_at_recall, truth_of
from openblip.errors import DataError

KINDS = ["true", "true", "true", "other_image", "other_image", "boilerplate", "wrong_object"]


def test_precision_counts_the_true_captions_that_were_lost():
    rejected = [True, False, False, True, False, True, False]
    quality = filter_quality(KINDS, rejected)
    assert (quality["other_image"].precision, quality["other_image"].recall) == (0.5, 0.5)
    assert (quality["boilerplate"].precision, quality["boilerplate"].recall) == (0.5, 1.0)
    assert (quality["wrong_object"].precision, quality["wrong_object"].recall) == (0.0, 0.0)
    assert quality["noise"].precision == pytest.approx(2 / 3)
    assert quality["noise"].recall == pytest.approx(2 / 4)
    assert quality["noise"].total == 4


def test_what_does_not_occur_has_no_quality():
    quality = filter_quality(["true"], [False])["boilerplate"]
    assert quality.total == 0
    assert math.isnan(quality.precision)
    assert math.isnan(quality.recall)


def test_decisions_must_be_as_many_as_captions():
    with pytest.raises(ValueError, match="7 kinds but 2 decisions"):
        filter_quality(KINDS, [True, False])


def test_precision_at_recall_by_hand():
    #        true  true  true  other other boiler object
    scores = [0.9, 0.3, 0.8, 0.1, 0.5, 0.0, 0.2]
    assert precision_at_recall(KINDS, scores, "other_image", 0.5) == (1.0, 0.1)
    assert precision_at_recall(KINDS, scores, "other_image", 1.0) == (2 / 3, 0.5)


def test_precision_at_recall_is_the_best_over_all_thresholds():
    rng = np.random.default_rng(0)
    kinds = rng.choice(["true", "other_image"], 300)
    scores = np.round(rng.normal(kinds == "true", 1.0), 1)
    best = 0.0
    for threshold in np.unique(scores):
        quality = filter_quality(kinds.tolist(), scores <= threshold)["other_image"]
        if quality.recall >= 0.6:
            best = max(best, quality.precision)
    assert precision_at_recall(kinds.tolist(), scores, "other_image", 0.6)[0] == best


def test_precision_at_recall_needs_such_captions():
    with pytest.raises(ValueError, match="'wrong_attribute'"):
        precision_at_recall(KINDS, [0.0] * 7, "wrong_attribute", 0.8)


def test_other_tables_have_no_truth(tmp_path):
    with pytest.raises(DataError, match="create_world"):
        truth_of({"url": "http://example.org"})
    photo = PairRow(id="a", image_uri="a.jpg", captions=["a dog"])
    table = PairTable.create(tmp_path / "photos.lance", [photo])
    with pytest.raises(DataError, match="create_world"):
        noise_kinds(table)
