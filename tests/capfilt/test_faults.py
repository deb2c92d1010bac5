"""Whatever happens on the way, every row ends with its one result or a recorded reason."""

import io
import os
import random
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from openblip.capfilt.job import NEW_COLUMNS, CapFiltJob, CapFiltSettings
from openblip.capfilt.run import run_capfilt
from openblip.jobs.ledger import Entry, leased
from openblip.jobs.lock import JobLockedError
from openblip.jobs.pools import ManyProcesses, OneProcess
from openblip.jobs.units import Unit
from openblip.runtime.errors import UntrainedHead
from openblip.table.columns import list_fragments
from openblip.table.table import PairRow, PairTable

from ..checkpoints.small_disk import small_disk
from .jobs import (
    columns,
    job_settings,
    job_words,
    leases,
    ledger_of,
    make_table,
    running,
    wait_until,
)

Models = dict[str, str]
CRASHING = Path(__file__).parent / "crashing_decoder"


def data_file(uri: str, fragment: int) -> Path:
    """The file with the images of a fragment."""
    metadata = PairTable.open(uri).dataset.get_fragment(fragment).metadata
    return Path(uri) / "data" / str(metadata.files[0].path)


def test_a_driver_that_is_killed_loses_no_finished_batch(
    uri: str, models: Models, undisturbed: pa.Table
) -> None:
    settings = job_settings(models)
    pieces = CapFiltJob.prepare(uri, settings).folder
    with running(job_words(uri, models, "--processes", "1")) as process:
        assert wait_until(lambda: len(pieces.names("pieces/")) >= 2, process)
        process.kill()
    result = run_capfilt(uri, settings, processes=1)

    assert 0 < result.computed < result.rows
    assert columns(uri).equals(undisturbed)
    assert pieces.names("pieces/") == []


