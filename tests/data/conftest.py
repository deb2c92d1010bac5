"""Small images and tables that the tests of the data package share."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openblip.data.table import PairRow, PairTable


def _jpeg(seed: int, width: int = 24, height: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    """Makes a small JPEG file of noise that its seed decides."""
    return _jpeg


@pytest.fixture(scope="session")
def pair_rows() -> Callable[..., list[PairRow]]:
    """Makes rows `r0`, `r1`, ... with one image and two captions each."""

    def make(count: int, **changes: object) -> list[PairRow]:
        return [
            PairRow(
                id=f"r{number}",
                image=_jpeg(number),
                width=24,
                height=16,
                captions=[f"picture number {number}", f"this is {number}"],
                **changes,
            )
            for number in range(count)
        ]

    return make


@pytest.fixture
def table(tmp_path: Path, pair_rows: Callable[..., list[PairRow]]) -> PairTable:
    """A table of 20 rows of origin web."""
    return PairTable.create(tmp_path / "pairs.lance", pair_rows(20))
