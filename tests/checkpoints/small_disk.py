"""A disk of one megabyte."""

import subprocess
from pathlib import Path

import pytest


def small_disk(folder: Path) -> tuple[str, ...]:
    """Words to put before a command, for which the folder is then an empty disk of one megabyte."""
    folder.mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o size=1m none "{folder}" && exec "$@"'
    words = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    try:
        subprocess.run([*words, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets nobody mount a file system of their own")
    return words
