"""Rows of a table embedded by several processes of this machine."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from openblip.cli import main
from openblip.index.build import IndexReport
from openblip.index.processes import EmbeddingProcesses, devices_of
from openblip.runtime.errors import CheckpointError, OpenBlipError, RecipeError
from openblip.table import columns
from openblip.table.table import PairRow, PairTable

from ..s3_server import S3Proxy

Build = Callable[..., IndexReport]
Rows = Callable[..., list[PairRow]]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_PART_ROWS", 4)


def embeds(uri: str) -> np.ndarray:
    table = PairTable.open(uri)
    return np.array(
        table.take(range(len(table)), ["image_embedding"])["image_embedding"].to_pylist()
    )


@pytest.mark.usefixtures("small_parts")
def test_they_write_what_one_process_writes(
    tmp_path: Path, pair_rows: Rows, build: Build, model: str
) -> None:
    rows = [*pair_rows(18), PairRow(id="broken", image=b"no image", captions=[])]
    one, two = (str(tmp_path / name) for name in ("one.lance", "two.lance"))
    for uri in (one, two):
        PairTable.create(uri, rows)
    build(one)
    report = build(two, processes=2)
    assert (report.embedded, report.unreadable) == (18, 1)
    assert report.reasons[0].startswith("broken: ")
    # What the number of threads changes of a float32 may change the last bit of a float16.
    assert embeds(two) == pytest.approx(embeds(one), abs=1e-3)
    assert not embeds(two)[-1].any()
    PairTable.open(two).append([PairRow(id="late", image=rows[0].image, captions=[])])
    assert main(["index", "update", two, "--processes", "2"]) == 0
    assert embeds(two)[-1] == pytest.approx(embeds(one)[0], abs=1e-3)


@pytest.mark.usefixtures("small_parts")
def test_a_process_that_dies_loses_no_finished_part(
    tmp_path: Path, pair_rows: Rows, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "pairs.lance")
    PairTable.create(uri, pair_rows(20))
    done, embed = [], EmbeddingProcesses.embed

    def killed(self: EmbeddingProcesses, rows: range) -> pa.Table:
        if len(done) >= 2:
            for child in self._children:
                os.kill(child._process.pid, signal.SIGKILL)
        done.append(rows)
        return embed(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingProcesses, "embed", killed)
        with pytest.raises(OpenBlipError, match=r"died \(exit code -9, .*run the same command"):
            build(uri, processes=2)
    assert 0 < build(uri, processes=2).embedded < 20
    assert embeds(uri).any(axis=1).all()


@pytest.mark.usefixtures("small_parts")
def test_a_table_in_an_object_store_too(
    s3: S3Proxy, pair_rows: Rows, build: Build, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = PairTable.create(f"{s3.bucket}/pairs.lance", pair_rows(8))
    assert build(table.uri, processes=2).embedded == 8
    assert embeds(table.uri).any(axis=1).all()


def test_what_keeps_a_process_from_starting_is_said(
    tmp_path: Path, pair_rows: Rows, model: str, other_model: str
) -> None:
    uri = PairTable.create(tmp_path / "pairs.lance", pair_rows(4)).uri
    with (
        EmbeddingProcesses(uri, model, "0" * 16, ["cpu"], 8, print) as pool,
        pytest.raises(CheckpointError, match="has changed since"),
    ):
        pool.embed(range(4))


def test_a_folder_is_embedded_by_one_process(photos: Path, build: Build) -> None:
    with pytest.raises(RecipeError, match="openblip data import"):
        build(photos, processes=2)


def test_each_process_gets_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_of(3, "cpu") == ["cpu"] * 3
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert devices_of(3, None) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices_of(2, "cuda:1") == ["cuda:1"] * 2
