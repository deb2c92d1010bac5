"""What `capfilt status` says before, during and after a job."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.capfilt.job import CapFiltJob, job_status
from openblip.capfilt.run import run_capfilt
from openblip.cli import main
from openblip.runtime.errors import DataError
from openblip.table.table import PairRow, PairTable

from .jobs import job_settings, job_words, running, wait_until

Models = dict[str, str]


def test_a_table_without_a_job_is_said_so(uri: str) -> None:
    with pytest.raises(DataError, match="openblip capfilt run"):
        job_status(uri)


def test_a_finished_job_with_its_rate_and_cost(
    uri: str, rows: list[PairRow], models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    run_capfilt(uri, job_settings(models), processes=1)

    status = job_status(uri, price_per_hour=3.6)
    assert (status.is_finished, status.is_running, status.owner) == (True, False, "")
    assert status.fragments == {"waiting": 0, "leased": 0, "done": 4, "failed": 0}
    assert status.rows["done"] == status.rows_done == len(rows)
    assert status.num_errors == 1
    assert status.cost_per_million == pytest.approx(1000 / status.rate)

    capsys.readouterr()
    assert main(["capfilt", "status", uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == status.fingerprint
    assert main(["capfilt", "status", uri, "--price-per-hour", "2"]) == 0
    assert "a million images cost" in capsys.readouterr().out

    PairTable.open(uri).append([replace(rows[0], id="new")])
    assert not job_status(uri).is_finished


def test_a_running_job_and_one_that_was_killed(uri: str, models: Models) -> None:
    pieces = CapFiltJob.prepare(uri, job_settings(models)).folder
    with running(job_words(uri, models, "--processes", "1")) as process:
        assert wait_until(lambda: pieces.names("pieces/"), process)
        status = job_status(uri)
        assert status.is_running
        assert status.owner.endswith(f":{process.pid}")
        assert not status.is_finished
        process.kill()
        process.wait()
    status = job_status(uri)
    assert (status.is_running, status.is_finished) == (False, False)
    assert status.fragments["leased"] == 0
    assert status.seconds_left is None
    # What was saved of fragments that are not finished counts: the next call does not compute it.
    assert 0 < status.rows_done < len(PairTable.open(uri))
    assert run_capfilt(uri, job_settings(models), processes=1).computed == (
        len(PairTable.open(uri)) - status.rows_done
    )


def test_the_version_with_what_another_job_wrote_is_told(
    uri: str, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = job_settings(models)
    assert run_capfilt(uri, settings, processes=1).replaced is None
    assert run_capfilt(uri, settings, processes=1).replaced is None
    before = PairTable.open(uri)
    texts = before.take(range(len(before)), ["synthetic"]).to_pylist()
    replaced = run_capfilt(uri, replace(settings, seed=7), processes=1).replaced
    assert replaced == before.version
    assert (
        PairTable.open(uri, replaced).take(range(len(before)), ["synthetic"]).to_pylist() == texts
    )
    assert main([*job_words(uri, models, "--processes", "1", "--seed", "8")[3:]]) == 0
    assert "the texts and scores of another job were replaced" in capsys.readouterr().out


def test_a_failed_fragment_is_shown_with_its_file(uri: str, models: Models) -> None:
    metadata = PairTable.open(uri).dataset.get_fragment(2).metadata
    file = Path(uri) / "data" / str(metadata.files[0].path)
    file.write_bytes(b"gone")
    run_capfilt(uri, job_settings(models), processes=1)

    status = job_status(uri)
    assert status.fragments["failed"] == 1
    assert file.name in status.failed[0]
