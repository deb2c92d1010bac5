"""Workers that Ray places write what one process writes, on a cluster that changes too."""

import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from openblip.capfilt.run import CapFiltResult, run_capfilt
from openblip.jobs.pools import RayCluster
from openblip.runtime.errors import OpenBlipError
from openblip.table.table import PairRow

from .jobs import columns, job_settings, leases, make_table, wait_until

Models = dict[str, str]

# Ray leaves files and processes of its own to the collector; releases before 2.60 are told for it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of a head that computes nothing and one machine with a core."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    src = Path(__file__).resolve().parents[2] / "src"
    monkeypatch.setenv("PYTHONPATH", str(src))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lance is not fork-safe")
        made = cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": 100 << 20,
            },
        )
        made.workers = [made.add_node(num_cpus=1, object_store_memory=100 << 20)]
        try:
            yield made
        finally:
            made.shutdown()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ray_workers_write_what_one_process_writes(
    workers: int, uri: str, models: Models, undisturbed: pa.Table
) -> None:
    pytest.importorskip("ray")
    result = run_capfilt(uri, job_settings(models), ray=RayCluster(workers=workers))

    assert result.computed == result.rows
    assert columns(uri).equals(undisturbed)


@pytest.mark.slow
def test_a_machine_that_leaves_and_one_that_joins_change_no_byte(
    cluster: Any, rows: list[PairRow], models: Models, tmp_path: Path
) -> None:
    many = [replace(row, id=f"{n} {row.id}") for n in range(40) for row in rows]
    plain = make_table(str(tmp_path / "plain.lance"), many, 20).uri
    run_capfilt(plain, job_settings(models), processes=1)
    uri = make_table(str(tmp_path / "pairs.lance"), many, 20).uri
    results: list[CapFiltResult] = []
    settings = job_settings(models)

    def run() -> None:
        address = RayCluster(address=cluster.address)
        results.append(run_capfilt(uri, settings, ray=address, save_seconds=0.0))

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_until(lambda: leases(uri, settings), None)
    first = leases(uri, settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lance is not fork-safe")
        cluster.remove_node(cluster.workers.pop())
        time.sleep(2)
        assert not results
        cluster.workers.append(cluster.add_node(num_cpus=2, object_store_memory=100 << 20))
    # All room is taken: two workers where one was before.
    assert wait_until(lambda: len(leases(uri, settings) - first) == 2, None)
    thread.join(timeout=200)

    assert results
    assert columns(uri).equals(columns(plain))


def test_a_cluster_that_is_not_there_is_said_at_once(uri: str, models: Models) -> None:
    pytest.importorskip("ray")
    with pytest.raises(OpenBlipError, match=r"no Ray cluster at '127\.0\.0\.1:1'.*ray start"):
        run_capfilt(uri, job_settings(models), ray=RayCluster(address="127.0.0.1:1"))
