"""What `import openblip` offers is shown in `docs/api.md`, and what is shown there runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import openblip

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_every_name_has_an_example() -> None:
    shown = set(re.findall(r"\bopenblip\.(\w+)", "".join(BLOCKS)))
    assert set(openblip.__all__) - shown == set()


def test_the_examples_run_one_after_the_other(tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text("".join(BLOCKS))
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(script)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr


def test_names_are_complete_and_lead_to_their_homes() -> None:
    assert openblip.__all__ == sorted(openblip.__all__)
    assert set(openblip.__all__) <= set(dir(openblip))
    for name in openblip.recipes.__all__:
        assert getattr(openblip.recipes, name).__doc__, name


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(openblip.__file__).with_name("py.typed").exists()
