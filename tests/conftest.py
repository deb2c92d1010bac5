"""Shared fixtures: reference data, small images and tables, and the checks of shape annotations."""

import fcntl
import gc
import io
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

import jaxtyping
import numpy as np
import pytest
from jaxtyping import config, install_import_hook
from PIL import Image

from .s3_server import S3Proxy, serve_proxy, serve_s3

ROOT = Path(__file__).resolve().parent.parent

# Side by side, each test process has its share of the processor, and so have those that it starts;
# PyTorch reads this when it is first imported, which comes later.
if WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

# Tests start some hundred interpreters: the package is compiled once, not in each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Checks the annotated shapes while tests run, see `pytest_runtest_setup`; inert in production.
LOSSES = [f"openblip.objectives.{name}" for name in ("itc", "itm", "lm")]
install_import_hook(["openblip.model", *LOSSES], "beartype.beartype")

_jaxtyped = jaxtyping.jaxtyped


def _outermost(**options: Any) -> Callable[[Any], Any]:
    """Leaves functions within functions alone: they would be decorated anew at every call."""
    decorated = _jaxtyped(**options)
    return lambda thing: thing if "<locals>" in thing.__qualname__ else decorated(thing)


jaxtyping.jaxtyped = _outermost

from openblip.table.table import PairRow, PairTable  # noqa: E402

# In the tests of these rooms every shape is checked.
CHECKED_ROOMS = ("model", "objectives")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Elsewhere shapes are checked in one test of ten, which its name chooses.

    Checked, the small models of the tests compute three times as long.
    """
    room = item.path.relative_to(ROOT / "tests").parts[0]
    checked = room in CHECKED_ROOMS or crc32(item.nodeid.encode()) % 10 == 0
    config.update("jaxtyping_disable", not checked)


def pytest_collection_finish() -> None:
    """What has been imported stays: the collector of garbage need not visit it ever again."""
    gc.freeze()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`made_once(name, make)`: what `make(folder)` returned, in whichever test process.

    Side by side, the first one that asks makes it, and the others wait for it; none may change what
    lies in the folder.
    """
    place = tmp_path_factory.getbasetemp()
    if WORKERS:
        place = place.parent

    def get(name: str, make: Callable[[Path], Any]) -> Any:
        folder = place / f"once-{name}"
        folder.mkdir(exist_ok=True)
        value = folder / "value.pickle"
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not value.exists():
                made = make(folder)
                # The name comes last: a test process that is killed leaves nothing half made.
                (folder / "unfinished").write_bytes(pickle.dumps(made))
                (folder / "unfinished").rename(value)
            return pickle.loads(value.read_bytes())

    return get


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


@pytest.fixture
def without_cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the packages for object stores were not installed."""
    from openblip.table import storage

    monkeypatch.setitem(sys.modules, "obstore", None)
    storage._read_settings.cache_clear()
    yield
    storage._read_settings.cache_clear()


_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture
def how_threads_wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], dict[str, str]]:
    """What a process was started with for how OpenMP's threads wait; here nothing is set.

    It stood there before any of its code ran, and so before PyTorch was loaded.
    """
    if not Path("/proc/self/environ").exists():
        pytest.skip("this system does not tell with what a process was started")
    for name in _WAITING:
        # Set first, so that what the test sets is gone after it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    own_words = Path("/proc/self/cmdline").read_bytes()

    def read(process: int) -> dict[str, str]:
        # Until it has begun its program it is a copy of this process, with what this had.
        while Path(f"/proc/{process}/cmdline").read_bytes() in (own_words, b""):
            time.sleep(0.01)
        content = os.fsdecode(Path(f"/proc/{process}/environ").read_bytes())
        entries = (entry.partition("=") for entry in content.split("\0"))
        return {name: value for name, _, value in entries if name in _WAITING}

    return read


def _jpeg(seed: int, width: int = 24, height: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    """Makes a small JPEG file of noise that its seed decides."""
    return _jpeg


@pytest.fixture(scope="session")
def pair_rows() -> Callable[..., list[PairRow]]:
    """Makes rows `r0`, `r1`, ... with one image and two captions each."""

    def make(count: int, **changes: object) -> list[PairRow]:
        return [
            PairRow(
                id=f"r{number}",
                image=_jpeg(number),
                width=24,
                height=16,
                captions=[f"picture number {number}", f"this is {number}"],
                **changes,
            )
            for number in range(count)
        ]

    return make


@pytest.fixture
def table(tmp_path: Path, pair_rows: Callable[..., list[PairRow]]) -> PairTable:
    """A table of 20 rows of origin web."""
    return PairTable.create(tmp_path / "pairs.lance", pair_rows(20))
