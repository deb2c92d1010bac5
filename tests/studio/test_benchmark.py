"""`benchmarks/studio.py` runs at a small size; what it measures is not asked here."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "studio.py"
SMALL = "--rows 3000 --grid-rows 2000 --times 1 --idle 0"


@pytest.mark.slow
def test_all_parts_run(tmp_path: Path) -> None:
    output = tmp_path / "studio.md"
    words = [*SMALL.split(), "--output", str(output)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *words], text=True, capture_output=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    text = output.read_text()
    for part in ("## Choosing among 3,000 rows", "| counts of CapFilt |", "| 0 s later |"):
        assert part in text
    assert ("| by the bar |" in text) is ("Left out: no browser" not in text)
