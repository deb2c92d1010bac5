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
