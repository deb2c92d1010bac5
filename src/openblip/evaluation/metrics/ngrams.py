"""Counts of the n-grams of all captions of an evaluation, shared by BLEU and CIDEr."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openblip.errors import DataError

MAX_ORDER = 4

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Ngrams:
    """The n-grams of one order: one entry per caption and distinct n-gram."""

    caption: Ints
    """Number of the caption, ascending."""

    ngram: Ints
    """Number of the n-gram, below `num_ngrams`: equal words, equal number."""

    count: Ints
    """How often the caption holds it."""

    num_ngrams: int


@dataclass(frozen=True, kw_only=True)
class CaptionCounts:
    """Candidates and references of all images; the first `num_images` captions are candidates."""

    num_images: int

    image: Ints
    """Number of the image of each caption."""

    length: Ints
    """Words of each caption."""

    orders: tuple[Ngrams, ...]
    """N-grams of 1 to `MAX_ORDER` words."""


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


def _count(captions: Sequence[Sequence[str]], length: Ints) -> tuple[Ngrams, ...]:
    number: dict[str, int] = {}
    words = np.array(
        [number.setdefault(word, len(number)) for caption in captions for word in caption],
        dtype=np.int64,
    )
    caption = np.repeat(np.arange(len(captions)), length)
    start, ngram, num_ngrams = np.arange(len(words)), words, len(number)
    orders = [_entries(caption, ngram, num_ngrams)]
    for order in range(2, MAX_ORDER + 1):
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


def _entries(caption: Ints, ngram: Ints, num_ngrams: int) -> Ngrams:
    keys, count = np.unique(caption * max(num_ngrams, 1) + ngram, return_counts=True)
    owner, kind = np.divmod(keys, max(num_ngrams, 1))
    return Ngrams(caption=owner, ngram=kind, count=count, num_ngrams=num_ngrams)


def locate(keys: Ints, sorted_keys: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Returns which keys occur in `sorted_keys`, and the places of those that do."""
    place = np.searchsorted(sorted_keys, keys)
    found = place < len(sorted_keys)
    found[found] = sorted_keys[place[found]] == keys[found]
    return found, place[found]
