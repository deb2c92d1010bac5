"""How long the driver waits for a worker that says nothing."""

import time
from collections import deque
from collections.abc import Iterator, Sequence

import pytest

from openblip.capfilt.job import NEW_COLUMNS, CapFiltJob
from openblip.jobs import driver
from openblip.jobs.ledger import Ledger
from openblip.jobs.pools import Report
from openblip.jobs.units import Result, Unit, UnitDone
from openblip.runtime.errors import OpenBlipError
from openblip.runtime.progress import Progress
from openblip.table.columns import list_fragments
from openblip.table.table import PairTable

from ..capfilt.conftest import models, rows, uri
from ..capfilt.jobs import job_settings

__all__ = ["models", "rows", "uri"]

WORKER = "host:1"


class Slow:
    """One worker that computes nothing, and takes so many seconds for each batch of a fragment."""

    dies_with_driver = False

    def __init__(self, seconds: Sequence[float]) -> None:
        self._left, self._unit, self._since = deque(seconds), None, 0.0
        self.num_killed = 0

    def size_hint(self) -> int:
        return 1

    def num_working(self) -> int:
        return 1

    def idle(self, num_units: int) -> list[str]:
        return [] if self._unit else [WORKER]

    def start(self, worker: str, unit: Unit) -> None:
        self._unit, self._since = unit, time.monotonic()

    def reports(self, seconds: float) -> Iterator[Report]:
        time.sleep(0.02)
        if self._left and time.monotonic() - self._since > self._left[0]:
            self._left.popleft()
            self._since = time.monotonic()
            yield Report(WORKER, 5)
        elif not self._left:
            self._unit = None
            result = Result("capfilt-0.lance", 1, "0", 10, 0, used_pieces=False)
            yield Report(WORKER, UnitDone(result))

    def kill(self, worker: str) -> None:
        self._unit = None
        self.num_killed += 1

    def close(self) -> None:
        pass


def run(uri: str, models: dict[str, str], pool: Slow) -> Ledger:
    job = CapFiltJob.prepare(uri, job_settings(models))
    table, ledger = PairTable.open(uri), Ledger(job.folder, job.kind.title)
    fragment = list_fragments(table, NEW_COLUMNS)[0]
    with Progress("capfilt", total=fragment.num_rows, unit="images") as progress:
        driving = driver.Driver(job, ledger, pool, progress, lambda: None)
        driving.run([fragment], table.version, {}, set())
    return ledger


def test_a_batch_may_take_ten_times_as_long_as_the_slowest_yet(
    uri: str, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LEASE_SECONDS", 0.5)
    pool = Slow([0.2, 1.2])
    assert run(uri, models, pool).counts()["done"] == 1
    assert pool.num_killed == 0


def test_a_worker_that_finishes_no_batch_is_ended_with_advice(
    uri: str, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LEASE_SECONDS", 0.1)
    pool = Slow([60.0])
    with pytest.raises(OpenBlipError, match=r"silence of 0 s .*--batch-size"):
        run(uri, models, pool)
    assert pool.num_killed > driver.MAX_DEATHS
