"""Texts that repeat others: what is equal, what is near, and which one is kept."""

import numpy as np
import pytest

from openblip.curation.near_texts import repeated_texts, seen_texts, similarity
from openblip.table.flags import normalised


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  Two  DOGS,\ton a beach! ", "two dogs on a beach"),
        ("\uff34wo dogs", "two dogs"),
        ("Straße_1", "strasse 1"),
        ("一只狗。", "一只狗"),
        ("!?", ""),
    ],
)
def test_case_punctuation_and_unicode_forms_do_not_count(text: str, plain: str) -> None:
    assert normalised(text) == plain


def test_similarity_is_the_share_of_common_runs_of_four_letters() -> None:
    assert similarity("abcde", "abcde") == 1.0
    # abcd, bcde against bcde, cdef.
    assert similarity("abcde", "bcdef") == pytest.approx(1 / 3)
    assert similarity("a", "b") == 0.0


def test_a_small_difference_in_a_long_text_repeats_and_another_word_does_not() -> None:
    long = "a man in a red jacket stands beside a wooden boat on the shore of a lake in autumn"
    texts = [long, f"{long}s", long.replace("red", "green"), "a red dog", "a tan dog"]
    assert repeated_texts(texts, 0.9) == {1: 0}
    assert repeated_texts(texts, 1.0) == {}


def test_chains_do_not_join_and_the_first_is_kept() -> None:
    words = [f"word{number}" for number in range(60)]
    first, second, third = (" ".join(words[at : at + 50]) for at in (0, 2, 4))
    assert similarity(first, second) > 0.9 > similarity(first, third)
    assert repeated_texts([first, second, third], 0.9) == {1: 0}
    assert repeated_texts([second, first, third], 0.9) == {1: 0, 2: 0}


def test_near_copies_among_many_texts_are_found() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(500)]
    texts = [" ".join(rng.choice(words, 14)) for _ in range(2000)]
    copies = [f"{text}s" for text in texts[:200]]
    found = repeated_texts(texts + copies, 0.9)
    assert found == {2000 + number: number for number in range(200)}
    assert seen_texts(copies, texts, 0.9) == {number: number for number in range(200)}


def test_every_reference_counts_also_one_that_repeats_another() -> None:
    words = [f"word{number}" for number in range(60)]
    first, second, third = (" ".join(words[at : at + 50]) for at in (0, 2, 4))
    assert seen_texts([third], [first, second], 0.9) == {0: 1}
    assert seen_texts([third], [first], 0.9) == {}
