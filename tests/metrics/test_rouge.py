import pytest
from hypothesis import given
from hypothesis import strategies as st

from openblip.metrics.caption import longest_common_subsequence, rouge_l

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


def subsequence_by_table(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, left in enumerate(first, 1):
        for j, right in enumerate(second, 1):
            table[i][j] = (
                table[i - 1][j - 1] + 1 if left == right else max(table[i - 1][j], table[i][j - 1])
            )
    return table[-1][-1]


@given(WORDS, WORDS)
def test_the_bit_parallel_length_is_that_of_the_table(first, second):
    assert longest_common_subsequence(first, second) == subsequence_by_table(first, second)


def test_a_long_caption_does_not_overflow_a_machine_word():
    words = [str(number) for number in range(300)]
    assert longest_common_subsequence(words, words[::2]) == 150


def f_measure(precision, recall):
    return (1 + 1.44) * precision * recall / (recall + 1.44 * precision)


def test_a_score_worked_by_hand():
    # "a c d" is common: 3 of 4 words, 3 of 5 words.
    scores = rouge_l([["a", "b", "c", "d"]], [[["a", "x", "c", "y", "d"]]])
    assert scores[0] == pytest.approx(f_measure(3 / 4, 3 / 5))


def test_precision_and_recall_may_come_from_different_references():
    scores = rouge_l([["a", "b", "c", "d"]], [[["a"], ["a", "b", "x", "x", "x", "x"]]])
    assert scores[0] == pytest.approx(f_measure(2 / 4, 1.0))


def test_copies_score_one_and_strangers_nothing():
    scores = rouge_l([["a", "b"], ["a"]], [[["a", "b"]], [["x"]]])
    assert scores.tolist() == pytest.approx([1.0, 0.0])


def test_an_empty_caption_is_one_empty_word():
    scores = rouge_l([(), ()], [[["a"]], [()]])
    assert scores.tolist() == pytest.approx([0.0, 1.0])
