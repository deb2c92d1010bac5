"""OpenMP's threads sleep while they wait for long, unless the user wants it otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openblip.runtime.threads import (
    default_threads,
    spin_briefly,
    threads_for,
    wait_without_spinning,
)

NAMES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
SEEN = (
    "import atexit, os, sys\n"
    f"atexit.register(lambda: print([os.environ.get(name) for name in {NAMES!r}]))\n"
    "from openblip.cli import main\n"
    "assert 'torch' not in sys.modules\n"
    "main(['--version'])\n"
)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, ["5000", "0", None]),
        ({"GOMP_SPINCOUNT": "0"}, ["0", None, None]),
        ({"GOMP_SPINCOUNT": "1000"}, ["1000", None, None]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, [None, None, "ACTIVE"]),
    ],
)
def test_the_command_sets_it_before_pytorch_is_loaded_and_the_user_wins(
    wish: dict[str, str], expected: list[str | None]
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", SEEN],
        env={**environment, **wish},
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == str(expected)


@pytest.mark.parametrize(
    ("wish", "alone", "beside_others"),
    [
        ({}, "5000", "0"),
        ({"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}, "0", "0"),
        ({"GOMP_SPINCOUNT": "300000"}, "300000", "300000"),
    ],
    ids=["by default", "a process of ours that sleeps", "as the user says"],
)
def test_processes_that_share_a_machine_do_not_spin_whatever_the_command_does(
    monkeypatch: pytest.MonkeyPatch, wish: dict[str, str], alone: str, beside_others: str
) -> None:
    for name in NAMES:
        # Set first, so that what is set here is gone afterwards.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in wish.items():
        monkeypatch.setenv(name, value)
    assert spin_briefly()["GOMP_SPINCOUNT"] == alone == os.environ["GOMP_SPINCOUNT"]
    told = wait_without_spinning()
    assert told["GOMP_SPINCOUNT"] == beside_others == os.environ["GOMP_SPINCOUNT"]
    assert spin_briefly() == told


@pytest.mark.parametrize(("multiply_adds", "expected"), [(31_000_000, 1), (33_000_000, 2)])
def test_small_products_are_not_divided(multiply_adds: int, expected: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(multiply_adds):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "processes", "threads"),
    [(1, None, 2), (8, None, 8), (64, None, 16), (64, "8", 8), (192, "8", 16), (4, "8", 2)],
)
def test_processes_of_a_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: str | None, threads: int
) -> None:
    monkeypatch.setattr("openblip.runtime.threads.num_usable_cores", lambda: cores)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert default_threads() == threads


@pytest.mark.slow
@pytest.mark.parametrize(("wish", "expected"), [({}, "5000"), ({"GOMP_SPINCOUNT": "1000"}, "1000")])
def test_so_do_those_of_the_processes_that_torchrun_starts(
    tmp_path: Path, wish: dict[str, str], expected: str
) -> None:
    (tmp_path / "command.py").write_text(SEEN)
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "command.py")],
        env={**environment, **wish},
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.count(f"['{expected}', ") == 2
