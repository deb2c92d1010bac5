"""Shuffling without a shuffled list: a keyed permutation, and the keyed hashes below it.

Rows that come less often than others are drawn in the same way: `Thinning` computes which.
"""

import hashlib
import math
from typing import overload

import numpy as np

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# Three rounds make a permutation that nobody can tell from a random one (Luby and Rackoff, 1988),
# but only where the halves are large. Ours have a few bits: of 12 rows, the distance at which two
# neighbours end up is 37 times as uneven as chance after three rounds, 7 times after four, 4 after
# five, and as even as chance from six on. Two more are the margin, a round for each half; a round
# costs nanoseconds, and changing their number would change the order of every run.
_NUM_ROUNDS = 8
# Weights are kept as so many parts of 1, and sums of them are exact.
_UNITS = 1 << 16
# 2^32 divided by the golden ratio: of all steps around a circle this one spreads its points best.
_GOLDEN, _CIRCLE = np.uint64(2654435769), np.uint64(1 << 32)
# Rows whose sums are kept: a finer division would take more memory, a coarser one more time.
_BLOCK = 256
_CHUNK = 1 << 20


def keyed_hash(*parts: int) -> int:
    """64 well-mixed bits (0 to 2^64 - 1) of a sequence of integers; the same for ever.

    Each part is folded in by one step of SplitMix64 (Steele et al., 2014).
    """
    state = len(parts)
    for part in parts:
        state = _mix((state * _FIRST + part + _STEP) & _MASK)
    return state


def named_seed(seed: int, name: str) -> int:
    """An item's own seed, 63 bits: a hash of a job's seed and the item's name; the same for ever.

    Args:
        seed: of the job.
        name: a row's id, or a file's path within what the job was given. What decides is the
            name alone: not its place, nor which other items there are.
    """
    text = f"{seed}/{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


