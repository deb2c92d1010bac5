"""Shared fixtures: where reference data lies, and run-time checking of shape annotations."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent

# Checks every annotated shape while the tests run; inert in production.
install_import_hook(["openblip.model", "openblip.objectives"], "beartype.beartype")


def _existing(path: Path) -> Path:
    if not path.is_dir():
        pytest.skip(f"reference data not found: {path}")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Reference outputs of the original code; another folder through OPENBLIP_GOLDEN."""
    return _existing(Path(os.environ.get("OPENBLIP_GOLDEN", ROOT.parent / "shared" / "golden")))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs with captions; another folder through OPENBLIP_SHARED."""
    return _existing(Path(os.environ.get("OPENBLIP_SHARED", ROOT.parent / "shared")) / "data")
