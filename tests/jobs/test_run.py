"""A job that is about no table: what its parts are, and what comes of them, is its own business."""

import hashlib
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from openblip.jobs.ledger import Entry, Ledger, Store, open_store
from openblip.jobs.lock import JobLock, JobLockedError
from openblip.jobs.pools import ManyProcesses, RayCluster, ThisMachine, open_pool
from openblip.jobs.run import Run, Standing
from openblip.jobs.units import Event, Kind, Result, Unit, UnitDone
from openblip.runtime.errors import DataError, OpenBlipError, RecipeError

ROOT = Path(__file__).resolve().parents[2]
COUNTING = Kind(name="counting", title="counting", things="files", suffix="json")


@dataclass(frozen=True)
class File:
    """A file of a folder as a part, which nobody can divide."""

    number: int
    digest: str
    num_rows: int = 1


@dataclass(frozen=True)
class CountingJob:
    """Counts the words of each file of a folder."""

    kind: ClassVar[Kind] = COUNTING
    folder_path: str
    fingerprint: str = "0123456789abcdef"
    batch_size: int = 1

    @property
    def table_uri(self) -> str:
        return f"{self.folder_path}/total"

    @property
    def folder(self) -> Store:
        return open_store(f"{self.kind.folder(self.table_uri)}/{self.fingerprint}")

    @property
    def results(self) -> Store:
        return open_store(f"{self.folder.uri}/results")

    def description(self) -> str:
        return "{}"

    def open_worker(
        self, device: str, save_seconds: float, decode_threads: int
    ) -> "CountingWorker":
        return CountingWorker(self)

    def files(self) -> list[Path]:
        return sorted(Path(self.folder_path).glob("*.txt"))


class CountingWorker:
    """Says of each file how many words are in it."""

    def __init__(self, job: CountingJob) -> None:
        self.job = job

    def close(self) -> None:
        pass

    def compute(self, unit: Unit) -> Iterator[Event]:
        found = unit.failure or unit.blamed.get(0)
        if found is None:
            text = self.job.files()[unit.part].read_text()
            if text == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            if text == "damaged":
                raise DataError(f"file {unit.part} is damaged")
            yield 0  # still at work
            yield 1
            yield Counter(words=len(text.split()))
            content = json.dumps({"words": len(text.split())}).encode()
        else:
            content = json.dumps({"words": 0, "reason": found}).encode()
        name = unit.result_file(self.job)
        self.job.results.write(name, content)
        digest = hashlib.sha256(content).hexdigest()
        yield UnitDone(Result(name, len(content), digest, 1, int(found is not None), False))


class Total:
    """A file with the sum of all words, and why there are none of some files."""

    def __init__(self, job: CountingJob) -> None:
        self.job, self.path = job, Path(job.table_uri)

    def look(self, ledger: Ledger, is_settled: Callable[[Entry], bool]) -> Standing:
        counted = self.counted()
        missing, computed = [], {}
        for number, file in enumerate(self.job.files()):
            part = File(number, hashlib.sha256(file.read_bytes()).hexdigest()[:16])
            entry = ledger.find(part.number, part.digest)
            if entry is None or not is_settled(entry):
                missing.append(part)
            elif counted.get(str(number), {}).get("file") != entry.file:
                computed[number] = entry
        count = len(self.job.files())
        return Standing(
            version=0,
            num_rows=count,
            is_committed=len(counted) == count,
            missing=missing,
            computed=computed,
        )

    def commit(self, view: Standing) -> None:
        found = {
            str(number): {**json.loads(self.job.results.read(e.file) or b""), "file": e.file}
            for number, e in view.computed.items()
        }
        self.path.write_text(json.dumps({**self.counted(), **found}))

    def counted(self) -> dict[str, dict[str, object]]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}


@pytest.fixture
def job(tmp_path: Path) -> CountingJob:
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("word " * number)
    return CountingJob(str(tmp_path))


def run(job: CountingJob, processes: int) -> tuple[Run, Total]:
    total = Total(job)
    made = Run(job, total, lambda: open_pool(job, ThisMachine(processes=processes), 10.0))
    if not made.look().is_complete:
        made.complete()
    return made, total


def words(total: Total) -> list[object]:
    return [each["words"] for _, each in sorted(total.counted().items())]


