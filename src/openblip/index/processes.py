"""Several processes of this machine that embed rows of a table, each with the model.

Which process embeds a row decides nothing: it is a function of the rows alone. A process that dies
ends the command; finished parts are kept by `compute_columns`, and the next call goes on.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from openblip.runtime.errors import CheckpointError, OpenBlipError
from openblip.runtime.threads import num_usable_cores, wait_without_spinning

if TYPE_CHECKING:
    import pyarrow as pa


_Job = tuple[str, str, str, int, str | None, int]
"""Table, model, its fingerprint, images at a time, device, threads."""


def devices_of(num_processes: int, device: str | None) -> list[str | None]:
    """Where each process embeds: on the device that was named, or on a GPU after the other.

    Args:
        num_processes: at least 1.
        device: None: the machine's GPUs, or the processor where there is none.
    """
    import torch

    gpus = torch.cuda.device_count() if device is None else 0
    return [f"cuda:{number % gpus}" if gpus else device for number in range(num_processes)]


class EmbeddingProcesses:
    """A context in which `embed` may be called from as many threads as there are processes."""

    def __init__(
        self,
        uri: str,
        model: str,
        fingerprint: str,
        devices: Sequence[str | None],
        batch_size: int,
        on_unreadable: Callable[[str], None],
    ) -> None:
        """Starts nothing yet.

        Args:
            uri: of the table.
            model: whatever `load_embedder` takes.
            fingerprint: of the model that was looked at; another one is refused.
            devices: of each process.
            batch_size: images at a time in each.
            on_unreadable: is told of each image that cannot be read, from several threads.
        """
        self._job = uri, model, fingerprint, batch_size
        self._devices, self._on_unreadable = list(devices), on_unreadable
        self._children: list[_Child] = []
        self._idle: SimpleQueue[_Child] = SimpleQueue()

    def __enter__(self) -> Self:
        threads = max(num_usable_cores() // len(self._devices), 1)
        # All are started before any is waited for: each loads the model first.
        self._children = [_Child((*self._job, device, threads)) for device in self._devices]
        for child in self._children:
            self._idle.put(child)
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.end()

    def embed(self, rows: range) -> "pa.Table":
        """The column `image_embedding` of some rows, by the next process that is free.

        Raises:
            CheckpointError, MissingHead: the model cannot be read, or is another by now.
            DataError: the table cannot be read.
            OpenBlipError: the process died.
        """
        child = self._idle.get()
        try:
            column, failed = child.embed(rows)
        finally:
            self._idle.put(child)
        for told in failed:
            self._on_unreadable(told)
        return column


class _Child:
    """A process and the pipe to it."""

    def __init__(self, job: _Job) -> None:
        # Spawned, since neither CUDA nor the table's reader survives a fork.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        wait_without_spinning()
        self._process = context.Process(target=_serve, args=(job, theirs), daemon=True)
        self._process.start()
        # Else the pipe would stay open when the process is gone, and nobody would hear of it.
        theirs.close()

    def embed(self, rows: range) -> "tuple[pa.Table, list[str]]":
        """The column of some rows, and what is said of those that cannot be read."""
        try:
            self._connection.send(rows)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=10)
            code = self._process.exitcode
            reason = ", often for want of memory" if code == -signal.SIGKILL else ""
            raise OpenBlipError(
                f"a process that embeds images died (exit code {code}{reason}); what is finished "
                "is kept: run the same command to go on, with fewer --processes or a smaller "
                "--batch-size"
            ) from error
        if isinstance(answer, OpenBlipError):
            raise answer
        column, failed = answer
        return column, failed

    def end(self) -> None:
        """Kill it: whatever it has not answered is not worth waiting for."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(job: _Job, connection: Connection) -> None:
    # Ctrl-C reaches the whole process group: it ends here without a word, and the parent speaks.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        try:
            _answer(job, connection)
        except OpenBlipError as error:
            # What kept it from starting is the answer to whatever is asked.
            while True:
                connection.recv()
                connection.send(error)


def _answer(job: _Job, connection: Connection) -> None:
    import torch

    from openblip.index.embeddings import embed_rows, embedding_width
    from openblip.inference.embedder import embedder_fingerprint, load_embedder
    from openblip.table.table import PairTable

    uri, model, fingerprint, batch_size, device, threads = job
    torch.set_num_threads(threads)
    loaded = load_embedder(model, device)
    # Only now: what was loaded must be what is checked.
    if embedder_fingerprint(model) != fingerprint:
        raise CheckpointError(f"{model} has changed since the command began: run it again")
    table, width = PairTable.open(uri), embedding_width(loaded)
    while True:
        rows, failed = connection.recv(), list[str]()
        column = embed_rows(loaded, table, rows, batch_size, width, failed.append)
        connection.send((column, failed))
