"""Short videos, written without loss, so that a frame tells its number."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest


def write_clip(path: Path, frames: Sequence[np.ndarray]) -> None:
    """A video of uint8 frames (height, width, 3); lossless in `.mkv`, MPEG-4 otherwise."""
    av = pytest.importorskip("av", reason="PyAV is not installed (extra video)")
    is_lossless = path.suffix == ".mkv"
    height, width, _ = frames[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1" if is_lossless else "mpeg4", rate=10)
        stream.width, stream.height = width, height
        stream.pix_fmt = "bgr0" if is_lossless else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def numbered_frames(count: int, height: int = 24, width: int = 32) -> list[np.ndarray]:
    """Frames whose grey is their number."""
    return [np.full((height, width, 3), number, np.uint8) for number in range(count)]


def write_noise(path: Path, number: int) -> None:
    """A video of coloured noise, as long as its number says."""
    generator = np.random.default_rng(number)
    write_clip(path, list(generator.integers(0, 256, (2 + 3 * number, 24, 32, 3), np.uint8)))