@pytest.mark.parametrize("processes", [1, 2])
def test_parts_that_are_no_rows_are_done_once(processes: int, job: CountingJob) -> None:
    made, total = run(job, processes)
    assert words(total) == [0, 1, 2, 3, 4, 5]
    assert (made.computed, made.counts) == (6, Counter(words=15))
    assert run(job, 1)[0].computed == 0
    (Path(job.folder_path) / "2.txt").write_text("one more file than before")
    made, total = run(job, 1)
    assert (made.computed, words(total)) == (1, [0, 1, 5, 3, 4, 5])


def test_a_part_that_cannot_be_read_or_kills_every_worker_gets_its_reason(job: CountingJob) -> None:
    (Path(job.folder_path) / "1.txt").write_text("damaged")
    (Path(job.folder_path) / "4.txt").write_text("deadly")
    made, total = run(job, 2)
    assert words(total) == [0, 0, 2, 3, 0, 5]
    assert total.counted()["1"]["reason"] == "file 1 is damaged"
    assert "workers died on the batch of this row, the last by SIGKILL" in str(total.counted()["4"])
    assert list(made.failed.values()) == ["file 1 is damaged"]
    # What could not be read may be readable now; what killed is not asked again.
    (Path(job.folder_path) / "1.txt").write_text("mended now")
    assert run(job, 2)[0].computed == 1


def test_a_result_that_was_changed_is_computed_again(job: CountingJob) -> None:
    def changed() -> object:
        for name in job.results.names():
            job.results.write(name, b"{}")
        raise KeyboardInterrupt

    total = Total(job)
    stopped = Run(job, total, lambda: open_pool(job, ThisMachine(processes=1), 10.0))
    total.commit = lambda view: changed()  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        stopped.complete()
    made, total = run(job, 1)
    assert (made.computed, words(total)) == (6, [0, 1, 2, 3, 4, 5])


def test_one_job_of_a_kind_at_a_time(job: CountingJob) -> None:
    with (
        JobLock(open_store(COUNTING.folder(job.table_uri)), COUNTING),
        pytest.raises(JobLockedError, match=r"another counting job .*; wait for it, or stop it"),
    ):
        run(job, 1)


def test_who_cannot_begin_says_why(job: CountingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: CountingJob, *_: object) -> None:
        raise OpenBlipError("no dictionary")

    monkeypatch.setattr(CountingJob, "open_worker", refuse)
    with pytest.raises(OpenBlipError, match="no dictionary"):
        run(job, 1)


def test_each_process_gets_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ThisMachine(processes=3, device="cpu").devices() == ["cpu"] * 3
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert ThisMachine().devices() == ["cuda:0", "cuda:1"]
    assert ThisMachine(processes=3).devices() == ["cuda:0", "cuda:1", "cuda:0"]
    assert ThisMachine(device="cuda:1").devices() == ["cuda:1"]
    assert ThisMachine(processes=2, device="cuda:1").devices() == ["cuda:1"] * 2
    with pytest.raises(RecipeError, match="--processes 0"):
        ThisMachine(processes=0)


@pytest.fixture(params=[{}, {"OMP_WAIT_POLICY": "ACTIVE"}], ids=["by default", "as the user says"])
def wish(
    request: pytest.FixtureRequest,
    how_threads_wait: "HowThreadsWait",  # which takes away what is set
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, str]:
    """What the user's environment says of waiting threads."""
    told: dict[str, str] = request.param
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    return told


NO_SPINNING = {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
HowThreadsWait = Callable[[int], dict[str, str]]


def test_threads_of_a_workers_process_wait_without_spinning(
    job: CountingJob, wish: dict[str, str], how_threads_wait: HowThreadsWait
) -> None:
    pool = ManyProcesses(job, ["cpu"], 10.0)
    try:
        pool.idle(1)  # starts it
        (process,) = multiprocessing.active_children()
        assert process.pid is not None
        assert how_threads_wait(process.pid) == (wish or NO_SPINNING)
    finally:
        pool.close()


@pytest.mark.slow
def test_threads_of_rays_workers_wait_without_spinning(
    job: CountingJob,
    wish: dict[str, str],
    how_threads_wait: HowThreadsWait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    pool = open_pool(job, RayCluster(workers=1), 10.0)
    try:
        # What the cluster has been started with would reach its workers, too.
        for name in {*NO_SPINNING, *wish}:
            monkeypatch.delenv(name, raising=False)
        for name, value in wish.items():
            monkeypatch.setenv(name, value)
        while not (names := pool.idle(1)):
            list(pool.reports(1.0))
        assert how_threads_wait(int(names[0].rpartition(":")[2])) == (wish or NO_SPINNING)
    finally:
        pool.close()
