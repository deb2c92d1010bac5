import math

import pytest

from openblip.metrics.caption import cider, count_captions


def scores(candidates, references):
    return cider(
        count_captions(
            [text.split() for text in candidates],
            [[text.split() for text in texts] for texts in references],
        )
    ).tolist()


def test_a_copy_of_rare_words_scores_ten():
    first = "a dog runs fast"
    second = "one cat sleeps here"
    assert scores([first, second], [[first], [second]]) == pytest.approx([10.0, 10.0])


def test_orders_longer_than_the_caption_score_nothing():
    # Two words have no 3-grams and no 4-grams: two of four orders match.
    assert scores(["red dog", "x y"], [["red dog"], ["x y"]]) == pytest.approx([5.0, 5.0])


def test_a_word_of_every_image_weighs_nothing():
    # Of "a dog" only "dog" and "a dog" are rare; the candidate "a" has no weight at all.
    assert scores(["a", "a cat"], [["a dog"], ["a cat"]]) == pytest.approx([0.0, 5.0])


def test_a_cosine_worked_by_hand():
    # Weights log 2 each. 1-grams: {p, q} against {p, r}: 1/2. 2-grams: none in common.
    expected = 10 * (1 / 2) / 4
    assert scores(["p q", "x y"], [["p r"], ["x y"]])[0] == pytest.approx(expected)


def test_repetition_is_cut_to_the_reference():
    # 1-grams: min(3, 1) * 1 / (3 * 1) = 1/3; length 2 pairs against 0.
    expected = 10 * (1 / 3) / 4 * math.exp(-(2**2) / 72)
    assert scores(["p p p", "x"], [["p"], ["x"]])[0] == pytest.approx(expected)


def test_references_are_averaged():
    both = scores(["p q", "x y"], [["p q", "r s"], ["x y"]])
    assert both == pytest.approx([2.5, 5.0])


def test_frequency_counts_images_and_not_captions():
    # "p" is in two captions of one image: its frequency is 1 of 3 images, its weight log 3.
    # "q" is in two images: log(3 / 2).
    ours = scores(["p", "q", "z"], [["p", "p q"], ["q"], ["z"]])
    rare, common = math.log(3), math.log(3 / 2)
    cosine = rare / math.hypot(rare, common)
    penalty = math.exp(-1 / 72)
    assert ours[0] == pytest.approx(10 * (1 + cosine * penalty) / 4 / 2)


def test_one_image_alone_scores_nothing():
    assert scores(["a dog"], [["a dog"]]) == [0.0]


def test_an_empty_caption_scores_nothing():
    assert scores(["", "x"], [["a dog"], [""]]) == [0.0, 0.0]
