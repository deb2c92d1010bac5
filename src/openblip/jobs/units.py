"""What a job is made of, whatever it makes: parts, units of their batches, words about them.

A **job** is work on many **parts**, each of which must be done once; a part is done in batches, by
workers that are given **units** of them. Who computes a batch decides nothing of what is in it.

| what a job makes | its parts | the result of a part | how results are committed |
| --- | --- | --- | --- |
| columns of a table (`columns.py`) | fragments | a data file with the new columns | attached |
| rows of a table, from a source | its shards | new fragments, told by a JSON file | appended |

Three things make a kind of work a job: a `Job`, which each worker gets, the `Worker` that it opens,
and a `Target` (`run.py`), with which the driver's side looks at what is missing and commits.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from openblip.jobs.ledger import Store
from openblip.runtime.errors import OpenBlipError

if TYPE_CHECKING:
    import pyarrow as pa


class NoAnswerError(OpenBlipError):
    """Whom a worker asks gives no answer any more; its finished batches are saved."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What jobs of a kind are called."""

    name: str
    """In the names of their files; those of a table lie beside it in `TABLE.NAME`."""
    title: str
    """As people are told: "another TITLE job works on this table"."""
    things: str = "images"
    """What a part has rows of, for the line of progress."""
    status: str = ""
    """The command that shows how far a job is, if there is one."""
    suffix: str = "lance"
    """Of the files that hold the results of parts."""
    shown: tuple[str, ...] = ()
    """Which of the things that workers count are shown with the progress."""

    def folder(self, table_uri: str) -> str:
        """Where the jobs of a table keep their files, beside it."""
        return f"{table_uri.rstrip('/')}.{self.name}"


class Part(Protocol):
    """Work that is recorded as a whole; a fragment of a table is one."""

    @property
    def number(self) -> int:
        """Tells it from the other parts of its job."""
        ...

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of what it is: when they change, it has to be done anew."""
        ...

    @property
    def num_rows(self) -> int:
        """What is divided into batches; 1 of a part that nobody can divide, or has counted."""
        ...


@dataclass(frozen=True)
class Result:
    """What has become of a part: a file among the job's results, which nobody reads yet."""

    file: str
    num_bytes: int
    checksum: str
    """SHA-256 of the file."""
    num_rows: int
    num_errors: int
    """Rows without result."""
    used_pieces: bool
    """Whether batches of the part were saved, and may go now."""


@dataclass(frozen=True)
class UnitDone:
    """A worker's last word on a unit; `result` is there if the unit seals its part."""

    result: Result | None


@dataclass(frozen=True)
class Waiting:
    """A worker is well, and waits for somebody else."""

    line: str
    """What for, if people should know it; else empty."""


Event = int | Waiting | UnitDone | Counter[str]
"""What a worker says of a unit: rows that are finished (0: it is still at work), that it waits,
that the unit is done, and what it has counted since it last said so."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Some batches of one part; the last unit of a part writes its result."""

    part: int
    digest: str
    num_rows: int
    """Rows of the part."""
    version: int
    """Version of the table that has the part."""
    batches: tuple[int, ...]
    """What to compute; the part's other batches are saved pieces, or another unit's."""
    seals: bool
    """Whether the part's result is written when the batches are done."""
    attempt: int = 1
    careful: bool = False
    """Open images in a process of their own and save every batch: somebody died on this before."""
    blamed: Mapping[int, str]
    """Batches that are not computed, since they killed worker after worker, with the reason."""
    failure: str = ""
    """Why the part cannot be read: the reason that each of its rows gets."""

    def result_file(self, job: "Job") -> str:
        """Name of the file with the result; another attempt never writes the same one."""
        # A worker that was given up may write still: under one name it would spoil the file that
        # its successor has reported.
        name = f"{job.kind.name}-{job.fingerprint}-{self.part:08d}-{self.digest}-{self.attempt}"
        return f"{name}.{job.kind.suffix}"


class Worker(Protocol):
    """What computes units, in the process that has opened it."""

    def compute(self, unit: Unit) -> Iterator[Event]:
        """Compute a unit; yields what there is to say of it, and at last a `UnitDone`.

        Raises:
            DataError: the part cannot be read.
            OpenBlipError: the job cannot go on.
        """
        ...

    def close(self) -> None:
        """End what runs beside this thread; nothing is computed afterwards."""
        ...


