"""Whatever is brought: one line, exit code 0, 1 or 2, and soon (see `bad_inputs/sweep.py`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_bad_inputs_are_told_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.bad_inputs.sweep", "--cases", "2300"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stdout
