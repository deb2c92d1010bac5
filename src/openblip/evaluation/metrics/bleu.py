"""BLEU over a corpus of captions (Papineni et al. 2002, with the closest reference length)."""

import math

import numpy as np

from openblip.evaluation.metrics.ngrams import MAX_ORDER, CaptionCounts, Ints, Ngrams, locate

# Against division by zero, in the places and sizes of the COCO evaluation.
_SMALL = 1e-9
_TINY = 1e-15


def bleu_statistics(captions: CaptionCounts) -> Ints:
    """Returns what BLEU needs of each image, (images, 2 + 4 + 4).

    Columns: length of the candidate, length of its closest reference (the shorter one of two
    equally close), matched n-grams of order 1 to 4, n-grams of order 1 to 4. The statistics of a
    corpus are the sum of its rows, so rows may be resampled.
    """
    length = captions.length[: captions.num_images]
    orders = np.arange(MAX_ORDER)
    return np.column_stack(
        [
            length,
            _closest_length(captions),
            *(_num_matched(captions, ngrams) for ngrams in captions.orders),
            np.maximum(length[:, None] - orders, 0),
        ]
    )


def bleu(statistics: Ints) -> tuple[float, ...]:
    """Returns BLEU-1 to BLEU-4 of a corpus, 0 to 1.

    BLEU-n = brevity * (p_1 * ... * p_n)^(1/n); brevity = exp(1 - r/c) if c < r, else 1.

    Args:
        statistics: from `bleu_statistics`, one row per image.
    """
    length, closest, *counts = statistics.sum(axis=0).tolist()
    ratio = (length + _TINY) / (closest + _SMALL)
    brevity = math.exp(1.0 - 1.0 / ratio) if ratio < 1.0 else 1.0
    scores, product = [], 1.0
    for order in range(MAX_ORDER):
        product *= (counts[order] + _TINY) / (counts[MAX_ORDER + order] + _SMALL)
        scores.append(brevity * product ** (1.0 / (order + 1)))
    return tuple(scores)


def _closest_length(captions: CaptionCounts) -> Ints:
    ours, theirs = np.split(captions.length, [captions.num_images])
    image = captions.image[captions.num_images :]
    # Nearest first, then shorter first: the first reference of each image is the closest.
    order = np.lexsort((theirs, np.abs(theirs - ours[image]), image))
    first = np.unique(image[order], return_index=True)[1]
    return theirs[order][first]


def _num_matched(captions: CaptionCounts, ngrams: Ngrams) -> Ints:
    """N-grams of each candidate that a reference has, each at most as often as one has it."""
    key = captions.image[ngrams.caption] * ngrams.num_ngrams + ngrams.ngram
    ours = ngrams.caption < captions.num_images
    known, place = np.unique(key[~ours], return_inverse=True)
    most = np.zeros(len(known), dtype=np.int64)
    np.maximum.at(most, place, ngrams.count[~ours])
    found, place = locate(key[ours], known)
    matched = np.zeros(captions.num_images, dtype=np.int64)
    clipped = np.minimum(ngrams.count[ours][found], most[place])
    np.add.at(matched, ngrams.caption[ours][found], clipped)
    return matched
