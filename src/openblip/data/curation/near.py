"""Pairs of 64-bit hashes that differ in few bits, found without comparing all with all."""

import math
from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from openblip.data.curation.image_hash import HASH_BITS

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]
# A comparison costs about as much as an eighth of sorting one hash in.
_SORTING = 8
_MOST_EQUAL = 5


def near_pairs(left: Hashes, right: Hashes | None, radius: int) -> Numbers:
    """Places (pairs, 2) of all hashes at most `radius` bits apart, ascending; exact.

    Multi-index hashing (Norouzi, Punjani, Fleet, 2012): of radius + k bands of bits two near
    hashes share at least k, so only hashes that are equal in some k bands are compared. k is
    chosen by the expected number of comparisons. Memory is that of a few copies of the hashes,
    and of the pairs found.

    Args:
        left: hashes, best distinct: equal ones are pairs too.
        right: hashes they are compared with; None for `left` itself, where each pair comes once,
            the lower place first.
        radius: bits, 0 to 16.
    """
    within = right is None
    other = left if right is None else right
    if not left.size or not other.size:
        return np.empty((0, 2), dtype=np.int64)
    width = len(other)
    found = np.empty(0, dtype=np.int64)
    for mask in _masks(len(left), width, radius):
        parts = [found]
        for first, second in _equal_under(mask, left, other, within, radius):
            if within:
                first, second = np.minimum(first, second), np.maximum(first, second)
            parts.append(first * width + second)
        found = np.unique(np.concatenate(parts))
    return np.stack(np.divmod(found, width), axis=1)


def _masks(num_left: int, num_right: int, radius: int) -> list[np.uint64]:
    """Which bits must be equal, once for each choice of k bands."""

    def cost(k: int) -> float:
        bits = HASH_BITS * k / (radius + k)
        each = _SORTING * (num_left + num_right) + num_left * num_right / 2**bits
        return math.comb(radius + k, k) * each

    k = min(range(1, _MOST_EQUAL + 1), key=cost)
    edges = np.linspace(0, HASH_BITS, radius + k + 1).astype(int).tolist()
    bands = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(bands, k)]


def _equal_under(
    mask: np.uint64, left: Hashes, right: Hashes, within: bool, radius: int
) -> Iterator[tuple[Numbers, Numbers]]:
    """Places of pairs that are equal in the bits of the mask, and near."""
    order = np.argsort(right & mask, kind="stable")
    ordered = right[order]
    keys = ordered & mask
    if within:
        asking, low = order, np.arange(1, len(order) + 1)
    else:
        asking = np.argsort(left & mask, kind="stable")
        low = np.searchsorted(keys, left[asking] & mask, side="left")
    hashes = left[asking]
    high = np.searchsorted(keys, hashes & mask, side="right")
    step = 0
    rows = np.flatnonzero(low < high)
    # One step compares each hash with the next one of its bucket: as much memory as hashes.
    while rows.size:
        places = low[rows] + step
        near = np.bitwise_count(hashes[rows] ^ ordered[places]) <= radius
        yield asking[rows[near]], order[places[near]]
        step += 1
        rows = rows[low[rows] + step < high[rows]]
