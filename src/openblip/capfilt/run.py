"""Runs a CapFilt job over a table, in one or several processes, and resumes it."""

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from openblip.capfilt.job import METADATA_KEY, CapFiltJob, CapFiltSettings
from openblip.capfilt.worker import NEW_COLUMNS, Worker
from openblip.data.table import PairTable
from openblip.errors import OpenBlipError
from openblip.progress import Progress


@dataclass(frozen=True)
class CapFiltResult:
    """What a finished job did."""

    rows: int
    """Rows of the table."""
    computed: int
    """Rows that this call worked on; the others were done before."""
    errors: int
    """Rows without result; column `capfilt_error` says why."""
    seconds: float


def run_capfilt(
    table: str | Path, settings: CapFiltSettings, *, processes: int | None = None
) -> CapFiltResult:
    """Caption and score the web rows of a table; the results become columns of it.

    The result depends on the table, the models and the settings alone. A job that was stopped at
    any moment goes on where it was; one that is complete is not done again. Every CPU process
    computes with one thread: the number of threads would change the last bits of a score.

    Args:
        table: where the `PairTable` lies.
        settings: models, decoding and seed.
        processes: default: one for each GPU, or for each core where there is none.

    Raises:
        DataError, CheckpointError, MissingHead: if table or models cannot be used.
        OpenBlipError: if a worker process died; the finished parts are kept.
    """
    started = time.perf_counter()
    opened = PairTable.open(str(table))
    job = CapFiltJob.plan(opened, settings)
    if _is_complete(opened, job):
        return CapFiltResult(len(opened), 0, _count_errors(opened), 0.0)
    missing = sorted(set(range(job.num_parts)) - job.finished())
    computed = sum(len(job.rows(part)) for part in missing)
    devices = _devices(processes)
    with Progress("capfilt", total=len(opened), unit="images") as progress:
        progress.update(len(opened) - computed)
        if len(devices) == 1:
            Worker(job, devices[0]).run(missing, progress.update)
        elif missing:
            _run_processes(job, missing, devices, progress)
    _commit(job)
    errors = _count_errors(PairTable.open(str(table)))
    return CapFiltResult(len(opened), computed, errors, time.perf_counter() - started)


def _devices(processes: int | None) -> list[str]:
    gpus = torch.cuda.device_count()
    if gpus:
        return [f"cuda:{number % gpus}" for number in range(processes or gpus)]
    return ["cpu"] * (processes or os.cpu_count() or 1)


def _is_complete(table: PairTable, job: CapFiltJob) -> bool:
    stored = table.metadata.get(METADATA_KEY, "")
    return f'"fingerprint": "{job.fingerprint}"' in stored and set(NEW_COLUMNS) <= set(
        table.columns
    )


def _count_errors(table: PairTable) -> int:
    return sum(
        batch.num_rows - batch["capfilt_error"].null_count
        for batch in table.scan(["capfilt_error"])
    )


def _commit(job: CapFiltJob) -> None:
    """Turn the parts into columns. Killed here, the next call does it again from the parts."""
    import pyarrow as pa

    table = PairTable.open(job.table_uri)
    table.add_columns(pa.Table.from_batches(job.read_all()), overwrite=True)
    table.update_metadata({METADATA_KEY: job.description()})
    job.remove_parts()


def _run_processes(
    job: CapFiltJob, parts: Sequence[int], devices: list[str], progress: Progress
) -> None:
    # Spawned, since neither CUDA nor the table's reader survives a fork.
    context = multiprocessing.get_context("spawn")
    messages: multiprocessing.Queue[int | OpenBlipError] = context.Queue()
    workers = [
        context.Process(
            target=_worker_main,
            args=(job, list(parts[rank :: len(devices)]), device, messages),
            daemon=True,
        )
        for rank, device in enumerate(devices)
    ]
    for worker in workers:
        worker.start()
    try:
        _watch(workers, messages, sum(len(job.rows(part)) for part in parts), progress)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _watch(
    workers: Sequence[BaseProcess],
    messages: "multiprocessing.Queue[int | OpenBlipError]",
    rows: int,
    progress: Progress,
) -> None:
    while rows > 0:
        try:
            message = messages.get(timeout=1.0)
        except queue.Empty:
            _check_alive(workers)
            continue
        if isinstance(message, OpenBlipError):
            raise message
        rows -= message
        progress.update(message)


def _check_alive(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        if worker.exitcode not in (None, 0):
            raise OpenBlipError(
                f"a CapFilt process died with exit code {worker.exitcode} (-9: killed, often for "
                "want of memory); what it finished is kept: run the same command to go on, with "
                "fewer --processes or a smaller --batch-size"
            )


def _worker_main(
    job: CapFiltJob,
    parts: list[int],
    device: str,
    messages: "multiprocessing.Queue[int | OpenBlipError]",
) -> None:
    # Ctrl-C reaches the whole process group; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Worker(job, device).run(parts, messages.put)
    except OpenBlipError as error:
        messages.put(error)
