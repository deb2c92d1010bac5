"""The cache of hidden states is bounded, shared, and survives its processes."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from openblip.index.states import StateCache, default_folder, parse_size
from openblip.runtime.errors import RecipeError

STATES = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) * 3


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.states"))


def test_what_was_stored_comes_back(tmp_path: Path) -> None:
    cache = StateCache(tmp_path, 10**6, "model-32")
    assert cache.load("ab") is None
    assert cache.store({"ab": STATES}) == 1
    found = cache.load("ab")
    assert found is not None
    assert torch.allclose(found, STATES, rtol=1e-3, atol=1e-3)
    assert StateCache(tmp_path, 10**6, "another-32").load("ab") is None
    small = StateCache(tmp_path, 10**6, "model-32", "int8")
    small.store({"ab": STATES})
    rounded = small.load("ab")
    assert rounded is not None
    assert (rounded - STATES).abs().max() <= STATES.abs().max() / 127
    assert torch.isfinite(_stored(cache, torch.full((2, 3), 1e9))).all()


def test_a_large_channel_costs_only_its_neighbours_their_precision(tmp_path: Path) -> None:
    states = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    states[:, 40] = 1000.0
    kept = _stored(StateCache(tmp_path, 10**6, "m", "int8"), states)
    away = torch.cat([torch.arange(32), torch.arange(64, 96)])
    assert (kept - states)[:, away].abs().max() <= states[:, away].abs().max() / 250
    assert (kept - states)[:, 40].abs().max() <= 1000 / 250


@pytest.mark.parametrize("width", [1, 3, 48, 768])
def test_8_bits_of_any_width_and_of_nothing(tmp_path: Path, width: int) -> None:
    cache = StateCache(tmp_path, 10**6, "m", "int8")
    states = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    assert (_stored(cache, states) - states).abs().max() <= states.abs().max() / 127
    assert torch.equal(_stored(cache, torch.zeros(4, width)), torch.zeros(4, width))
    assert _stored(cache, torch.zeros(0, width)).shape == (0, width)


def _stored(cache: StateCache, states: torch.Tensor) -> torch.Tensor:
    cache.store({"x": states})
    found = cache.load("x")
    assert found is not None
    return found


def test_it_stays_below_its_bound_and_what_was_used_last_stays(tmp_path: Path) -> None:
    StateCache(tmp_path, 10**6, "m").store({"0": STATES})
    one = size_of(tmp_path)
    cache = StateCache(tmp_path, 3 * one, "m")
    for number in (1, 2):
        cache.store({str(number): STATES})
    for path in tmp_path.rglob("*.states"):
        os.utime(path, (1, 1))
    assert cache.load("0") is not None
    cache.store({"3": STATES, "4": STATES})
    assert size_of(tmp_path) == 3 * one
    assert [cache.load(str(n)) is not None for n in range(5)] == [True, False, False, True, True]
    assert StateCache(tmp_path, one - 1, "m").store({"5": STATES}) == 0
    assert StateCache(tmp_path / "none", 0, "m").store({"5": STATES}) == 0
    assert not (tmp_path / "none").exists()


def test_what_is_damaged_is_computed_again(tmp_path: Path) -> None:
    cache = StateCache(tmp_path, 10**6, "m")
    cache.store({"a": STATES})
    (path,) = tmp_path.rglob("*.states")
    path.write_bytes(path.read_bytes()[:40])
    assert cache.load("a") is None
    assert not path.exists()


def test_files_of_a_dead_process_go(tmp_path: Path) -> None:
    cache = StateCache(tmp_path, 10**6, "m")
    cache.store({"a": STATES})
    left = tmp_path / "m-float16" / ".b.states.1-1.unfinished"
    left.write_bytes(b"x" * 1000)
    os.utime(left, (1, 1))
    cache.store({"c": STATES})
    assert not left.exists()


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = StateCache(tmp_path / "file" / "x", 10**6, "m")
    assert cache.store({"a": STATES}) == 0
    assert cache.load("a") is None


SCRIPT = """
import sys, pathlib, torch, itertools
from openblip.index.states import StateCache
cache = StateCache(pathlib.Path(sys.argv[1]), int(sys.argv[2]), "m")
states = torch.ones(5, 16)
print("begins", flush=True)
for number in itertools.count():
    cache.store({f"{sys.argv[3]}-{number % 40}": states * (number % 40)})
    found = cache.load(f"{sys.argv[3]}-{(number * 7) % 40}")
    assert found is None or bool((found == (number * 7) % 40).all())
"""


def test_two_processes_and_a_kill(tmp_path: Path) -> None:
    most = 5000
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path), str(most), name], stdout=subprocess.PIPE
        )
        for name in "ab"
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        for _ in range(40):
            time.sleep(0.02)
            assert sum(_sizes(tmp_path)) <= most
        assert [process.poll() for process in processes] == [None, None]
    finally:
        for process in processes:
            with process:
                process.send_signal(signal.SIGKILL)
    cache = StateCache(tmp_path, most, "m")
    assert cache.store({"mine": torch.ones(5, 16)}) == 1
    assert cache.load("mine") is not None


def _sizes(folder: Path) -> list[int]:
    """A listing may name files that have gone since; those are looked at again."""
    found = []
    for path in [path for path in folder.rglob("*.states") if path.exists()]:
        with suppress(FileNotFoundError):
            found.append(path.stat().st_size)
    return found


def test_sizes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [parse_size(t) for t in ("2GB", "500 mb", "0", "1.5k")] == [
        2 * 10**9,
        5 * 10**8,
        0,
        1500,
    ]
    for bad in ("much", "-1", "2 GiB", ""):
        with pytest.raises(RecipeError, match="is none"):
            parse_size(bad)
    monkeypatch.setenv("OPENBLIP_CACHE", "/x")
    assert default_folder() == Path("/x/states")
