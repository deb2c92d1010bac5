"""Accuracy of images whose classes are ranked: top-1, top-5 and the mean over classes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openblip.errors import DataError
from openblip.evaluation.metrics.retrieval import Ranks, candidate_ranks, score_matrix


def class_ranks(scores: ArrayLike, classes_of_image: Sequence[Sequence[int]]) -> Ranks:
    """Where the best right class of each image stands; equal scores are in no order (`Ranks`).

    Args:
        scores: (images, classes), higher is better.
        classes_of_image: for each image the columns of its classes; finding any one is a hit.
            Classes that no image has are candidates all the same.

    Raises:
        DataError: shapes do not fit, a score is NaN, or an image has no class.
    """
    matrix = score_matrix(scores, "scores (images, classes)")
    if len(classes_of_image) != len(matrix):
        raise DataError(
            f"classes_of_image lists {len(classes_of_image)} images, the scores have {len(matrix)}"
        )
    for image, classes in enumerate(classes_of_image):
        if not classes or not 0 <= min(classes) <= max(classes) < matrix.shape[1]:
            raise DataError(
                f"image {image} has the classes {list(classes)}; give at least one of 0 to "
                f"{matrix.shape[1] - 1}, or leave the image out of the scores"
            )
    return candidate_ranks(matrix, [np.unique(classes) for classes in classes_of_image])


def class_accuracy(
    hits: ArrayLike, classes_of_image: Sequence[Sequence[int]], num_classes: int
) -> NDArray[np.float64]:
    """Per cent of hits among the images of each class; NaN for a class without images.

    Args:
        hits: (images,), 1 for a hit and 0 for none, or the probability of one.
        classes_of_image: for each image its classes; it counts in each of them.
        num_classes: how many there are.
    """
    found, images = np.zeros(num_classes), np.zeros(num_classes)
    for hit, classes in zip(np.asarray(hits, np.float64), classes_of_image, strict=True):
        found[list(classes)] += 100 * hit
        images[list(classes)] += 1
    accuracy = np.full(num_classes, np.nan)
    np.divide(found, images, out=accuracy, where=images > 0)
    return accuracy
