"""CIDEr-D of captions (Vedantam et al. 2015), with the choices of the COCO evaluation."""

import numpy as np
from numpy.typing import NDArray

from openblip.evaluation.metrics.ngrams import MAX_ORDER, CaptionCounts, Ngrams, locate

# Standard deviation of the penalty on a difference in length, in words.
_SIGMA = 6.0

Floats = NDArray[np.float64]


def cider(captions: CaptionCounts) -> Floats:
    """Returns CIDEr-D of each image's candidate, 0 to 10; the CIDEr of a corpus is the mean.

    The weight of an n-gram is its count times log(images / images whose references hold it). The
    score is 10 times the mean, over references and orders 1 to 4, of the cosine with the
    candidate's weights cut to the reference's, times exp(-d^2 / (2 * 6^2)), d the difference in
    length. As in the COCO evaluation, document frequencies come from these references, length is
    counted in pairs of words, and one image alone scores 0 (each of its n-grams is in all images).
    """
    image = captions.image[captions.num_images :]
    similarity = np.zeros(len(image))
    for ngrams in captions.orders:
        similarity += _clipped_cosine(captions, ngrams)
    num_pairs = np.maximum(captions.length - 1, 0)
    difference = num_pairs[image] - num_pairs[captions.num_images :]
    similarity *= np.exp(-(difference**2) / (2.0 * _SIGMA**2)) / MAX_ORDER
    num_references = np.bincount(image, minlength=captions.num_images)
    total = np.bincount(image, weights=similarity, minlength=captions.num_images)
    return np.asarray(10.0 * total / num_references, np.float64)


def _clipped_cosine(captions: CaptionCounts, ngrams: Ngrams) -> Floats:
    """Returns, for each reference, the cosine with its image's candidate."""
    weight = ngrams.count * _rarity(captions, ngrams)[ngrams.ngram]
    norm = np.sqrt(np.bincount(ngrams.caption, weight**2, minlength=len(captions.image)))
    key = captions.image[ngrams.caption] * ngrams.num_ngrams + ngrams.ngram
    ours = ngrams.caption < captions.num_images
    # The candidates' keys ascend: candidate and image have the same number.
    found, place = locate(key[~ours], key[ours])
    theirs = weight[~ours][found]
    reference = ngrams.caption[~ours][found] - captions.num_images
    product = np.minimum(weight[ours][place], theirs) * theirs
    num_references = len(captions.image) - captions.num_images
    common = np.bincount(reference, product, minlength=num_references)
    scale = norm[captions.image[captions.num_images :]] * norm[captions.num_images :]
    cosine: Floats = np.divide(common, scale, out=np.zeros(num_references), where=scale > 0.0)
    return cosine


def _rarity(captions: CaptionCounts, ngrams: Ngrams) -> Floats:
    """Returns log(images / images whose references hold it) per n-gram; unseen counts as 1."""
    theirs = ngrams.caption >= captions.num_images
    image = captions.image[ngrams.caption[theirs]]
    keys = np.unique(image * ngrams.num_ngrams + ngrams.ngram[theirs])
    holding = np.bincount(keys % max(ngrams.num_ngrams, 1), minlength=ngrams.num_ngrams)
    rarity: Floats = np.log(captions.num_images) - np.log(np.maximum(holding, 1))
    return rarity