class Job(Protocol):
    """Work on a table, as driver and workers know it; sent to each worker's process."""

    @property
    def kind(self) -> Kind:
        """What it is called."""
        ...

    @property
    def table_uri(self) -> str:
        """Of the table that it works on, or makes."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of all that decides what it writes, the size of a batch too."""
        ...

    @property
    def batch_size(self) -> int:
        """Consecutive rows of a part that are worked on together."""
        ...

    @property
    def folder(self) -> Store:
        """Ledger and unfinished work of this job."""
        ...

    @property
    def results(self) -> Store:
        """Where the results of parts are written, for the commit to find."""
        ...

    def description(self) -> str:
        """What decides what it writes, as JSON: noted in its folder."""
        ...

    def open_worker(self, device: str, save_seconds: float, decode_threads: int) -> Worker:
        """A worker of this process.

        Args:
            device: such as "cpu" or "cuda:0".
            save_seconds: finished batches are saved when so much time has passed.
            decode_threads: how many batches are read and decoded at once, ahead of the device.

        Raises:
            OpenBlipError: it cannot begin; the job stops.
        """
        ...


def num_batches(num_rows: int, batch_size: int) -> int:
    """Batches of a part, the short last one included."""
    return -(-num_rows // batch_size)


def batch_rows(batch: int, num_rows: int, batch_size: int) -> range:
    """Rows of a batch, counted from the first of its part, which has `num_rows`."""
    return range(batch * batch_size, min((batch + 1) * batch_size, num_rows))


def rows_in(batches: Iterable[int], num_rows: int, batch_size: int) -> int:
    """How many rows some batches of a part have, which has `num_rows`."""
    return sum(len(batch_rows(batch, num_rows, batch_size)) for batch in batches)


class Pieces:
    """Finished batches of parts that are not finished, saved so that a kill loses seconds."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, unit: Unit, columns: "Mapping[int, pa.Table]") -> None:
        """Save batches; runs of consecutive ones share a file.

        Raises:
            StorageError: they cannot be written.
        """
        import pyarrow as pa

        # Not a file a batch: in an object store each is a request to write, read and remove.
        for run in _runs(columns):
            table = pa.concat_tables([columns[batch] for batch in run])
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            # The name says which batches are in it, so that one listing tells what is finished.
            name = f"{_folder(unit.part, unit.digest)}{run[0]:08d}-{run[-1]:08d}"
            self._store.write(name, sink.getvalue())

    def read(self, unit: Unit, batch_size: int) -> "dict[int, pa.Table]":
        """The saved batches of a unit's part.

        Raises:
            StorageError: they cannot be read.
        """
        import pyarrow as pa

        found = {}
        for name in self._store.names(_folder(unit.part, unit.digest)):
            # Listed, and gone since: the part was finished by somebody else, and its pieces
            # removed.
            if (content := self._store.read(name)) is None:
                continue
            table = pa.ipc.open_stream(content).read_all()
            first, last = _span(name)
            # Of units that were given out again, pieces may overlap; they say the same.
            for batch in range(first, last + 1):
                found[batch] = table.slice((batch - first) * batch_size, batch_size)
        return found

    def finished(self, part: int, digest: str) -> set[int]:
        """Numbers of the saved batches of a part."""
        spans = [_span(name) for name in self._store.names(_folder(part, digest))]
        return {batch for first, last in spans for batch in range(first, last + 1)}

    def all_finished(self) -> dict[tuple[int, str], set[int]]:
        """Numbers of the saved batches, by part and digest; one listing."""
        found: dict[tuple[int, str], set[int]] = {}
        for name in self._store.names("pieces/"):
            part, digest = name.split("/")[1].split("-")
            first, last = _span(name)
            found.setdefault((int(part), digest), set()).update(range(first, last + 1))
        return found

    def remove(self, part: int, digest: str) -> None:
        """Delete the pieces of a part, once its result is recorded."""
        self._remove(_folder(part, digest))

    def clear(self) -> None:
        """Delete all pieces, those included that a driver left which was killed too soon."""
        self._remove("pieces/")

    def _remove(self, prefix: str) -> None:
        for name in self._store.names(prefix):
            self._store.remove(name)


def _folder(part: int, digest: str) -> str:
    # With the digest, so that of a part which has changed since no old piece is taken.
    return f"pieces/{part:08d}-{digest}/"


def _span(name: str) -> tuple[int, int]:
    first, last = name.rsplit("/", 1)[1].split("-")
    return int(first), int(last)


def _runs(batches: Iterable[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for batch in sorted(batches):
        if runs and runs[-1][-1] == batch - 1:
            runs[-1].append(batch)
        else:
            runs.append([batch])
    return runs
