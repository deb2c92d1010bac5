"""Stages in several processes, some of which die."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openblip.comparison import run
from openblip.comparison.stages import Stage


def world(seed: int, kind: type[Stage] = Stage, **inputs: Stage) -> Stage:
    """A stage of moments."""
    settings = {"seed": seed, "web_rows": 4, "human_rows": 4, "val_rows": 2, "test_rows": 2}
    return kind("data", f"world {seed}", {"world": settings}, inputs)


@pytest.mark.parametrize(
    ("jobs", "first"),
    [
        pytest.param(1, 0, id="the only one"),
        pytest.param(2, 0, id="all", marks=pytest.mark.slow),
        pytest.param(2, 1, id="another", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_dies_while_it_is_idle_fails_nothing(
    jobs: int, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[subprocess.Popen[str]] = []
    doomed: list[subprocess.Popen[str]] = []

    class Observed(subprocess.Popen[str]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            processes.append(self)

    class Killing(Stage):
        """Kills processes that have no stage when it begins."""

        def write_order(self, root: Path) -> Path:
            if not doomed:
                doomed.extend(processes[first:])
                for process in doomed:
                    process.kill()
                    process.wait()
            return super().write_order(root)

    monkeypatch.setattr(run.subprocess, "Popen", Observed)
    last = world(2, Killing, one=world(0), two=world(1))
    assert run.carry_out_all([last], tmp_path, jobs=jobs) == {}
    assert last.result(tmp_path)
    assert len(doomed) == jobs - first
    assert len(processes) == (jobs + 1 if first == 0 else jobs)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
    ids=["by default", "as the user says"],
)
def test_threads_of_a_process_wait_without_spinning(
    wish: dict[str, str],
    expected: dict[str, str],
    how_threads_wait: Callable[[int], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in wish.items():
        monkeypatch.setenv(name, value)
    worker = run._Worker(1, tmp_path)
    try:
        assert how_threads_wait(worker._process.pid) == expected
    finally:
        worker._process.kill()
        worker.wait()
