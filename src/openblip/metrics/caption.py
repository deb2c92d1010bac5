"""The caption metrics of the COCO evaluation, from texts to numbers.

BLEU (Papineni et al. 2002, with the closest reference length), ROUGE-L (Lin 2004) and CIDEr-D
(Vedantam et al. 2015), each with the choices of the COCO evaluation. BLEU and CIDEr share the
counts of the n-grams of all captions.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from openblip.metrics.caption_tokens import caption_tokens
from openblip.runtime.errors import DataError

# A mapping is invariant in its keys: without this {str: ...} would not be accepted.
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores per image, in the order of the candidates."""

    bleu_statistics: NDArray[np.int64]
    """Rows that `bleu` sums: BLEU is no mean over images."""

    rouge_l: NDArray[np.float64]
    """0 to 1."""

    cider: NDArray[np.float64]
    """0 to 10."""

    def summary(self) -> dict[str, float]:
        """Returns BLEU-1 to BLEU-4, ROUGE-L and CIDEr of the corpus."""
        result = {f"BLEU-{n}": score for n, score in enumerate(bleu(self.bleu_statistics), 1)}
        result["ROUGE-L"] = float(self.rouge_l.mean())
        result["CIDEr"] = float(self.cider.mean())
        return result


def caption(
    candidates: Mapping[Key, str], references: Mapping[Key, Sequence[str]]
) -> dict[str, float]:
    """Returns "BLEU-1" to "BLEU-4", "ROUGE-L" and "CIDEr" of captions against human ones.

    Values are as in pycocoevalcap (`Bleu(4)`, `Rouge()`, `Cider()` after `PTBTokenizer`): BLEU and
    ROUGE-L from 0 to 1, CIDEr from 0 to 10. Papers print them times 100.

    Args:
        candidates: one caption per image id.
        references: human captions of the same images. CIDEr takes its document frequencies from
            them, so its value depends on the whole set.

    Raises:
        DataError: an id is missing on one side, or an image has no reference.
    """
    return caption_scores(candidates, references).summary()


def caption_scores(
    candidates: Mapping[Key, str], references: Mapping[Key, Sequence[str]]
) -> CaptionScores:
    """Returns the scores of each image, for intervals and comparisons; see `caption`."""
    _check(candidates, references)
    ours = [caption_tokens(text) for text in candidates.values()]
    human = [[caption_tokens(text) for text in references[key]] for key in candidates]
    counts = count_captions(
        [_words(tokens) for tokens in ours],
        [[_words(tokens) for tokens in texts] for texts in human],
    )
    return CaptionScores(
        bleu_statistics=bleu_statistics(counts), rouge_l=rouge_l(ours, human), cider=cider(counts)
    )


def _words(tokens: tuple[str, ...]) -> Sequence[str]:
    # N-gram counts see the words inside a token like "2 1/2"; ROUGE-L sees the token.
    return " ".join(tokens).split()


def _check(candidates: Mapping[Key, str], references: Mapping[Key, Sequence[str]]) -> None:
    if not candidates:
        raise DataError("there are no captions to evaluate")
    for ours, theirs, what in (
        (candidates, references, "reference captions"),
        (references, candidates, "candidate caption"),
    ):
        missing = [key for key in ours if key not in theirs]
        if missing:
            raise DataError(f"{len(missing)} images have no {what}, first: {missing[0]!r}")
    for key, texts in references.items():
        if isinstance(texts, str) or not texts:
            raise DataError(f"image {key!r}: references must be a list of at least one caption")


_MAX_ORDER = 4

_Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Ngrams:
    """The n-grams of one order: one entry per caption and distinct n-gram."""

    caption: _Ints
    """Number of the caption, ascending."""

    ngram: _Ints
    """Number of the n-gram, below `num_ngrams`: equal words, equal number."""

    count: _Ints
    """How often the caption holds it."""

    num_ngrams: int


@dataclass(frozen=True, kw_only=True)
class CaptionCounts:
    """Candidates and references of all images; the first `num_images` captions are candidates."""

    num_images: int

    image: _Ints
    """Number of the image of each caption."""

    length: _Ints
    """Words of each caption."""

    orders: tuple[_Ngrams, ...]
    """N-grams of 1 to `_MAX_ORDER` words."""


