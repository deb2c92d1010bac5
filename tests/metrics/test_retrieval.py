from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.metrics import image_ranks, retrieval, text_ranks
from openblip.runtime.errors import DataError

# Two images with two texts each.
PAIRS = [[0, 1], [2, 3]]


def test_a_perfect_matrix_has_full_recall():
    scores = [[0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.8, 0.9]]
    result = retrieval(scores, PAIRS)
    assert set(result) == {
        "TR@1", "TR@5", "TR@10", "TR_mean", "IR@1", "IR@5", "IR@10", "IR_mean", "mean",
    }  # fmt: skip
    assert set(result.values()) == {100.0}


def test_recalls_of_a_matrix_worked_by_hand():
    # Image 0: its best text (0.5) is second. Image 1: its best text (0.9) is first.
    # Texts 0 and 1 have their image in the second place, texts 2 and 3 in the first.
    scores = [[0.5, 0.1, 0.7, 0.3], [0.6, 0.2, 0.9, 0.4]]
    result = retrieval(scores, PAIRS)
    assert text_ranks(scores, PAIRS).expected.tolist() == [2, 1]
    assert image_ranks(np.transpose(scores), PAIRS).expected.tolist() == [2, 2, 1, 1]
    assert result["TR@1"] == 50.0
    assert result["IR@1"] == 50.0
    assert result["TR@5"] == result["IR@10"] == 100.0
    assert result["TR_mean"] == pytest.approx(250.0 / 3)
    assert result["mean"] == pytest.approx(250.0 / 3)


def test_the_best_of_several_texts_decides():
    scores = np.zeros((1, 12))
    scores[0] = np.arange(12)
    assert text_ranks(scores, [list(range(12))]).expected[0] == 1
    two = np.stack([scores[0], scores[0]])
    ranks = text_ranks(two, [[0, 9], [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]])
    assert ranks.expected.tolist() == [3, 1]


def test_a_constant_matrix_earns_what_chance_does():
    num_images = 40
    captions_of_image = [[2 * image, 2 * image + 1] for image in range(num_images)]
    result = retrieval(np.ones((num_images, 2 * num_images)), captions_of_image)
    assert result["IR@1"] == pytest.approx(100 / 40)
    assert result["IR@10"] == pytest.approx(100 * 10 / 40)
    # One of 2 right texts among 5 of 80 drawn without replacement: 1 - C(78, 5) / C(80, 5).
    assert result["TR@5"] == pytest.approx(100 * (1 - (75 * 74) / (80 * 79)))


def test_one_tied_wrong_text_costs_half_a_hit():
    scores = [[0.5, 0.5], [0.1, 0.9]]
    ranks = text_ranks(scores, [[0], [1]])
    assert ranks.hits(1).tolist() == [0.5, 1.0]
    assert ranks.hits(2).tolist() == [1.0, 1.0]
    assert ranks.expected.tolist() == [1.5, 1.0]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_hits_are_the_mean_over_random_orders_of_the_tied(data):
    num_texts = data.draw(st.integers(2, 5))
    row = np.array(data.draw(st.lists(st.integers(0, 2), min_size=num_texts, max_size=num_texts)))
    right = data.draw(st.sets(st.integers(0, num_texts - 1), min_size=1, max_size=num_texts))
    k = data.draw(st.integers(1, num_texts))
    others = [text for text in range(num_texts) if text not in right]
    pairs = [sorted(right), others] if others else [sorted(right)]
    found = text_ranks(np.stack([row] * len(pairs)).astype(float), pairs).hits(k)[0]
    # Every order of the texts, sorted stably: all orders of the tied are equally frequent.
    orders = list(permutations(range(num_texts)))
    hits = [bool(right & set(sorted(order, key=lambda t: -row[t])[:k])) for order in orders]
    assert found == pytest.approx(np.mean(hits))


def test_a_text_of_two_images_is_a_hit_for_both():
    scores = np.array([[0.9, 0.1], [0.9, 0.2]])
    result = retrieval(scores, [[0], [0, 1]])
    assert result["TR@1"] == 100.0
    assert result["IR@1"] == 100.0


def test_re_ranking_has_its_own_matrix_for_images():
    i2t = np.array([[1.0, -100.0], [-100.0, 1.0]])
    t2i = np.array([[-100.0, 1.0], [1.0, -100.0]])
    result = retrieval(i2t, [[0], [1]], scores_t2i=t2i)
    assert result["TR@1"] == 100.0
    assert result["IR@1"] == 0.0


def test_a_pair_scored_minus_infinity_is_never_retrieved():
    scores = np.full((2, 2), -np.inf)
    scores[1, 1] = 3.0
    ranks = text_ranks(scores, [[0], [1]])
    assert ranks.hits(10).tolist() == [0.0, 1.0]


def test_low_precision_and_integer_scores_are_taken_as_they_are():
    scores = [[3, 1], [2, 4]]
    for dtype in (np.float16, np.float32, np.float64, np.int32):
        assert retrieval(np.array(scores, dtype), [[0], [1]])["mean"] == 100.0


def test_the_blocks_of_a_large_matrix_change_nothing():
    rng = np.random.default_rng(0)
    num_images = 700
    scores = rng.normal(size=(num_images, 2 * num_images)).astype(np.float32)
    captions_of_image = [[image, num_images + image] for image in range(num_images)]
    owner = np.arange(2 * num_images) % num_images
    place = (scores > scores[owner, np.arange(2 * num_images)]).sum(axis=0)
    assert retrieval(scores, captions_of_image)["IR@10"] == pytest.approx(100 * (place < 10).mean())
    assert np.array_equal(image_ranks(scores.T, captions_of_image).expected, place + 1)


@pytest.mark.parametrize(
    ("scores", "pairs", "reason"),
    [
        (np.ones(4), PAIRS, "must be a matrix"),
        (np.ones((0, 4)), [], "must be a matrix"),
        (np.ones((3, 4)), PAIRS, "lists 2 images, the scores have 3"),
        (np.ones((2, 4)), [[0, 1], []], "image 1 has no caption"),
        (np.ones((2, 4)), [[0, 1], [2, 4]], "image 1 names text 4; there are 4 texts"),
        (np.ones((2, 4)), [[0, -1], [2, 3]], "image 0 names text -1"),
        (np.ones((2, 4)), [[0, 1], [2]], "text 3 belongs to no image"),
        (np.array([[1.0, np.nan]]), [[0, 1]], "1 of 2 scores .* are NaN"),
    ],
)
def test_damaged_input_is_named(scores, pairs, reason):
    with pytest.raises(DataError, match=reason):
        retrieval(scores, pairs)


def test_a_second_matrix_of_the_wrong_orientation_is_named():
    with pytest.raises(DataError, match="lists 2 images, the scores have 4"):
        retrieval(np.ones((2, 4)), PAIRS, scores_t2i=np.ones((2, 4)))
