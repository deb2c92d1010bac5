"""Jobs that make columns of a table: the worker's loop, and what is missing and committed.

What is computed is the business of a `Computer`: how a batch of rows is read and begun with, what
columns come out, and what stands in rows that have none. All else is the same for every job: read
ahead, save pieces, find the batch that kills a worker, write a fragment's data file, commit.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from openblip.jobs.ledger import Entry, Ledger
from openblip.jobs.run import Standing
from openblip.jobs.units import (
    Event,
    Job,
    NoAnswerError,
    Pieces,
    Result,
    Unit,
    UnitDone,
    Waiting,
    batch_rows,
    num_batches,
)
from openblip.runtime.errors import DataError
from openblip.runtime.threads import one_thread, ordered_map
from openblip.table.columns import (
    ColumnFile,
    attach_columns,
    columns_schema,
    encode_columns,
    list_fragments,
)
from openblip.table.table import PairTable
from openblip.table.versions import again_after_conflicts

if TYPE_CHECKING:
    import pyarrow as pa

_Loaded = TypeVar("_Loaded")
Load = Callable[[PairTable, int, range], _Loaded]
"""As `Computer.load`."""


class ColumnJob(Job, Protocol):
    """A job whose results are columns of its table."""

    @property
    def columns(self) -> Sequence[str]:
        """The columns that it writes."""
        ...

    @property
    def filled_by(self) -> Sequence[str]:
        """Those of them in which a fragment must have values to count as done without a record."""
        ...

    @property
    def error_column(self) -> str:
        """The one of them that says why a row has no result."""
        ...

    def is_committed(self, table: PairTable) -> bool:
        """Whether a table has all columns of the job, and they are its own."""
        ...

    def columns_left_by(self, table: PairTable) -> Sequence[str]:
        """Other columns that go when those of another job are replaced."""
        ...

    def noted(self, num_rows: int) -> dict[str, str]:
        """What the table's metadata says of it from the commit on, for so many rows."""
        ...


class Computer(Protocol[_Loaded]):
    """What a worker computes with, loaded on one device."""

    @property
    def is_on_cpu(self) -> bool:
        """Whether it computes on the processor: then with one thread."""
        ...

    @property
    def num_begun(self) -> int:
        """Batches that should be under way with other programs, beside those read ahead."""
        ...

    def load(self, table: PairTable, fragment: int, rows: range) -> _Loaded:
        """Reads rows of a fragment, and begins with them; called in reading threads."""
        ...

    def guarded(self) -> AbstractContextManager["Load[_Loaded]"]:
        """As `load`, but an image that kills its decoder kills another process, and is told."""
        ...

    def wait(self, loaded: _Loaded) -> Iterator[Waiting]:
        """Yields while what was begun about a batch is not there yet."""
        ...

    def process(self, loaded: _Loaded) -> "pa.Table":
        """The columns of a batch."""
        ...

    def counts(self) -> Counter[str]:
        """What the batches since the last time have cost, if that is known."""
        ...

    def without_result(self, reason: str, num_rows: int) -> "pa.Table":
        """The columns of rows that have no result, all for one reason."""
        ...

    def close(self) -> None:
        """End what runs beside this thread."""
        ...


class ColumnWorker:
    """Computes units of fragments: given them one by one, it saves pieces on the way."""

    def __init__(
        self,
        job: ColumnJob,
        computer: Computer[Any],
        table: PairTable,
        save_seconds: float,
        decode_threads: int,
    ) -> None:
        """Takes over what was loaded.

        Args:
            job: settings and table.
            computer: of the job.
            table: of the job, in any version.
            save_seconds: finished batches of a fragment are saved when so much time has passed.
            decode_threads: how many batches are read and decoded at once, ahead of the device.
        """
        self._job, self._computer, self._table = job, computer, table
        self._pieces = Pieces(job.folder)
        self._save_seconds, self._decode_threads = save_seconds, decode_threads

    def close(self) -> None:
        """See `Worker.close`."""
        self._computer.close()

    def compute(self, unit: Unit) -> Iterator[Event]:
        """See `Worker.compute`.

        A CPU computes with one thread: the number of threads would change the last bits of a score.
        """
        clock = _SaveClock(0.0 if unit.careful else self._save_seconds)
        fresh: dict[int, pa.Table] = {}
        with one_thread() if self._computer.is_on_cpu else nullcontext():
            try:
                for done in self._computed(unit):
                    if isinstance(done, Waiting):
                        # Nobody knows how long: what is finished must not wait with it.
                        if done.line and fresh:
                            self._pieces.write(unit, fresh)
                            fresh.clear()
                        yield done
                        continue
                    batch, columns = done
                    fresh[batch] = columns
                    if clock.is_due():
                        self._pieces.write(unit, fresh)
                        fresh.clear()
                    yield columns.num_rows
                    if counts := self._computer.counts():
                        yield counts
            except NoAnswerError:
                self._pieces.write(unit, fresh)
                raise
        if unit.seals:
            yield UnitDone(self._seal(unit, fresh))
        else:
            self._pieces.write(unit, fresh)
            yield UnitDone(None)

    def _computed(self, unit: Unit) -> "Iterator[tuple[int, pa.Table] | Waiting]":
        table, computer = self._table_at(unit.version), self._computer
        size = self._job.batch_size
        rows = {batch: batch_rows(batch, unit.num_rows, size) for batch in unit.batches}
        for batch, reason in unit.blamed.items():
            if batch in rows:
                yield batch, computer.without_result(reason, len(rows.pop(batch)))

        if unit.careful:
            # One batch after the other, so that the first that is not saved is the guilty one.
            with computer.guarded() as load:
                for batch in rows:
                    loaded = load(table, unit.part, rows[batch])
                    yield from computer.wait(loaded)
                    yield batch, computer.process(loaded)
            return
        # Read and decoded while the device computes the batch before.
        ahead = ordered_map(
            lambda batch: computer.load(table, unit.part, rows[batch]),
            rows,
            self._decode_threads,
            self._decode_threads + 1 + computer.num_begun,
        )
        for batch, loaded in zip(rows, ahead, strict=True):
            yield from computer.wait(loaded)
            yield batch, computer.process(loaded)

    def _seal(self, unit: Unit, fresh: "dict[int, pa.Table]") -> Result:
        """Write the fragment's data file, from what was just computed and what was saved before."""
        import pyarrow as pa

        count = num_batches(unit.num_rows, self._job.batch_size)
        used_pieces = len(fresh) < count
        # What was saved of a fragment that cannot be read any more would make half a fragment.
        if unit.failure:
            columns = self._computer.without_result(unit.failure, unit.num_rows)
        else:
            if used_pieces:
                fresh = self._pieces.read(unit, self._job.batch_size) | fresh
            columns = pa.concat_tables([fresh[batch] for batch in range(count)])
        # No version of the table names the file: only the driver's commit makes it be seen.
        content = encode_columns(self._table, columns)
        name = unit.result_file(self._job)
        self._job.results.write(name, content)
        return Result(
            file=name,
            num_bytes=len(content),
            checksum=hashlib.sha256(content).hexdigest(),
            num_rows=columns.num_rows,
            num_errors=columns.num_rows - columns[self._job.error_column].null_count,
            used_pieces=used_pieces,
        )

    def _table_at(self, version: int) -> PairTable:
        if self._table.version < version:
            self._table = PairTable.open(self._job.table_uri)
        return self._table


