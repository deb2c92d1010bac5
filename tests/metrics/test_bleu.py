import math

import numpy as np
import pytest

from openblip.metrics.caption import bleu, bleu_statistics, count_captions


def statistics(candidates, references):
    return bleu_statistics(
        count_captions(
            [text.split() for text in candidates],
            [[text.split() for text in texts] for texts in references],
        )
    )


def test_a_copy_of_a_reference_scores_one():
    scores = bleu(statistics(["a dog runs on grass"], [["x y", "a dog runs on grass"]]))
    assert scores == pytest.approx((1.0, 1.0, 1.0, 1.0), abs=1e-8)


def test_a_repeated_word_counts_as_often_as_one_reference_has_it():
    # Papineni's example: two "the" of seven are allowed.
    rows = statistics(
        ["the the the the the the the"],
        [["the cat is on the mat", "there is a cat on the mat"]],
    )
    assert rows.tolist() == [[7, 7, 2, 0, 0, 0, 7, 6, 5, 4]]
    assert bleu(rows)[0] == pytest.approx(2 / 7)


def test_precisions_and_brevity_worked_by_hand():
    # 1-grams a, b, c of 3 match, 2-gram "a b" of 2; 3 words against 4.
    rows = statistics(["a b c"], [["a b d c"]])
    brevity = math.exp(1 - 4 / 3)
    assert rows.tolist() == [[3, 4, 3, 1, 0, 0, 3, 2, 1, 0]]
    assert bleu(rows)[:2] == pytest.approx((brevity, brevity * math.sqrt(1 / 2)))


def test_the_closest_reference_gives_the_length_and_the_shorter_of_two():
    rows = statistics(["a b c d"], [["a", "a b c d e", "a b c", "a b c d e f g"]])
    assert rows[0, 1] == 3


def test_a_corpus_sums_before_it_divides():
    rows = statistics(["a b", "c d e f"], [["a b"], ["x x x x"]])
    assert bleu(rows)[0] == pytest.approx(2 / 6)
    assert bleu(rows[:1])[0] == pytest.approx(1.0)


def test_an_empty_candidate_scores_nothing():
    assert bleu(statistics([""], [["a dog"]])) == (0.0, 0.0, 0.0, 0.0)


def test_rows_may_be_resampled():
    rows = statistics(["a b", "c d"], [["a b"], ["c x"]])
    assert bleu(rows[[0, 0]])[0] == pytest.approx(1.0)
    assert np.array_equal(rows[[0, 1]].sum(axis=0), rows[[1, 0]].sum(axis=0))
