"""Whatever is brought: one line, exit code 0, 1 or 2, and soon (see `bad_inputs/sweep.py`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from openblip.cli import COMMANDS

from .bad_inputs import cases, rooms

ROOT = Path(__file__).resolve().parent.parent


def test_every_command_has_cases() -> None:
    assert set(COMMANDS) == cases.COMMANDS | rooms.COMMANDS


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("which", [["--cases", "2300"], ["--rooms", "--cases", "500"]])
def test_thousands_of_bad_inputs_are_told_in_one_line(which: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.bad_inputs.sweep", *which],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stdout
