"""The search for near hashes finds exactly what comparing all with all finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openblip.curation.nearness import near_pairs


def brute(left: np.ndarray, right: np.ndarray, radius: int) -> set[tuple[int, int]]:
    near = np.bitwise_count(left[:, None] ^ right[None]) <= radius
    return {(int(i), int(j)) for i, j in np.argwhere(near)}


def clustered(seed: int, count: int) -> np.ndarray:
    """Hashes of which many are few bits from another."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 1 << 64, size=max(count // 4, 1), dtype=np.uint64)
    hashes = rng.choice(centres, count)
    for _ in range(6):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64))
    return hashes


@given(st.integers(0, 1000), st.integers(0, 60), st.integers(0, 16))
def test_pairs_within_one_set(seed: int, count: int, radius: int) -> None:
    hashes = clustered(seed, count) if count else np.zeros(0, np.uint64)
    expected = {(i, j) for i, j in brute(hashes, hashes, radius) if i < j}
    assert {tuple(pair) for pair in near_pairs(hashes, None, radius).tolist()} == expected


@pytest.mark.parametrize("radius", [0, 1, 4, 6, 8, 16])
def test_pairs_between_two_sets(radius: int) -> None:
    hashes = clustered(1, 700)
    left, right = hashes[:300], hashes[300:]
    assert {tuple(p) for p in near_pairs(left, right, radius).tolist()} == brute(
        left, right, radius
    )
