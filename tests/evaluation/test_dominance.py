"""A result that is the same for nearly all examples is named."""

import pytest

from openblip.evaluation.results import Dominant, dominant


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
def test_what_nearly_all_say(counts, expected):
    assert dominant(text for text, count in counts.items() for _ in range(count)) == expected


def test_it_is_one_short_line():
    told = "nearly all results are the same: 2,786 of 2,788 are 'yes'"
    assert str(Dominant("yes", 2786, 2788)) == told
    assert len(str(Dominant("a dog " * 99, 10, 10))) < 140