def test_a_job_that_is_stopped_gives_back_every_fragment(
    rows: list[PairRow], models: Models, tmp_path: Path
) -> None:
    many = [replace(row, id=f"{n} {row.id}") for n in range(6) for row in rows]
    uri = make_table(str(tmp_path / "pairs.lance"), many, 1).uri
    settings = job_settings(models)
    pieces = CapFiltJob.prepare(uri, settings).folder
    with running(job_words(uri, models, "--processes", "2")) as process:
        # Some of its units are done, the others wait or are being computed.
        assert wait_until(lambda: len(pieces.names("pieces/")) >= 8, process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate()
    assert process.returncode != 0, output
    assert ledger_of(uri, settings).counts() == {"waiting": 1, "leased": 0, "done": 0, "failed": 0}


@pytest.mark.parametrize(
    ("processes", "pool"),
    [(1, OneProcess), pytest.param(2, ManyProcesses, marks=pytest.mark.slow)],
)
def test_a_fragment_of_a_killed_driver_is_suspect_where_it_would_kill_this_one_too(
    processes: int,
    pool: type[OneProcess | ManyProcesses],
    uri: str,
    models: Models,
    undisturbed: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, given, start = job_settings(models), [], pool.start
    fragment = list_fragments(PairTable.open(uri), NEW_COLUMNS)[2]
    ledger = ledger_of(uri, settings)
    ledger.put(leased(Entry(fragment.number, fragment.digest, fragment.num_rows), "gone:1", 900.0))
    ledger.flush()

    def watched(self: OneProcess | ManyProcesses, worker: str, unit: Unit) -> None:
        given.append(unit)
        start(self, worker, unit)

    monkeypatch.setattr(pool, "start", watched)
    run_capfilt(uri, settings, processes=processes)

    careful = {unit.part for unit in given if unit.careful}
    assert careful == ({fragment.number} if processes == 1 else set())
    assert columns(uri).equals(undisturbed)


def killed_now_and_then(
    process: subprocess.Popen[str], uri: str, settings: CapFiltSettings, draw: random.Random
) -> int:
    """How many workers of the job were killed, at most 4, each at a random moment of its work."""
    kills = 0
    while kills < 4 and wait_until(lambda: leases(uri, settings), process):
        time.sleep(draw.random())
        for pid in leases(uri, settings):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                kills += 1
                break
        time.sleep(draw.random())
    return kills


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", ["--processes 2", "--ray local --workers 2"])
def test_twenty_kills_of_workers_at_random_moments_change_no_byte(
    workers: str, rows: list[PairRow], models: Models, tmp_path: Path
) -> None:
    settings, draw, kills, jobs = job_settings(models), random.Random(0), 0, 0
    many = [replace(row, id=f"{n} {row.id}") for n in range(12) for row in rows]
    plain = make_table(str(tmp_path / "plain.lance"), many, 8).uri
    run_capfilt(plain, settings, processes=1)
    while kills < 20:
        jobs += 1
        uri = make_table(str(tmp_path / f"{jobs}.lance"), many, 8).uri
        with running(job_words(uri, models, *workers.split())) as process:
            kills += killed_now_and_then(process, uri, settings, draw)
            output, _ = process.communicate()
        assert process.returncode == 0, output
        assert columns(uri).equals(columns(plain))


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_an_image_that_crashes_its_decoder_is_recorded(
    processes: int, rows: list[PairRow], models: Models, tmp_path: Path
) -> None:
    """And what the processes warn of is told once, in one line."""
    rows = list(rows)
    swapped = {"captioner": models["filter"], "filter": models["captioner"]}
    crash = b"\x89PNG SEGFAULT"
    rows[3] = replace(rows[3], id="truncated", image=(rows[3].image or b"")[:200])
    rows[20] = replace(rows[20], id="crash", image=crash)
    # In the undisturbed run the same row is merely unreadable.
    other = make_table(str(tmp_path / "other.lance"), rows, 4).uri
    warned = pytest.warns(UntrainedHead, match="this captioner was trained for")
    with warned, pytest.warns(UntrainedHead, match="this filter was trained for"):
        run_capfilt(other, job_settings(swapped), processes=1)
    uri = make_table(str(tmp_path / "pairs.lance"), rows, 4).uri

    words = job_words(uri, swapped, "--processes", str(processes))
    if processes == 1:  # the crash is the driver's own; the same command goes on after it
        with running(words, CRASHING) as process:
            process.communicate()
        assert process.returncode == -signal.SIGSEGV
    with running(words, CRASHING) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output

    made, plain = columns(uri), columns(other)
    assert made.drop_columns("capfilt_error").equals(plain.drop_columns("capfilt_error"))
    reasons = made["capfilt_error"].to_pylist()
    assert [n for n, reason in enumerate(reasons) if reason] == [3, 20, 30]
    assert "'crash': its decoder died (SIGSEGV)" in reasons[20]
    # All processes warn, also those that take the place of dead ones; whoever reads it needs one.
    assert output.count("openblip capfilt run: warning: this filter was trained for") == 1
    assert ".py:" not in output


@pytest.mark.slow
def test_a_batch_that_kills_every_worker_is_recorded(
    rows: list[PairRow], models: Models, undisturbed: pa.Table, tmp_path: Path
) -> None:
    deadly = io.BytesIO()
    Image.new("RGB", (40, 40), (1, 2, 3)).save(deadly, "PNG")
    rows = list(rows)
    rows[22] = replace(rows[22], image=deadly.getvalue())
    uri = make_table(str(tmp_path / "pairs.lance"), rows, 4).uri

    with running(job_words(uri, models, "--processes", "2"), CRASHING) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output

    made = columns(uri)
    reasons = made["capfilt_error"].to_pylist()
    size = PairTable.open(uri).dataset.get_fragment(0).count_rows()
    first = size + (22 - size) // 5 * 5
    batch = range(first, first + 5)
    assert [n for n, reason in enumerate(reasons) if reason] == [*batch, 30]
    assert "SIGSEGV" in reasons[22]
    assert made[:first].equals(undisturbed[:first])
    assert made[first + 5 :].equals(undisturbed[first + 5 :])


def test_a_fragment_that_cannot_be_read_fails_alone_and_is_tried_again(
    uri: str, models: Models, undisturbed: pa.Table
) -> None:
    settings = job_settings(models)
    file = data_file(uri, 1)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])

    result = run_capfilt(uri, settings, processes=1)

    assert len(result.failed) == 1
    assert file.name in result.failed[0]
    made = columns(uri)
    bad = PairTable.open(uri).dataset.get_fragment(0).count_rows()
    size = PairTable.open(uri).dataset.get_fragment(1).count_rows()
    assert set(made["capfilt_error"][bad : bad + size].to_pylist()) == set(result.failed)
    assert made[:bad].equals(undisturbed[:bad])
    assert made[bad + size :].equals(undisturbed[bad + size :])

    file.write_bytes(content)
    again = run_capfilt(uri, settings, processes=1)

    assert (again.failed, again.computed) == ((), size)
    assert columns(uri).equals(undisturbed)
    assert run_capfilt(uri, settings, processes=1).computed == 0


