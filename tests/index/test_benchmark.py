"""`benchmarks/search.py` runs at a small size; what it measures is not asked here."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "search.py"
SMALL = (
    "--rows 300 --queries 4 --files 5 --candidates 2 --images 8 --rounds 1 --preset tiny "
    "--image-size 64 --crossover 300 --gallery 4 "
    "--only vectors crossover files matching indexing world photos"
)


@pytest.mark.slow
def test_all_parts_run_and_what_has_no_model_is_told(model: str, tmp_path: Path) -> None:
    output = tmp_path / "search.md"
    words = [*SMALL.split(), "--world-model", model, "--output", str(output)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *words], text=True, capture_output=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    text = output.read_text()
    for part in (
        "| IVF_PQ |",
        "| 300 |",
        "times less",
        "## 5 files that have not changed",
        "| int8 |",
        "## Indexing images",
        "## World: 4 images",
        "| 0.5 |",
        "Left out: no --photos-model",
    ):
        assert part in text
