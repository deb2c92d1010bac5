"""Accuracy worked by hand; a result that is the same for nearly all examples is named."""

import numpy as np
import pytest

from openblip.metrics import accuracy
from openblip.metrics.accuracy import Dominant, Tally, class_accuracy, class_ranks, dominant
from openblip.runtime.errors import DataError

SCORES = [[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.3, 0.8]]


def test_an_image_is_a_hit_where_its_class_is_among_the_best() -> None:
    ranks = class_ranks(SCORES, [[0], [1], [2]])
    assert ranks.hits(1).tolist() == [1, 0, 1]
    assert ranks.hits(2).tolist() == [1, 1, 1]


def test_any_of_several_labels_is_a_hit() -> None:
    assert class_ranks(SCORES, [[1, 2], [0, 2], [0, 1]]).hits(1).tolist() == [0, 1, 0]


def test_equal_scores_earn_what_chance_does() -> None:
    assert class_ranks(np.zeros((2, 4)), [[0], [1, 2]]).hits(1).tolist() == [0.25, 0.5]


def test_accuracy_per_class_counts_the_images_of_the_class() -> None:
    found = class_accuracy([1, 0, 1, 1], [[0], [0], [0, 2], [2]], 4)
    np.testing.assert_allclose(found, [200 / 3, np.nan, 100, np.nan])


def test_images_without_a_known_class_are_refused() -> None:
    with pytest.raises(DataError, match="image 1 has the classes"):
        class_ranks(SCORES, [[0], [], [1]])
    with pytest.raises(DataError, match="0 to 2"):
        class_ranks(SCORES, [[0], [3], [1]])
    with pytest.raises(DataError, match="lists 2 images"):
        class_ranks(SCORES, [[0], [1]])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"yes": 2786, "no": 2}, Dominant("yes", 2786, 2788)),
        ({"yes": 19, "no": 1}, Dominant("yes", 19, 20)),
        ({"yes": 18, "no": 2}, None),
        ({"yes": 9}, None),
        ({"": 10}, Dominant("", 10, 10)),
        ({}, None),
    ],
)
def test_what_nearly_all_results_say(counts: dict[str, int], expected: Dominant | None) -> None:
    assert dominant(text for text, count in counts.items() for _ in range(count)) == expected


def test_it_is_told_in_one_short_line() -> None:
    told = "nearly all results are the same: 2,786 of 2,788 are 'yes'"
    assert str(Dominant("yes", 2786, 2788)) == told
    assert len(str(Dominant("a dog " * 99, 10, 10))) < 140


def test_any_number_of_different_results_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "_MOST_TEXTS", 50)
    tally = Tally()
    for number in range(400):
        tally.add(f"caption {number}")
        for _ in range(20):
            tally.add("a dog")
    assert tally.dominant == Dominant("a dog", 8000, 8400)
    assert len(tally._counts) == 50