def test_a_failed_fragment_whose_file_is_lost_is_tried_again(
    uri: str, models: Models, undisturbed: pa.Table
) -> None:
    file = data_file(uri, 0)
    file.write_bytes(file.read_bytes()[:100])
    lost = threading.Event()

    def lose() -> None:
        while not lost.is_set():
            for found in (Path(uri) / "data").glob("capfilt-*-00000000-*.lance"):
                found.unlink()
                lost.set()
            time.sleep(0.001)

    thread = threading.Thread(target=lose)
    thread.start()
    try:
        result = run_capfilt(uri, job_settings(models), processes=1)
    finally:
        lost.set()
        thread.join()

    assert len(result.failed) == 1
    bad = PairTable.open(uri).dataset.get_fragment(0).count_rows()
    assert set(columns(uri)["capfilt_error"][:bad].to_pylist()) == set(result.failed)
    assert columns(uri)[bad:].equals(undisturbed[bad:])


def test_a_table_that_grows_meanwhile_is_completed_and_a_second_job_refused(
    uri: str, rows: list[PairRow], models: Models, undisturbed: pa.Table
) -> None:
    lock = Path(f"{uri}.capfilt/lock-00000001")
    with running(job_words(uri, models, "--processes", "1")) as process:
        assert wait_until(lock.exists, process)
        PairTable.open(uri).append([replace(row, id=f"new {row.id}") for row in rows[:7]])
        with pytest.raises(JobLockedError, match=rf"process {process.pid} on .* since 20"):
            run_capfilt(uri, job_settings(models, seed=5), processes=1)
        output, _ = process.communicate()
    assert process.returncode == 0, output

    made = columns(uri)
    assert made[: len(rows)].equals(undisturbed)
    assert made["synthetic"][len(rows) :].null_count == sum(r.origin != "web" for r in rows[:7])


def test_a_table_that_has_grown_gets_its_new_fragments_alone(
    uri: str, rows: list[PairRow], models: Models, undisturbed: pa.Table
) -> None:
    run_capfilt(uri, job_settings(models), processes=1)
    PairTable.open(uri).append([replace(row, id=f"new {row.id}") for row in rows[:7]])

    result = run_capfilt(uri, job_settings(models), processes=1)

    assert result.computed == 7
    assert columns(uri)[: len(rows)].equals(undisturbed)


@pytest.mark.slow
def test_a_data_file_that_was_changed_is_found_before_the_commit(
    uri: str, models: Models, undisturbed: pa.Table
) -> None:
    settings = job_settings(models)
    with running(job_words(uri, models, "--processes", "1")) as process:
        assert wait_until(lambda: ledger_of(uri, settings).counts()["done"], process)
        process.kill()
    files = sorted((Path(uri) / "data").glob("capfilt-*"))
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"?")
    run_capfilt(uri, settings, processes=1)

    assert columns(uri).equals(undisturbed)


_FULL = """
set -e
table=$1 disk=$2 result=$3; shift 3
cp -r "$table" "$disk/pairs.lance"
# Room for the ledger's first file, not for what follows.
head -c 900000 /dev/zero > "$disk/filler" || true
if "$@"; then echo "finished on a full disk"; exit 1; fi
rm "$disk/filler"
"$@"
cp -r "$disk/pairs.lance" "$result"
"""


@pytest.mark.slow
def test_a_full_disk_stops_the_job_and_more_room_lets_it_go_on(
    uri: str, models: Models, undisturbed: pa.Table, tmp_path: Path
) -> None:
    disk, result = tmp_path / "disk", tmp_path / "result.lance"
    words = [*small_disk(disk), "sh", "-c", _FULL, "sh", uri, str(disk), str(result)]
    words += job_words(str(disk / "pairs.lance"), models, "--processes", "1")
    with running(words) as process:
        output, _ = process.communicate()

    assert process.returncode == 0, output
    assert "No space left on device" in output
    assert columns(str(result)).equals(undisturbed)