class KeyedPermutation:
    """A bijection of 0 .. size - 1 that is computed, not stored: O(1) memory at any size.

    A Feistel network on pairs (left, right) of the smallest nearly square grid that holds
    `size` places, followed along its cycle until the place lies below `size` (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002). Fewer than 2 / sqrt(size) of the places lie
    outside, so that walking is rare. The mapping depends on (size, key) alone and is pinned by
    a test: a run that resumes years later meets the same samples.
    """

    def __init__(self, size: int, key: int) -> None:
        """Prepares the round keys.

        Args:
            size: number of indices; at least 1, below 2^62.
            key: any integer; different keys give unrelated orders.
        """
        if not 1 <= size < 1 << 62:
            raise ValueError(f"size must be from 1 to 2^62 - 1. Got {size}.")
        self.size = size
        self._left = math.isqrt(size - 1) + 1
        self._right = -(-size // self._left)
        self._round_keys = [keyed_hash(key, size, number) for number in range(_NUM_ROUNDS)]

    @overload
    def __call__(self, index: int) -> int: ...

    @overload
    def __call__(self, index: np.ndarray) -> np.ndarray: ...

    def __call__(self, index: int | np.ndarray) -> int | np.ndarray:
        """The place of `index`, or int64 places of an array of indices of any shape.

        Raises:
            IndexError: an index is outside 0 .. size - 1.
        """
        indices = np.atleast_1d(np.asarray(index, dtype=np.int64))
        if indices.size and (indices.min() < 0 or indices.max() >= self.size):
            raise IndexError(f"an index is outside 0 .. {self.size - 1}")
        places = self._encrypt(indices.astype(np.uint64).ravel())
        outside = np.flatnonzero(places >= self.size)
        while outside.size:
            places[outside] = self._encrypt(places[outside])
            outside = outside[places[outside] >= self.size]
        result = places.astype(np.int64).reshape(indices.shape)
        return int(result[0]) if np.ndim(index) == 0 else result

    def _encrypt(self, places: np.ndarray) -> np.ndarray:
        height, width = np.uint64(self._left), np.uint64(self._right)
        left: np.ndarray = places // width
        right: np.ndarray = places % width
        for number, round_key in enumerate(self._round_keys):
            # Each half is shifted by a function of the other, which the inverse can undo.
            if number % 2 == 0:
                left = (left + _mix_array(right, round_key) % height) % height
            else:
                right = (right + _mix_array(left, round_key) % width) % width
        mixed: np.ndarray = left * width + right
        return mixed


def _mix(state: int) -> int:
    state = ((state ^ (state >> 30)) * _FIRST) & _MASK
    state = ((state ^ (state >> 27)) * _SECOND) & _MASK
    return state ^ (state >> 31)


def _mix_array(values: np.ndarray, key: int) -> np.ndarray:
    """SplitMix64 of `values` and a round key; arithmetic modulo 2^64, as arrays of uint64 do."""
    state = values * np.uint64(_STEP) + np.uint64(key)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed


def thinned_size(weights: np.ndarray) -> int:
    """Rows that a `Thinning` shows in a pass: the sum of their weights, rounded down, at least 1.

    Args:
        weights: above 0 and at most 1, (rows,).
    """
    parts = range(0, len(weights), _CHUNK)
    total = sum(int(_units(weights[at : at + _CHUNK]).sum()) for at in parts)
    return max(1, total // _UNITS)


class Thinning:
    """Which rows come in a pass, each in as many passes as its weight says; 2 bytes a row.

    Systematic sampling (Madow and Madow, 1944): the rows lie on a line in a keyed order, each as
    long as its weight, and a pass shows those that evenly spaced points fall upon. All passes have
    the same number of points, and none has a row twice. From pass to pass the points move on by
    the golden ratio of their distance, so that after any number of passes a row has come as often
    as its weight says, give or take two or three times.

    Attributes:
        size: rows in a pass.
    """

    def __init__(self, weights: np.ndarray, key: int) -> None:
        """Lays the rows out.

        Args:
            weights: above 0 and at most 1, (rows,); taken as multiples of 2^-16.
            key: decides the order on the line, and which rows the first pass shows.
        """
        count = len(weights)
        self._order = KeyedPermutation(count, key)
        self._first = np.uint64(keyed_hash(key, count) % int(_CIRCLE))
        # Less 1, so that a weight of 1 fits 16 bits; a whole number of blocks, the rest is unused.
        self._less_one = np.zeros((-(-count // _BLOCK), _BLOCK), dtype=np.uint16)
        flat = self._less_one.reshape(-1)
        for at in range(0, count, _CHUNK):
            places = self._order(np.arange(at, min(at + _CHUNK, count)))
            flat[at : at + len(places)] = _units(weights[places]) - 1
        lengths = self._less_one.sum(axis=1, dtype=np.int64) + _BLOCK
        unused = flat.size - count
        self._total = int(lengths.sum()) - unused
        self._begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.size = max(1, self._total // _UNITS)

    def __call__(self, turns: np.ndarray, passes: np.ndarray) -> np.ndarray:
        """The rows that stand at turns (0 to `size` - 1) of passes, all int64 (turns,)."""
        distance, rest = divmod(self._total, self.size)
        # Whole numbers only: a float would lose the place on a long line.
        moved = (passes.astype(np.uint64) * _GOLDEN + self._first) % _CIRCLE
        offsets = (moved * np.uint64(distance) // _CIRCLE).astype(np.int64)
        points = turns * distance + turns * rest // self.size + offsets
        rows = np.empty(len(points), dtype=np.int64)
        for at in range(0, len(points), 4096):
            rows[at : at + 4096] = self._at(points[at : at + 4096])
        return rows

    def _at(self, points: np.ndarray) -> np.ndarray:
        """The rows at points of the line."""
        blocks = np.searchsorted(self._begins, points, side="right") - 1
        ends = (self._less_one[blocks] + np.int64(1)).cumsum(axis=1)
        within = points - self._begins[blocks]
        places: np.ndarray = self._order(blocks * _BLOCK + (ends <= within[:, None]).sum(axis=1))
        return places


def _units(weights: np.ndarray) -> np.ndarray:
    """Weights in units of 2^-16, at least 1 of them; int64."""
    units: np.ndarray = np.rint(weights * np.float64(_UNITS)).astype(np.int64).clip(1, _UNITS)
    return units


def shuffled(examples: int, seed: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `examples` stand at places `first` and on of an endless order, and their epochs.

    Every epoch is a permutation of its own; both arrays are int64 (count,).
    """
    places = np.arange(first, first + count)
    epochs = places // examples
    numbers = np.empty(count, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        own = epochs == epoch
        order = KeyedPermutation(examples, keyed_hash(seed, epoch))
        numbers[own] = order(places[own] - epoch * examples)
    return numbers, epochs
