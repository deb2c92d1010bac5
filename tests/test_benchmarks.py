"""The benchmarks run as they stand; what they measure is not asked here."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SMALL = {
    "train_step.py": "--preset tiny --image-size 64 --batch-size 2 --rounds 1 --threads 1",
    "plan_check.py": "memory --threads 1 --only tiny",
}


def run(script: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *words], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALL)
def test_a_small_one_gives_its_table(script: str) -> None:
    assert " % |" in run(script, *SMALL[script].split())


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in BENCHMARKS.glob("*.py")))
def test_each_says_how_it_is_used(script: str) -> None:
    assert "usage:" in run(script, "--help")