def count_captions(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> CaptionCounts:
    """Returns the counted n-grams of one candidate and at least one reference per image.

    Raises:
        DataError: an image has no reference, or the two lists differ in length.
    """
    if len(candidates) != len(references) or not all(references):
        raise DataError("each candidate needs a list of at least one reference")
    num_images = len(candidates)
    captions = [*candidates, *(caption for human in references for caption in human)]
    num_references = [len(human) for human in references]
    image = np.concatenate(
        [np.arange(num_images), np.repeat(np.arange(num_images), num_references)]
    )
    length = np.array([len(words) for words in captions], dtype=np.int64)
    return CaptionCounts(
        num_images=num_images, image=image, length=length, orders=_count(captions, length)
    )


def _count(captions: Sequence[Sequence[str]], length: _Ints) -> tuple[_Ngrams, ...]:
    number: dict[str, int] = {}
    words = np.array(
        [number.setdefault(word, len(number)) for caption in captions for word in caption],
        dtype=np.int64,
    )
    caption = np.repeat(np.arange(len(captions)), length)
    start, ngram, num_ngrams = np.arange(len(words)), words, len(number)
    orders = [_entries(caption, ngram, num_ngrams)]
    for order in range(2, _MAX_ORDER + 1):
        # An n-gram is the one of n - 1 words at its start, and one word more of the same caption.
        last = start + order - 1
        inside = last < len(words)
        inside[inside] = caption[last[inside]] == caption[start[inside]]
        pair = ngram[inside] * len(number) + words[last[inside]]
        start = start[inside]
        distinct, ngram = np.unique(pair, return_inverse=True)
        num_ngrams = len(distinct)
        orders.append(_entries(caption[start], ngram, num_ngrams))
    return tuple(orders)


def _entries(caption: _Ints, ngram: _Ints, num_ngrams: int) -> _Ngrams:
    # Caption and n-gram as one integer, which sorts by caption first; at least 1 where no caption
    # has an n-gram of this order, or the division below would be one by zero.
    keys, count = np.unique(caption * max(num_ngrams, 1) + ngram, return_counts=True)
    owner, kind = np.divmod(keys, max(num_ngrams, 1))
    return _Ngrams(caption=owner, ngram=kind, count=count, num_ngrams=num_ngrams)


def _locate(keys: _Ints, sorted_keys: _Ints) -> tuple[NDArray[np.bool_], _Ints]:
    """Returns which keys occur in `sorted_keys`, and the places of those that do."""
    place = np.searchsorted(sorted_keys, keys)
    found = place < len(sorted_keys)
    found[found] = sorted_keys[place[found]] == keys[found]
    return found, place[found]


# Against division by zero, in the places and sizes of the COCO evaluation.
_SMALL = 1e-9
_TINY = 1e-15


def bleu_statistics(captions: CaptionCounts) -> _Ints:
    """Returns what BLEU needs of each image, (images, 2 + 4 + 4).

    Columns: length of the candidate, length of its closest reference (the shorter one of two
    equally close), matched n-grams of order 1 to 4, n-grams of order 1 to 4. The statistics of a
    corpus are the sum of its rows, so rows may be resampled.
    """
    length = captions.length[: captions.num_images]
    orders = np.arange(_MAX_ORDER)
    return np.column_stack(
        [
            length,
            _closest_length(captions),
            *(_num_matched(captions, ngrams) for ngrams in captions.orders),
            np.maximum(length[:, None] - orders, 0),
        ]
    )


def bleu(statistics: _Ints) -> tuple[float, ...]:
    """Returns BLEU-1 to BLEU-4 of a corpus, 0 to 1.

    BLEU-n = brevity * (p_1 * ... * p_n)^(1/n); brevity = exp(1 - r/c) if c < r, else 1.

    Args:
        statistics: from `bleu_statistics`, one row per image.
    """
    length, closest, *counts = statistics.sum(axis=0).tolist()
    ratio = (length + _TINY) / (closest + _SMALL)
    brevity = math.exp(1.0 - 1.0 / ratio) if ratio < 1.0 else 1.0
    scores, product = [], 1.0
    for order in range(_MAX_ORDER):
        product *= (counts[order] + _TINY) / (counts[_MAX_ORDER + order] + _SMALL)
        scores.append(brevity * product ** (1.0 / (order + 1)))
    return tuple(scores)


def _closest_length(captions: CaptionCounts) -> _Ints:
    ours, theirs = np.split(captions.length, [captions.num_images])
    image = captions.image[captions.num_images :]
    # Nearest first, then shorter first: the first reference of each image is the closest.
    order = np.lexsort((theirs, np.abs(theirs - ours[image]), image))
    first = np.unique(image[order], return_index=True)[1]
    return theirs[order][first]


def _num_matched(captions: CaptionCounts, ngrams: _Ngrams) -> _Ints:
    """N-grams of each candidate that a reference has, each at most as often as one has it."""
    key = captions.image[ngrams.caption] * ngrams.num_ngrams + ngrams.ngram
    ours = ngrams.caption < captions.num_images
    known, place = np.unique(key[~ours], return_inverse=True)
    # The most that any one reference has: `at` because an n-gram may come from several of them.
    most = np.zeros(len(known), dtype=np.int64)
    np.maximum.at(most, place, ngrams.count[~ours])
    found, place = _locate(key[ours], known)
    matched = np.zeros(captions.num_images, dtype=np.int64)
    clipped = np.minimum(ngrams.count[ours][found], most[place])
    np.add.at(matched, ngrams.caption[ours][found], clipped)
    return matched


# Weight of recall against precision in the F measure.
_BETA = 1.2


def rouge_l(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> NDArray[np.float64]:
    """Returns ROUGE-L of each caption, 0 to 1.

    F = (1 + b^2) P R / (R + b^2 P), b = 1.2; P and R are the longest common subsequence over the
    length of the candidate and of the reference. As in the COCO evaluation, the best P and the
    best R may come from different references, and an empty caption counts as one empty word.
    """
    scores = np.zeros(len(candidates))
    for row, (candidate, human) in enumerate(zip(candidates, references, strict=True)):
        words = candidate or ("",)
        common = [(longest_common_subsequence(words, r or ("",)), len(r) or 1) for r in human]
        precision = max(length for length, _ in common) / len(words)
        recall = max(length / total for length, total in common)
        if precision and recall:
            weight = _BETA**2
            scores[row] = (1 + weight) * precision * recall / (recall + weight * precision)
    return scores


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence.

    Bit-parallel (Hyyro 2004): the bits of one integer are a row of the table of lengths, a zero
    bit where the length grows.
    """
    places: defaultdict[str, int] = defaultdict(int)
    for place, word in enumerate(first):
        places[word] |= 1 << place
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(first) - row.bit_count()


# Standard deviation of the penalty on a difference in length, in words.
_SIGMA = 6.0

_Floats = NDArray[np.float64]


def cider(captions: CaptionCounts) -> _Floats:
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
    # The COCO evaluation's length is the number of bigrams, not of words.
    num_pairs = np.maximum(captions.length - 1, 0)
    difference = num_pairs[image] - num_pairs[captions.num_images :]
    similarity *= np.exp(-(difference**2) / (2.0 * _SIGMA**2)) / _MAX_ORDER
    num_references = np.bincount(image, minlength=captions.num_images)
    total = np.bincount(image, weights=similarity, minlength=captions.num_images)
    return np.asarray(10.0 * total / num_references, np.float64)


def _clipped_cosine(captions: CaptionCounts, ngrams: _Ngrams) -> _Floats:
    """Returns, for each reference, the cosine with its image's candidate."""
    weight = ngrams.count * _rarity(captions, ngrams)[ngrams.ngram]
    norm = np.sqrt(np.bincount(ngrams.caption, weight**2, minlength=len(captions.image)))
    key = captions.image[ngrams.caption] * ngrams.num_ngrams + ngrams.ngram
    ours = ngrams.caption < captions.num_images
    # The candidates' keys ascend: candidate and image have the same number.
    found, place = _locate(key[~ours], key[ours])
    theirs = weight[~ours][found]
    reference = ngrams.caption[~ours][found] - captions.num_images
    # Cut to the reference's weight, a word earns nothing more for being repeated. The norms below
    # are of the whole weights, as in the COCO evaluation: what is repeated in vain costs.
    product = np.minimum(weight[ours][place], theirs) * theirs
    num_references = len(captions.image) - captions.num_images
    common = np.bincount(reference, product, minlength=num_references)
    scale = norm[captions.image[captions.num_images :]] * norm[captions.num_images :]
    cosine: _Floats = np.divide(common, scale, out=np.zeros(num_references), where=scale > 0.0)
    return cosine


def _rarity(captions: CaptionCounts, ngrams: _Ngrams) -> _Floats:
    """Returns log(images / images whose references hold it) per n-gram; unseen counts as 1."""
    theirs = ngrams.caption >= captions.num_images
    image = captions.image[ngrams.caption[theirs]]
    keys = np.unique(image * ngrams.num_ngrams + ngrams.ngram[theirs])
    # An image counts once, however many of its references hold the n-gram.
    holding = np.bincount(keys % max(ngrams.num_ngrams, 1), minlength=ngrams.num_ngrams)
    rarity: _Floats = np.log(captions.num_images) - np.log(np.maximum(holding, 1))
    return rarity
