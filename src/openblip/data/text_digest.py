"""A digest of texts: whether what a run learns from is what it was."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_SIZE = 8


class TextDigest:
    """Grows with texts and their rows; how many of them come at once makes no difference."""

    def __init__(self) -> None:
        self._rows = hashlib.blake2b(digest_size=_SIZE)
        self._texts = hashlib.blake2b(digest_size=_SIZE)

    def add(self, rows: NDArray[np.int64], texts: Iterable[str]) -> None:
        """Counts texts in.

        Args:
            rows: of each text, int64 (texts,).
            texts: as they are stored.
        """
        self._rows.update(rows.astype("<i8").tobytes())
        self._texts.update("\0".join([*texts, ""]).encode())

    def digest(self) -> bytes:
        """Equal for the same texts in the same rows and order, on every machine."""
        return self._rows.digest() + self._texts.digest()
