"""A digest of texts tells whether they are what they were."""

import numpy as np
import pytest

from openblip.table.judging import TextDigest

ROWS, TEXTS = [0, 0, 3, 5], ["a wall", "", "a red wall", "ein weißer"]


def digest(*batches: tuple[list[int], list[str]]) -> bytes:
    digest = TextDigest()
    for rows, texts in batches:
        digest.add(np.array(rows, np.int64), texts)
    return digest.digest()


def test_how_many_come_at_once_makes_no_difference() -> None:
    whole = digest((ROWS, TEXTS))
    assert digest(([], []), (ROWS[:1], TEXTS[:1]), (ROWS[1:], TEXTS[1:])) == whole


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        (ROWS, ["a wall", "", "a red wall", "ein weisser"]),
        ([0, 0, 4, 5], TEXTS),
        (ROWS, ["a wal", "l", "a red wall", "ein weißer"]),
        (ROWS, TEXTS[::-1]),
        (ROWS[:3], TEXTS[:3]),
    ],
)
def test_other_texts_or_rows_have_another(rows: list[int], texts: list[str]) -> None:
    assert digest((rows, texts)) != digest((ROWS, TEXTS))


def test_texts_that_are_not_weighed_have_the_digest_that_they_always_had() -> None:
    # Of a run that was begun before scores were counted.
    known = "8019e171ac6861c55879ad0a2cf9f117"
    assert digest((ROWS, TEXTS)).hex() == known


def test_other_scores_of_weighed_texts_have_another() -> None:
    def weighed(*batches: slice, scores: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)) -> bytes:
        digest = TextDigest()
        for own in batches:
            digest.add(np.array(ROWS[own], np.int64), TEXTS[own], np.array(scores[own]))
        return digest.digest()

    whole = weighed(slice(None))
    assert whole == weighed(slice(0), slice(1), slice(1, None))
    assert whole != weighed(slice(None), scores=(0.1, 0.2, 0.3, 0.5))
    assert whole != digest((ROWS, TEXTS))
