"""What captions say too often and too seldom, against counts by hand."""

from math import log, sqrt

import pytest

from openblip.evaluation.error_report.caption import lengths, ngram_use, vocabulary


def test_overused_words_come_first_and_missing_ones_last() -> None:
    uses = ngram_use(["a dog runs", "a dog sits"], ["a cat runs", "a cat sits"])
    assert {use.words for use in uses[:3]} >= {"dog", "a dog"}
    assert {use.words for use in uses[-3:]} >= {"cat", "a cat"}
    (runs,) = (use for use in uses if use.words == "runs")
    assert runs.z == pytest.approx(0.0)
    assert (runs.captions, runs.references) == (1, 1)


def test_the_score_is_the_log_odds_with_a_prior_in_its_deviations() -> None:
    (use,) = (u for u in ngram_use(["x x y"], ["x y y y"]) if u.words == "x")
    # Pooled: x 3, y 4; the prior is a tenth of it.
    ours, human = 2 + 0.3, 1 + 0.3
    odds = log(ours / (3 + 0.7 - ours)) - log(human / (4 + 0.7 - human))
    assert use.z == pytest.approx(odds / sqrt(1 / ours + 1 / human))


def test_a_single_word_that_is_everything_has_a_score() -> None:
    assert [use.words for use in ngram_use(["x"], ["x"])] == ["x"]


def test_no_run_of_words_spans_two_captions() -> None:
    assert not any(use.words == "dog a" for use in ngram_use(["a dog", "a cat"], ["a cow"]))


def test_lengths_are_shares_and_punctuation_is_no_word() -> None:
    assert lengths(["a dog .", "dog", ""]) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert vocabulary(["A dog.", "a cat"]) == 3
