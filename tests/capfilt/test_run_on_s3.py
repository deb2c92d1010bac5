"""A CapFilt job whose table, images and files lie in an object store."""

import json
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from openblip.capfilt.job import CapFiltJob, job_status
from openblip.capfilt.run import run_capfilt
from openblip.cli import main
from openblip.jobs.lock import JobLockedError
from openblip.jobs.pools import RayCluster
from openblip.runtime.errors import StorageError
from openblip.table.storage import ObjectFolder
from openblip.table.table import PairRow

from ..s3_server import S3Proxy
from .jobs import columns, job_settings, job_words, leases, make_table, running, wait_until

Models = dict[str, str]
STORM = ("slow down", "drop", "cut", "lose answer", "deny answer")


@pytest.fixture
def uri(rows: list[PairRow], s3: S3Proxy) -> str:
    """Address of a table of four fragments, of whose images every other is an object."""
    folder = ObjectFolder(f"{s3.bucket}/images")
    away = list(rows)
    for number in range(0, len(rows), 2):
        row = rows[number]
        folder.write(row.id, row.image or b"")
        away[number] = replace(row, image=None, image_uri=f"{folder.uri}/{row.id}")
    return make_table(f"{s3.bucket}/pairs.lance", away, 4).uri


def test_the_columns_are_those_of_a_table_on_the_disk(
    uri: str, models: Models, undisturbed: pa.Table
) -> None:
    result = run_capfilt(uri, job_settings(models), processes=1)
    assert (result.computed, result.errors) == (result.rows, 1)
    assert columns(uri).equals(undisturbed)
    assert run_capfilt(uri, job_settings(models), processes=1).computed == 0
    status = job_status(uri)
    assert (status.is_finished, status.rows_done) == (True, result.rows)


def test_a_storm_of_errors_changes_no_result(
    uri: str, s3: S3Proxy, models: Models, undisturbed: pa.Table
) -> None:
    s3.share, s3.faults = 0.2, STORM
    run_capfilt(uri, job_settings(models), processes=1, save_seconds=0.0)
    s3.share = 0.0
    assert s3.failed.total() > 10
    assert columns(uri).equals(undisturbed)


@pytest.mark.parametrize(
    "healthy", [60, *(pytest.param(number, marks=pytest.mark.slow) for number in range(5, 140, 15))]
)
def test_a_job_that_an_outage_stopped_goes_on_where_it_was(
    uri: str,
    s3: S3Proxy,
    models: Models,
    undisturbed: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
    healthy: int,
) -> None:
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "1")
    s3.faults, s3.healthy = ("cut", "slow down"), healthy
    message = r"has failed for 1 s .* run the same command again"
    with pytest.raises(StorageError, match=message) as caught:
        run_capfilt(uri, job_settings(models), processes=1, save_seconds=0.0)
    assert s3.url in str(caught.value)
    s3.healthy = None
    run_capfilt(uri, job_settings(models), processes=1, save_seconds=0.0)
    assert columns(uri).equals(undisturbed)


def test_what_was_finished_before_an_outage_is_not_computed_again(
    uri: str, s3: S3Proxy, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "1")
    settings = job_settings(models)
    s3.faults, s3.only, s3.healthy = ("slow down",), "PUT", 20
    with pytest.raises(StorageError):
        run_capfilt(uri, settings, processes=1, save_seconds=0.0)
    s3.healthy = None
    assert CapFiltJob.prepare(uri, settings).folder.names("pieces/")
    result = run_capfilt(uri, settings, processes=1, save_seconds=0.0)
    assert 0 < result.computed < result.rows


def test_every_command_takes_the_address(
    uri: str, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = job_words(uri, models, "--processes", "1")
    assert main(words[words.index("capfilt") :]) == 0
    for command in ("capfilt status", "capfilt select", "data show"):
        assert main([*command.split(), uri, "--json"]) == 0
    assert main(["capfilt", "report", uri, "-o", str(tmp_path / "report.html")]) == 0
    shards = tmp_path / "shards"
    assert main(["data", "export", uri, str(shards), "--sources", "web", "synthetic"]) == 0
    report = json.loads((shards / "export.json").read_text())
    assert report["table"] == uri
    # CapFilt has found the broken image before: no text of it is admitted.
    assert "1 unreadable image" in capsys.readouterr().out


@pytest.mark.slow
def test_a_driver_that_is_killed_on_s3_loses_no_finished_batch(
    uri: str, models: Models, undisturbed: pa.Table
) -> None:
    settings = job_settings(models)
    folder = CapFiltJob.prepare(uri, settings).folder
    with running(job_words(uri, models, "--processes", "1")) as process:
        assert wait_until(lambda: len(folder.names("pieces/")) >= 2, process)
        with pytest.raises(JobLockedError, match=f"process {process.pid}"):
            run_capfilt(uri, settings, processes=1)
        process.kill()
    result = run_capfilt(uri, settings, processes=1)
    assert 0 < result.computed < result.rows
    assert columns(uri).equals(undisturbed)
    assert folder.names("pieces/") == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [["--processes", "2"], ["--ray", "local", "--workers", "2"]])
def test_workers_that_are_killed_in_a_storm_change_no_result(
    uri: str, s3: S3Proxy, models: Models, undisturbed: pa.Table, workers: list[str]
) -> None:
    s3.share, s3.faults = 0.1, STORM
    draw = random.Random(0)
    settings = job_settings(models)
    kills = 0
    with running(job_words(uri, models, *workers)) as process:
        while kills < 2 and wait_until(lambda: leases(uri, settings), process):
            victim = draw.choice(sorted(leases(uri, settings)) or [0])
            if victim and victim != process.pid:
                os.kill(victim, signal.SIGKILL)
                kills += 1
                wait_until(lambda v=victim: v not in leases(uri, settings), process)
        output, _ = process.communicate()
        assert process.returncode == 0, output
    s3.share = 0.0
    assert kills
    assert columns(uri).equals(undisturbed)


@pytest.mark.slow
def test_ray_workers_on_s3_write_the_same(uri: str, models: Models, undisturbed: pa.Table) -> None:
    run_capfilt(uri, job_settings(models), ray=RayCluster(workers=2))
    assert columns(uri).equals(undisturbed)
