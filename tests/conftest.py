"""Shared fixtures: where reference data lies, and run-time checking of shape annotations."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from jaxtyping import install_import_hook

from .s3_server import S3Proxy, serve_proxy, serve_s3

ROOT = Path(__file__).resolve().parent.parent

# Side by side, each test process has its share of the processor, and so have those that it starts;
# PyTorch reads this when it is first imported, which comes later.
if WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

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


@pytest.fixture(scope="session")
def s3_backend() -> Iterator[tuple[str, int]]:
    """Host and port of an S3 server on this machine."""
    with serve_s3() as place:
        yield place


@pytest.fixture
def s3(s3_backend: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """An empty bucket, which the environment leads to; can be made to fail."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with serve_proxy(s3_backend, f"bucket-{uuid4().hex[:12]}") as proxy:
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        # A total outage is tested too, and must not take three minutes.
        monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "20")
        yield proxy
