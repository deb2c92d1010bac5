"""Recall at k of text and image retrieval (the protocol of COCO and Flickr30k)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openblip.runtime.errors import DataError

RECALL_AT = (1, 5, 10)

# Queries whose candidates are compared at once: bounds the memory for transposed scores.
_BLOCK = 512

_Rows = list[NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where the best right candidate of each query stands among all candidates.

    Equal scores are in no order: what depends on their order is the mean over all of them. So a
    constant score matrix earns what chance does, and a caption that two images share word for word
    costs its images half a place.
    """

    above: NDArray[np.int64]
    """Wrong candidates with a higher score than the best right one, per query."""

    tied: NDArray[np.int64]
    """Wrong candidates with the score of the best right one, per query."""

    tied_right: NDArray[np.int64]
    """Right candidates with that score, at least 1, per query."""

    scored: NDArray[np.bool_]
    """False where every right candidate has the score -inf: such a query is never a hit."""

    @property
    def expected(self) -> NDArray[np.float64]:
        """Rank of the first right candidate, 1 = best, the mean over all orders of the tied."""
        # Over all orders the tied wrong ones fall evenly into the `tied_right` + 1 gaps around the
        # tied right ones; those in the first gap stand before the first right one.
        return np.asarray(1.0 + self.above + self.tied / (self.tied_right + 1.0), np.float64)

    def hits(self, k: int) -> NDArray[np.float64]:
        """Probability, per query, that a right candidate is among the first k; 0 or 1 untied."""
        places = np.clip(k - self.above, 0, self.tied + self.tied_right)
        # P(no right one in the first `places` of the tied) = C(wrong, places) / C(all, places).
        missed = np.ones(len(self.above))
        for number in range(int(self.tied_right.max(initial=0))):
            counts = number < self.tied_right
            total = np.maximum(self.tied + self.tied_right - number, 1)
            missed *= np.where(counts, np.maximum(total - places, 0) / total, 1.0)
        return np.where(self.scored, 1.0 - missed, 0.0)


def retrieval(
    scores: ArrayLike,
    captions_of_image: Sequence[Sequence[int]],
    scores_t2i: ArrayLike | None = None,
) -> dict[str, float]:
    """Returns recall at 1, 5 and 10 of texts ("TR@k") and of images ("IR@k"), in per cent.

    Text retrieval: an image is a hit if any of its texts is among the k best texts. Image
    retrieval: a text is a hit if its image is among the k best images. Ties: see `Ranks`.

    Args:
        scores: (images, texts), higher is better. Pairs that were not scored may hold any low
            number (the original uses -100), or -inf, which never counts as retrieved.
        captions_of_image: for each image, the columns of its texts. A text may belong to several
            images (equal captions): then any of them is a hit.
        scores_t2i: (texts, images), the scores for image retrieval where they differ: a two-stage
            search re-ranks other pairs for texts than for images.

    Returns:
        "TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10", their means "TR_mean" and "IR_mean", and
        "mean" over both.

    Raises:
        DataError: shapes do not fit, a score is NaN, an image has no text, or a text no image.
    """
    of_text = text_ranks(scores, captions_of_image)
    of_image = image_ranks(
        np.asarray(scores).T if scores_t2i is None else scores_t2i, captions_of_image
    )
    result: dict[str, float] = {}
    for name, ranks in (("TR", of_text), ("IR", of_image)):
        recalls = [100.0 * float(ranks.hits(k).mean()) for k in RECALL_AT]
        result |= {f"{name}@{k}": recall for k, recall in zip(RECALL_AT, recalls, strict=True)}
        result[f"{name}_mean"] = float(np.mean(recalls))
    result["mean"] = (result["TR_mean"] + result["IR_mean"]) / 2.0
    return result


def text_ranks(scores: ArrayLike, captions_of_image: Sequence[Sequence[int]]) -> Ranks:
    """Returns, for each image, where its best text stands; `scores` is (images, texts).

    Raises:
        DataError: see `retrieval`.
    """
    matrix = score_matrix(scores, "scores (images, texts)")
    texts_of_image, _ = _pairing(matrix.shape[0], matrix.shape[1], captions_of_image)
    return candidate_ranks(matrix, texts_of_image)


def image_ranks(scores_t2i: ArrayLike, captions_of_image: Sequence[Sequence[int]]) -> Ranks:
    """Returns, for each text, where its image stands; `scores_t2i` is (texts, images).

    Raises:
        DataError: see `retrieval`.
    """
    matrix = score_matrix(scores_t2i, "scores_t2i (texts, images)")
    _, images_of_text = _pairing(matrix.shape[1], matrix.shape[0], captions_of_image)
    return candidate_ranks(matrix, images_of_text)


def score_matrix(scores: ArrayLike, name: str) -> NDArray[np.floating]:
    """Scores as an array.

    Raises:
        DataError: they are no matrix, or one of them is NaN; calls them `name`.
    """
    matrix = np.asarray(scores)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise DataError(f"{name} must be a matrix that is not empty; its shape is {matrix.shape}")
    if not np.issubdtype(matrix.dtype, np.floating):
        matrix = matrix.astype(np.float64)
    bad = int(np.isnan(matrix).sum())
    if bad:
        raise DataError(f"{bad} of {matrix.size} {name} are NaN; the model's outputs are damaged")
    return matrix


def _pairing(
    num_images: int, num_texts: int, captions_of_image: Sequence[Sequence[int]]
) -> tuple[_Rows, _Rows]:
    """Returns the texts of each image and the images of each text."""
    if len(captions_of_image) != num_images:
        raise DataError(
            f"captions_of_image lists {len(captions_of_image)} images, the scores have {num_images}"
        )
    texts_of_image = [np.unique(np.asarray(texts, dtype=np.int64)) for texts in captions_of_image]
    images_of_text: list[list[int]] = [[] for _ in range(num_texts)]
    for image, texts in enumerate(texts_of_image):
        if not len(texts):
            raise DataError(f"image {image} has no caption; leave it out of the scores")
        if texts[0] < 0 or texts[-1] >= num_texts:
            wrong = texts[0] if texts[0] < 0 else texts[-1]
            raise DataError(f"image {image} names text {wrong}; there are {num_texts} texts")
        for text in texts.tolist():
            images_of_text[text].append(image)
    for text, images in enumerate(images_of_text):
        if not images:
            raise DataError(f"text {text} belongs to no image of captions_of_image")
    return texts_of_image, [np.array(images, dtype=np.int64) for images in images_of_text]


def candidate_ranks(matrix: NDArray[np.floating], right: _Rows) -> Ranks:
    """Returns the ranks of queries (rows) whose right candidates (columns) are `right`.

    Args:
        matrix: from `score_matrix`.
        right: int64, at least one for each query.
    """
    above = np.empty(len(right), dtype=np.int64)
    tied, tied_right = np.empty_like(above), np.empty_like(above)
    best = np.empty(len(right), dtype=matrix.dtype)
    for start in range(0, len(right), _BLOCK):
        # A transposed matrix is read in strips: column after column would miss the cache.
        block = np.ascontiguousarray(matrix[start : start + _BLOCK])
        # Three counts a query instead of a sort: only the place of the best right one is asked for.
        for query, row in enumerate(block, start):
            own = row[right[query]]
            best[query] = own.max()
            above[query] = np.count_nonzero(row > best[query])
            tied_right[query] = np.count_nonzero(own == best[query])
            tied[query] = np.count_nonzero(row == best[query]) - tied_right[query]
    return Ranks(above=above, tied=tied, tied_right=tied_right, scored=best > -np.inf)
