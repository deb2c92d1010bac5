"""A decoder in a process of its own: the same images, and its death is one image's error."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from openblip.runtime.errors import DataError
from openblip.sources.images import open_image
from openblip.sources.row_images import GuardedDecoder
from openblip.world import WorldConfig, build_world

CRASHING = Path(__file__).parents[1] / "capfilt" / "crashing_decoder"


@pytest.fixture
def decoder() -> Iterator[GuardedDecoder]:
    with GuardedDecoder() as made:
        yield made


def picture() -> bytes:
    config = WorldConfig(seed=1, web_rows=1, human_rows=1, val_rows=1, test_rows=1)
    return next(iter(build_world(config))).image or b""


def test_images_and_errors_are_those_of_open_image(decoder: GuardedDecoder) -> None:
    assert decoder.open(picture(), "row 'a'").tobytes() == open_image(picture()).tobytes()
    with pytest.raises(DataError) as theirs:
        open_image(b"nothing", "row 'b'")
    with pytest.raises(DataError) as ours:
        decoder.open(b"nothing", "row 'b'")
    assert str(ours.value) == str(theirs.value)


def test_the_death_of_the_process_is_the_error_of_one_image(
    decoder: GuardedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CRASHING), prepend=os.pathsep)
    with pytest.raises(DataError, match=r"row 'c': its decoder died \(SIGSEGV\)"):
        decoder.open(b"SEGFAULT", "row 'c'")
    assert decoder.open(picture(), "row 'd'").size == open_image(picture()).size


def test_a_process_that_was_killed_is_replaced(decoder: GuardedDecoder) -> None:
    decoder.open(picture(), "row 'e'")
    assert decoder._process is not None
    os.kill(decoder._process.pid, signal.SIGKILL)
    decoder._process.wait()
    with pytest.raises(DataError, match="SIGKILL"):
        decoder.open(picture(), "row 'f'")
    decoder.open(picture(), "row 'f'")
