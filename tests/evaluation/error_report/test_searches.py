"""Searches of a small gallery whose ranks are known."""

import numpy as np
import pytest

from openblip.evaluation.error_report.retrieval import image_searches, judged_pairs, text_searches
from openblip.evaluation.retrieval import NOT_RANKED, Gallery, PairScores


@pytest.fixture
def pairs() -> PairScores:
    """Two images, the first with texts 0 and 1; matching saw the first three texts of each."""
    cosines = np.array([[0.9, 0.2, 0.3, 0.1], [0.4, 0.3, 0.8, 0.1]], np.float32)
    matched = np.array([[1.0, 3.0, 4.0, NOT_RANKED], [2.0, 1.0, 3.0, NOT_RANKED]], np.float32)
    itm = np.array([[0.2, 0.6, 0.7, np.nan], [0.5, 0.3, 0.6, np.nan]], np.float32)
    gallery = Gallery(np.array([10, 11]), ["x", "y"], ["a", "b", "c", "d"], [[0, 1], [2, 3]])
    return PairScores(gallery, cosines, matched, matched, itm)


def test_the_worst_search_is_the_one_whose_right_text_stands_lowest(pairs: PairScores) -> None:
    searches = text_searches(pairs)
    assert searches.worst(5) == [0]
    assert searches.above(0, 3) == [2]
    assert searches.best_right(0) == 1


def test_a_text_searches_the_image_that_it_was_written_for(pairs: PairScores) -> None:
    searches = image_searches(pairs)
    assert searches.right == [[0], [0], [1], [1]]
    assert searches.worst(5) == [0, 2]
    assert searches.above(2, 3) == [0]


def test_what_matching_broke_and_mended_is_counted(pairs: PairScores) -> None:
    searches = text_searches(pairs)
    assert searches.broken() == [0]
    assert searches.agreement() == {
        (True, True): 1,
        (True, False): 1,
        (False, True): 0,
        (False, False): 0,
    }


def test_a_text_that_was_no_candidate_is_lost(pairs: PairScores) -> None:
    assert text_searches(pairs).lost() == 0
    assert image_searches(pairs).lost() == 1


def test_pairs_to_calibrate_are_the_right_ones_and_the_hardest_wrong_ones(
    pairs: PairScores,
) -> None:
    probabilities, labels = judged_pairs(pairs)
    # Right: (0, 0), (0, 1), (1, 2), not (1, 3), which was no candidate. Wrong: (0, 2) and (1, 0),
    # first among the wrong of their images; (1, 1) of its text.
    found = sorted(zip(probabilities.round(3).tolist(), labels.tolist(), strict=True))
    assert found == [(0.2, 1), (0.3, 0), (0.5, 0), (0.6, 1), (0.6, 1), (0.7, 0)]


def test_without_matching_there_is_nothing_to_calibrate(pairs: PairScores) -> None:
    from dataclasses import replace

    probabilities, labels = judged_pairs(replace(pairs, itm=None))
    assert len(probabilities) == len(labels) == 0
