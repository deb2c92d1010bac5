"""CapFilt jobs as processes of their own, and how far they are."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from openblip.capfilt.job import NEW_COLUMNS, CapFiltJob, CapFiltSettings
from openblip.inference.decoding import Decoding
from openblip.jobs.ledger import Ledger
from openblip.table.table import PairRow, PairTable

SOURCE = Path(__file__).resolve().parents[2] / "src"


def job_settings(models: dict[str, str], **changes: object) -> CapFiltSettings:
    """Settings that `job_words` gives on the command line."""
    plain = CapFiltSettings(
        captioner=models["captioner"],
        filter=models["filter"],
        decoding=Decoding(method="nucleus", max_length=12, min_length=5),
        batch_size=5,
    )
    return replace(plain, **changes)


def job_words(uri: str, models: dict[str, str], *more: str) -> list[str]:
    """The command of a job that saves every batch."""
    return [
        *(sys.executable, "-m", "openblip", "capfilt", "run", uri),
        *("--captioner", models["captioner"], "--filter", models["filter"]),
        *("--max-length", "12", "--batch-size", "5", "--save-seconds", "0"),
        *more,
    ]


@contextmanager
def running(words: Sequence[str], *python_path: Path) -> "Iterator[subprocess.Popen[str]]":
    """A process, which is killed if it still runs in the end."""
    paths = os.pathsep.join(str(path) for path in (SOURCE, *python_path))
    environment = {**os.environ, "PYTHONPATH": paths}
    # A suite in the background ignores Ctrl-C, and its processes would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        words, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        signal.signal(signal.SIGINT, before)
        try:
            yield process
        finally:
            process.kill()


def ledger_of(uri: str, settings: CapFiltSettings) -> Ledger:
    """The ledger as it is now."""
    return Ledger(CapFiltJob.prepare(uri, settings).folder, "CapFilt")


def leases(uri: str, settings: CapFiltSettings) -> set[int]:
    """Processes that have a fragment."""
    entries = ledger_of(uri, settings).entries()
    return {int(e.worker.split(":")[1]) for e in entries if e.state == "leased"}


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[str] | None") -> bool:
    """Whether the condition came true before the process ended."""
    end = time.monotonic() + 120
    while not condition():
        if process is not None and process.poll() is not None:
            return False
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.005)
    return True


def columns(uri: str) -> pa.Table:
    """What CapFilt has written."""
    table = PairTable.open(uri)
    return table.take(range(len(table)), NEW_COLUMNS)


def make_table(uri: str, rows: Sequence[PairRow], fragments: int) -> PairTable:
    """A table of so many fragments."""
    size = -(-len(rows) // fragments)
    table = PairTable.create(uri, rows[:size])
    for first in range(size, len(rows), size):
        table.append(rows[first : first + size])
    return PairTable.open(uri)
