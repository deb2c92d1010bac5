"""Candidates of contrast, and the scores by which matching ranks them."""

import torch

from openblip.evaluation.retrieval import candidates, unmatched_scores


def test_candidates_are_the_best_of_each_image_or_of_each_text() -> None:
    cosines = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.3, 0.7]])

    of_image, of_text = candidates(cosines, 1, dim=1), candidates(cosines, 1, dim=0)

    assert of_image.tolist() == [[True, False, False], [True, False, False]]
    assert of_text.tolist() == [[True, False, False], [False, True, True]]
    assert candidates(cosines, 9, dim=0).all()


def test_pairs_that_are_not_matched_keep_the_order_of_contrast() -> None:
    # In float32 both would be -100.
    close = torch.tensor([1e-7, 2e-7])
    low, high = unmatched_scores(close).tolist()
    assert low < high < -99