class _SaveClock:
    """Says when what is finished should be saved."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether so much time has passed since the last save; if so, it starts again."""
        if time.monotonic() - self._saved < self._seconds:
            return False
        self._saved = time.monotonic()
        return True


class TableColumns:
    """The columns of a job in its table: which are missing, and how they get there."""

    def __init__(self, job: ColumnJob) -> None:
        self._job = job

    def look(self, ledger: Ledger, is_settled: Callable[[Entry], bool]) -> Standing:
        """The latest version of the table, and what is missing in it; reads no row.

        A fragment has one of four fates:

        | the ledger says | its columns in the table | fate |
        | --- | --- | --- |
        | nothing | are not those of this job | compute |
        | nothing | are those of this job | leave: the ledger is gone, or rows were compacted |
        | waiting, leased; failed before this call | any | compute (again) |
        | done; failed in this call | are not its file, or not committed | commit its file |
        | done; failed in this call | are its file, committed | leave |
        """
        table = PairTable.open(self._job.table_uri)
        committed = self._job.is_committed(table)
        missing, computed = [], {}
        for fragment in list_fragments(table, self._job.filled_by):
            entry = ledger.find(fragment.number, fragment.digest)
            if entry is None:
                # Committed by a job whose ledger is gone, or compacted since.
                if not (committed and fragment.filled):
                    missing.append(fragment)
            elif not is_settled(entry):
                missing.append(fragment)
            # Columns that are replaced are replaced in all fragments: a kill before the metadata
            # were written leaves files that stand in the table, and are not committed.
            elif not committed or entry.file not in fragment.files:
                computed[fragment.number] = entry
        return Standing(
            version=table.version,
            num_rows=len(table),
            is_committed=committed,
            missing=missing,
            computed=computed,
        )

    def commit(self, standing: Standing) -> None:
        """Make the data files a part of the table; killed here, the next call does it again."""
        table = PairTable.open(self._job.table_uri)
        if standing.computed:
            files = {n: ColumnFile(e.file, e.num_bytes) for n, e in standing.computed.items()}
            # What another job said would stand beside texts that it is not about.
            dropped = [] if standing.is_committed else self._job.columns_left_by(table)
            replace = not standing.is_committed
            if replace:
                self._withdraw_note(table, standing)
            attach_columns(table, files, self._schema(standing), replace=replace, dropped=dropped)
        # Last, as it is what `is_committed` looks at: a kill before it commits the files once more.
        if not standing.is_committed:
            noted = self._job.noted(standing.num_rows)
            again_after_conflicts(lambda: PairTable.open(table.uri).update_metadata(noted))

    def _withdraw_note(self, table: PairTable, standing: Standing) -> None:
        """Take back what another job says of the columns that are about to be replaced.

        A kill between the two commits would leave its note beside columns that are not its own: the
        same job, called again without its ledger, would believe them.
        """
        stale = [key for key in self._job.noted(standing.num_rows) if key in table.metadata]
        if stale:
            empty = dict.fromkeys(stale, "{}")
            again_after_conflicts(lambda: PairTable.open(table.uri).update_metadata(empty))

    def _schema(self, standing: Standing) -> "pa.Schema":
        """Names and types of the columns, as a worker has written them: it knows the model."""
        file = next(iter(standing.computed.values())).file
        content = self._job.results.read(file)
        if content is None:
            raise DataError(f"{self._job.results.uri}/{file} was lost: run the same command again")
        return columns_schema(content)
