"""A CapFilt job whose table, images and files lie in an object store."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from openblip.capfilt.job import NEW_COLUMNS, CapFiltSettings, jobs_folder
from openblip.capfilt.pool import RayCluster
from openblip.capfilt.run import run_capfilt
from openblip.cli import main
from openblip.data.storage import ObjectFolder
from openblip.data.table import PairRow, PairTable
from openblip.errors import StorageError
from openblip.inference import Decoding

from ..s3_server import S3Proxy

STORM = ("slow down", "drop", "cut", "lose answer", "deny answer")


@pytest.fixture
def settings(models: dict[str, str]) -> CapFiltSettings:
    return CapFiltSettings(
        captioner=models["captioner"],
        filter=models["filter"],
        decoding=Decoding(method="nucleus", max_length=12, min_length=5),
        batch_size=5,
    )


@pytest.fixture
def expected(table: PairTable, settings: CapFiltSettings) -> pa.Table:
    """What the job writes for the same rows on the disk."""
    run_capfilt(table.uri, settings, processes=1)
    return columns(table.uri)


@pytest.fixture
def uri(table: PairTable, s3: S3Proxy) -> str:
    """A copy of the table in the store, in three fragments, every other image an object."""
    folder = ObjectFolder(f"{s3.bucket}/images")
    rows = []
    for number, record in enumerate(table.take(range(len(table))).to_pylist()):
        row = PairRow(**{**record, "meta": json.loads(record["meta"])})
        if number % 2:
            folder.write(row.id, row.image or b"")
            row = replace(row, image=None, image_uri=f"{folder.uri}/{row.id}")
        rows.append(row)
    copy = PairTable.create(f"{s3.bucket}/pairs.lance", rows[:8])
    copy.append(rows[8:16])
    copy.append(rows[16:])
    return copy.uri


def columns(uri: str) -> pa.Table:
    table = PairTable.open(uri)
    return table.take(range(len(table)), NEW_COLUMNS)


def test_the_columns_are_those_of_a_table_on_the_disk(
    uri: str, s3: S3Proxy, settings: CapFiltSettings, expected: pa.Table
) -> None:
    result = run_capfilt(uri, settings, processes=1)
    assert (result.computed, result.errors) == (result.rows, 1)
    assert columns(uri).to_pylist() == expected.to_pylist()
    assert run_capfilt(uri, settings, processes=1).computed == 0


def test_a_storm_of_errors_changes_no_result(
    uri: str, s3: S3Proxy, settings: CapFiltSettings, expected: pa.Table
) -> None:
    s3.share, s3.faults = 0.2, STORM
    run_capfilt(uri, settings, processes=1, save_seconds=0.0)
    s3.share = 0.0
    assert s3.failed.total() > 10
    assert columns(uri).to_pylist() == expected.to_pylist()


@pytest.mark.parametrize(
    "healthy",
    [40, *(pytest.param(number, marks=pytest.mark.slow) for number in range(10, 120, 10))],
)
def test_a_job_that_an_outage_stopped_goes_on_where_it_was(
    uri: str,
    s3: S3Proxy,
    settings: CapFiltSettings,
    expected: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
    healthy: int,
) -> None:
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "1")
    s3.faults, s3.healthy = ("cut", "slow down"), healthy
    with pytest.raises(StorageError, match="has failed for 1 s .* run the same command again"):
        run_capfilt(uri, settings, processes=1, save_seconds=0.0)
    s3.healthy = None
    run_capfilt(uri, settings, processes=1, save_seconds=0.0)
    assert columns(uri).to_pylist() == expected.to_pylist()


def test_what_an_outage_left_finished_is_not_computed_again(
    uri: str, s3: S3Proxy, settings: CapFiltSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "1")
    s3.faults, s3.only, s3.healthy = ("slow down",), "PUT /bucket", 8
    with pytest.raises(StorageError):
        run_capfilt(uri, settings, processes=1, save_seconds=0.0)
    s3.healthy = None
    saved = ObjectFolder(jobs_folder(uri)).names()
    assert any("/pieces/" in name for name in saved)
    result = run_capfilt(uri, settings, processes=1, save_seconds=0.0)
    assert 0 < result.computed < result.rows


def test_every_command_takes_the_address(
    uri: str,
    settings: CapFiltSettings,
    models: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models_given = ["--captioner", models["captioner"], "--filter", models["filter"]]
    assert main(["capfilt", "run", uri, *models_given, "--processes", "1"]) == 0
    assert main(["capfilt", "select", uri, "--json"]) == 0
    assert main(["capfilt", "report", uri, "-o", str(tmp_path / "report.html")]) == 0
    assert main(["data", "show", uri, "--json"]) == 0
    shards = tmp_path / "shards"
    assert main(["data", "export", uri, str(shards), "--sources", "web", "synthetic"]) == 1
    report = json.loads((shards / "export.json").read_text())
    assert report["table"] == uri
    # The one image that is broken.
    assert report["num_unreadable"] == 1
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_several_processes_share_a_job_in_a_storm(
    uri: str, s3: S3Proxy, settings: CapFiltSettings, expected: pa.Table
) -> None:
    s3.share, s3.faults = 0.2, STORM
    run_capfilt(uri, settings, processes=2, save_seconds=0.0)
    s3.share = 0.0
    assert columns(uri).to_pylist() == expected.to_pylist()


@pytest.mark.slow
def test_ray_workers_share_a_job_in_a_storm(
    uri: str, s3: S3Proxy, settings: CapFiltSettings, expected: pa.Table
) -> None:
    s3.share, s3.faults = 0.2, STORM
    run_capfilt(uri, settings, ray=RayCluster(workers=2), save_seconds=0.0)
    s3.share = 0.0
    assert columns(uri).to_pylist() == expected.to_pylist()
