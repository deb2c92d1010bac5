"""Commands as processes of their own, which outlive the server that started them."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openblip.runtime.errors import DataError
from openblip.studio.processes import JobFolder, StartedJob
from openblip.table.table import PairTable


def wait_for(done: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def ended(jobs: JobFolder, job: StartedJob) -> str:
    wait_for(lambda: jobs.state(job) != "running")
    return jobs.state(job)


def test_a_command_runs_to_its_end_and_leaves_what_it_said(
    tmp_path: Path, table: PairTable
) -> None:
    jobs = JobFolder(tmp_path / "jobs")
    job = jobs.start("show", ["data", "show", table.uri])
    assert ended(jobs, job) == "finished"
    assert any("20" in line for line in jobs.last_lines(job))
    assert jobs.jobs() == [job]


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    jobs = JobFolder(tmp_path / "jobs")
    job = jobs.start("show", ["data", "show", str(tmp_path / "absent.lance")])
    assert ended(jobs, job) == "failed"
    assert "absent.lance" in jobs.last_lines(job)[-1]


@pytest.fixture
def long_job(tmp_path: Path) -> tuple[JobFolder, StartedJob]:
    """A run of the demo, which takes minutes and is not waited for."""
    jobs = JobFolder(tmp_path / "jobs")
    job = jobs.start("demo", ["demo", "--output", str(tmp_path / "demo")])
    wait_for(lambda: bool(jobs.last_lines(job)))
    return jobs, job


def test_a_job_is_stopped_found_again_and_stopped_by_a_later_server(
    long_job: tuple[JobFolder, StartedJob],
) -> None:
    jobs, job = long_job
    later = JobFolder(jobs.path)
    assert later.jobs() == [job]
    assert later.state(job) == "running"
    later.stop(job.id)
    assert ended(jobs, job) == "stopped"
    assert later.state(job) == "stopped"
    with pytest.raises(DataError, match="has ended already"):
        later.stop(job.id)


def test_a_killed_job_is_told_from_one_that_ended(long_job: tuple[JobFolder, StartedJob]) -> None:
    jobs, job = long_job
    os.killpg(job.pid, signal.SIGKILL)
    assert ended(jobs, job) == "killed"
    assert ended(JobFolder(jobs.path), job) == "killed"


def test_another_process_with_the_same_number_is_not_the_job(tmp_path: Path) -> None:
    jobs = JobFolder(tmp_path / "jobs")
    job = jobs.start("show", ["data", "show", str(tmp_path / "absent.lance")])
    ended(jobs, job)
    record = jobs.path / job.id / "job.json"
    (jobs.path / job.id / "exit").unlink()
    record.write_text(record.read_text().replace(f'"pid": {job.pid}', f'"pid": {os.getpid()}'))
    (found,) = JobFolder(jobs.path).jobs()
    assert found.pid == os.getpid()
    assert JobFolder(jobs.path).state(found) == "killed"
    with pytest.raises(DataError, match="has ended already"):
        JobFolder(jobs.path).stop(found.id)


@pytest.mark.parametrize("job_id", ["absent", "../jobs", "", "."])
def test_there_is_no_other_job(job_id: str, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "odd").mkdir()
    jobs = JobFolder(tmp_path / "jobs")
    assert jobs.jobs() == []
    with pytest.raises(DataError, match="there is no job"):
        jobs.find(job_id)
