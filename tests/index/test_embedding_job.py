"""Rows of a table embedded by a job: on workers of any kind, whatever happens to them."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from openblip.cli import main
from openblip.index.build import IndexReport, describe_index
from openblip.index.embeddings import EmbeddingComputer, EmbeddingJob
from openblip.index.noted import EMBEDDING
from openblip.jobs import columns as job_columns
from openblip.jobs import pools
from openblip.jobs.ledger import Ledger, open_store
from openblip.jobs.lock import JobLock, JobLockedError
from openblip.jobs.pools import RayCluster
from openblip.runtime.errors import CheckpointError, RecipeError
from openblip.table.table import PairRow, PairTable

from ..capfilt.jobs import make_table, running, wait_until
from ..s3_server import S3Proxy

Build = Callable[..., IndexReport]
CRASHING = Path(__file__).parent.parent / "capfilt" / "crashing_decoder"
SMALL = {"batch_size": 4}


@pytest.fixture
def rows(pair_rows: Callable[..., list[PairRow]]) -> list[PairRow]:
    """Forty-one rows, one of whose images is broken."""
    made = [replace(row, id=f"x{n}") for n, row in enumerate(pair_rows(40))]
    return [*made[:18], PairRow(id="broken", image=b"no image", captions=[]), *made[18:]]


@pytest.fixture
def uri(rows: list[PairRow], tmp_path: Path) -> str:
    """Address of a table of three fragments that nobody has embedded."""
    return make_table(str(tmp_path / "pairs.lance"), rows, 3).uri


@pytest.fixture
def undisturbed(rows: list[PairRow], build: Build, tmp_path: Path) -> pa.Table:
    """The columns that one process writes, left alone."""
    plain = make_table(str(tmp_path / "plain.lance"), rows, 3).uri
    build(plain, processes=1, **SMALL)
    return columns(plain)


def columns(uri: str) -> pa.Table:
    table = PairTable.open(uri)
    return table.take(range(len(table)), ["image_embedding", "embedding_error"])


def words(uri: str, model: str, *more: str) -> list[str]:
    """The command that embeds, and saves every batch."""
    return [
        *(sys.executable, "-m", "openblip", "index", "build", uri, "--model", model),
        *("--batch-size", "4", "--save-seconds", "0", *more),
    ]


def job_of(uri: str, model: str) -> EmbeddingJob:
    return EmbeddingJob.prepare(uri, model, 4)


def leases(uri: str, model: str) -> set[int]:
    """Processes that have a fragment."""
    entries = Ledger(job_of(uri, model).folder, EMBEDDING.title).entries()
    return {int(e.worker.split(":")[1]) for e in entries if e.state == "leased"}


def test_one_process_embeds_and_says_what_it_could_not_read(uri: str, build: Build) -> None:
    report = build(uri, processes=1, **SMALL)
    assert (report.rows, report.embedded, report.unreadable, report.failed) == (41, 40, 1, ())
    (reason,) = report.reasons
    assert reason.startswith("broken: image of 8 bytes: ")
    made = columns(uri)
    assert [n for n, told in enumerate(made["embedding_error"].to_pylist()) if told] == [18]
    lengths = np.linalg.norm(np.array(made["image_embedding"].to_pylist(), np.float32), axis=1)
    assert lengths[18] == 0
    assert np.delete(lengths, 18) == pytest.approx(1, abs=1e-2)
    # Still known when nothing is computed.
    assert describe_index(uri).reasons == report.reasons
    assert build(uri, processes=1, batch_size=7).embedded == 0


def test_two_processes_write_what_one_writes(
    uri: str, rows: list[PairRow], build: Build, undisturbed: pa.Table
) -> None:
    report = build(uri, processes=2, **SMALL)
    assert (report.embedded, report.unreadable) == (40, 1)
    assert columns(uri).equals(undisturbed)
    # Few rows that came later are embedded too, and no other.
    PairTable.open(uri).append([replace(rows[0], id="late"), replace(rows[1], id="later")])
    assert describe_index(uri).missing == 2
    assert main(["index", "update", uri, "--processes", "1", "--batch-size", "1"]) == 0
    made = columns(uri)
    assert made[:41].equals(undisturbed)
    late = np.array(made["image_embedding"][41:].to_pylist(), np.float32)
    first = np.array(undisturbed["image_embedding"][:2].to_pylist(), np.float32)
    # Alone in its batch an image may differ in the last bit.
    assert late == pytest.approx(first, abs=1e-3)


def test_few_rows_are_embedded_in_this_process(
    tmp_path: Path, rows: list[PairRow], build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "ManyProcesses", None)
    uri = PairTable.create(tmp_path / "few.lance", rows[:5]).uri
    assert build(uri).embedded == 5


@pytest.mark.slow
def test_workers_of_ray_write_what_one_process_writes(
    uri: str, model: str, undisturbed: pa.Table
) -> None:
    pytest.importorskip("ray")
    with running(words(uri, model, "--ray", "local", "--workers", "2", "--json")) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert columns(uri).equals(undisturbed)


def test_a_job_that_is_killed_loses_no_finished_batch(
    uri: str, model: str, build: Build, undisturbed: pa.Table
) -> None:
    pieces = job_of(uri, model).folder
    with running(words(uri, model, "--processes", "1")) as process:
        assert wait_until(lambda: len(pieces.names("pieces/")) >= 2, process)
        process.kill()
    report = build(uri, processes=1, **SMALL)
    assert 0 < report.embedded < 40
    assert columns(uri).equals(undisturbed)
    assert pieces.names("pieces/") == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", ["--processes 2", "--ray local --workers 2"])
def test_kills_of_workers_at_random_moments_change_no_byte(
    workers: str, rows: list[PairRow], model: str, build: Build, tmp_path: Path
) -> None:
    many = [replace(row, id=f"{n} {row.id}") for n in range(25) for row in rows]
    plain = make_table(str(tmp_path / "plain.lance"), many, 6).uri
    build(plain, processes=1, **SMALL)
    draw, kills, calls = random.Random(0), 0, 0
    while kills < 6:
        calls += 1
        uri = make_table(str(tmp_path / f"{calls}.lance"), many, 6).uri
        with running(words(uri, model, *workers.split())) as process:
            for _ in range(4):
                if not wait_until(lambda uri=uri: leases(uri, model), process):
                    break
                time.sleep(draw.random())
                for pid in list(leases(uri, model))[:1]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        kills += 1
            output, _ = process.communicate()
        assert process.returncode == 0, output
        assert columns(uri).equals(columns(plain))


# Of CapFilt's job, whose driver and workers are the same, tests/capfilt/test_faults.py kills one of
# two processes in every run.
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_image_that_kills_its_decoder_is_found_and_noted(
    processes: int, rows: list[PairRow], model: str, undisturbed: pa.Table, tmp_path: Path
) -> None:
    rows = list(rows)
    rows[30] = replace(rows[30], image=b"\x89PNG SEGFAULT")
    uri = make_table(str(tmp_path / "deadly.lance"), rows, 3).uri
    command = words(uri, model, "--processes", str(processes))
    if processes == 1:  # the crash is the command's own; the same command goes on after it
        with running(command, CRASHING) as process:
            process.communicate()
        assert process.returncode == -signal.SIGSEGV
    with running(command, CRASHING) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    reasons = columns(uri)["embedding_error"].to_pylist()
    assert [n for n, reason in enumerate(reasons) if reason] == [18, 30]
    assert "its decoder died (SIGSEGV)" in reasons[30]
    assert f"x29: {reasons[30]}" in output
    # The batch of the deadly image has one image less: the last bits of its neighbours may differ.
    made, plain = columns(uri)["image_embedding"], undisturbed["image_embedding"]
    assert made[:28].equals(plain[:28])
    assert not np.any(made[30].as_py())
    assert np.array(made[29].as_py()) == pytest.approx(np.array(plain[29].as_py()), abs=1e-3)


def test_a_part_of_a_table_that_cannot_be_read_fails_alone_and_is_tried_again(
    uri: str, model: str, undisturbed: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = PairTable.open(uri).dataset.get_fragment(1).metadata
    file = Path(uri) / "data" / str(metadata.files[0].path)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    command = words(uri, model, "--processes", "1")[3:]
    assert main(command) == 1
    output = capsys.readouterr()
    assert (
        f"failed, the same command tries again: {uri}: fragment 1 (data/{file.name}" in output.err
    )
    file.write_bytes(content)
    assert main(command) == 0
    assert columns(uri).equals(undisturbed)


def test_embeddings_of_an_earlier_version_stay(
    uri: str, rows: list[PairRow], model: str, build: Build, undisturbed: pa.Table
) -> None:
    # As it was written: one column without reasons, and a note of model and rows.
    table = PairTable.open(uri)
    table.add_columns(undisturbed.select(["image_embedding"]))
    settings = {"model": job_of(uri, model).model_fingerprint}
    table.update_metadata({"image_embedding": json.dumps({"settings": settings, "rows": 41})})
    assert build(uri, processes=1).embedded == 0
    PairTable.open(uri).append([replace(rows[0], id="late"), replace(rows[18], id="late, broken")])
    report = build(uri, processes=1)
    assert (report.embedded, report.missing, report.unreadable) == (1, 0, 1)
    made = columns(uri)
    assert made["image_embedding"][:41].equals(undisturbed["image_embedding"])
    assert made["embedding_error"][:42].null_count == 42


def test_another_model_replaces_all(
    uri: str, build: Build, other_model: str, undisturbed: pa.Table
) -> None:
    build(uri, processes=1, **SMALL)
    assert build(uri, other_model, processes=1, **SMALL).embedded == 40
    assert not columns(uri)["image_embedding"].equals(undisturbed["image_embedding"])
    # The files of the first are still there, and are what they were.
    assert build(uri, processes=1, **SMALL).embedded == 0
    assert columns(uri).equals(undisturbed)


def test_a_note_never_stands_beside_the_columns_of_another_model(
    uri: str,
    build: Build,
    model: str,
    other_model: str,
    undisturbed: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build(uri, processes=1, **SMALL)
    attach = job_columns.attach_columns

    def attach_and_die(*given: Any, **settings: Any) -> None:
        attach(*given, **settings)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(job_columns, "attach_columns", attach_and_die)
        build(uri, other_model, processes=1, **SMALL)
    assert not columns(uri)["image_embedding"].equals(undisturbed["image_embedding"])
    # Without its ledger, the note is all by which the first model knows its columns.
    shutil.rmtree(Path(f"{uri}.embedding"))
    assert build(uri, processes=1, **SMALL).embedded == 40
    assert columns(uri).equals(undisturbed)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_table_in_an_object_store_too(
    processes: int,
    s3: S3Proxy,
    rows: list[PairRow],
    model: str,
    build: Build,
    undisturbed: pa.Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path for path in tmp_path.iterdir() if path.name != "cache"}
    uri = make_table(f"{s3.bucket}/pairs.lance", rows, 3).uri
    pieces = job_of(uri, model).folder
    with running(words(uri, model, "--processes", str(processes))) as process:
        assert wait_until(lambda: len(pieces.names("pieces/")) >= 2, process)
        process.kill()
    wait_until(lambda: all(not _runs(pid) for pid in leases(uri, model)), None)
    assert 0 < build(uri, processes=processes, **SMALL).embedded < 40
    assert columns(uri).equals(undisturbed)
    # Nothing of it lies here.
    assert {path for path in tmp_path.iterdir() if path.name != "cache"} == before


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_workers_of_ray_on_an_object_store(
    s3: S3Proxy, rows: list[PairRow], build: Build, undisturbed: pa.Table
) -> None:
    pytest.importorskip("ray")
    uri = make_table(f"{s3.bucket}/pairs.lance", rows, 3).uri
    s3.share, s3.faults = 0.1, ("slow down", "drop", "cut", "lose answer", "deny answer")
    build(uri, device=None, ray=RayCluster(workers=2), save_seconds=0.0, **SMALL)
    s3.share = 0.0
    assert columns(uri).equals(undisturbed)


def test_one_job_at_a_time_embeds_a_table(uri: str, build: Build) -> None:
    with (
        JobLock(open_store(EMBEDDING.folder(uri)), EMBEDDING),
        pytest.raises(JobLockedError, match="another embedding job works on this table"),
    ):
        build(uri, processes=1)


def test_a_worker_whose_model_is_another_one_does_not_begin(uri: str, model: str) -> None:
    job = replace(job_of(uri, model), model_fingerprint="0" * 16)
    with pytest.raises(CheckpointError, match="but the job began with 0000"):
        EmbeddingComputer(job, "cpu")


@pytest.mark.parametrize("where", [["--processes", "2"], ["--ray", "local"]])
def test_a_folder_is_embedded_by_one_process(
    where: list[str], photos: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", "build", str(photos), "--model", model, *where]) == 1
    assert "openblip data import" in capsys.readouterr().err


def test_flags_of_this_machine_and_of_a_cluster_do_not_go_together(
    uri: str, model: str, build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["index", "build", uri, "--model", model]
    assert main([*command, "--workers", "2"]) == 1
    assert "go with --ray" in capsys.readouterr().err
    assert main([*command, "--ray", "local", "--processes", "2"]) == 1
    assert "with --ray give --workers" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="--device cpu is this machine's"):
        build(uri, ray=RayCluster())
    with pytest.raises(RecipeError, match="--processes 0"):
        build(uri, processes=0)
