"""Identifiers of rows: a set that stays small for a hundred million, and names of files."""

import hashlib
import re
from bisect import bisect_left

import numpy as np

_RECENT = 1 << 16
# Without a dot: in a tar shard the key of a sample ends there.
_SAFE_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")


class IdSet:
    """Remembers strings by a 64-bit hash: 8 bytes for each, plus a buffer of recent ones.

    Hashes that have left the buffer lie in a few sorted arrays, merged when two have about the
    same length, so that adding costs O(log n) amortised. Two of 100 million different strings
    share a hash with a probability of about 0.0003; one of them would then count as known.
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._recent) + sum(len(part) for part in self._sorted)

    def __contains__(self, text: str) -> bool:
        return self._has(_hash(text))

    def add(self, text: str) -> bool:
        """Whether `text` was not known before; it is known afterwards."""
        value = _hash(text)
        if self._has(value):
            return False
        self._recent.add(value)
        if len(self._recent) >= _RECENT:
            self._settle()
        return True

    def _has(self, value: int) -> bool:
        if value in self._recent:
            return True
        for part in self._sorted:
            place = bisect_left(part, value)
            if place < len(part) and part[place] == value:
                return True
        return False

    def _settle(self) -> None:
        fresh = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
        fresh.sort()
        self._recent.clear()
        while self._sorted and len(self._sorted[-1]) <= 2 * len(fresh):
            fresh = np.concatenate([self._sorted.pop(), fresh])
            fresh.sort(kind="stable")
        self._sorted.append(fresh)


def file_key(row_id: str) -> str:
    """A name for files of a row: its id, or the SHA-256 of an id that is unsafe as a name."""
    if _SAFE_KEY.fullmatch(row_id):
        return row_id
    return hashlib.sha256(row_id.encode("utf-8", "surrogatepass")).hexdigest()


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
