"""Hands out the parts of a job, takes back results, and outlives the workers.

A part is done in units: some of its batches, computed by one worker. A unit's way:

      _enqueue            _hand_out              _done
    ───────────► waiting ───────────► leased ───────────► its batches are saved as pieces,
                 _queue               _leases             or it seals: the result is written
                    ▲                    │
                    └────── _again ──────┤ _died: the worker was killed, or silent too long
               the batches that are not  │ _unreadable: up to MAX_READS times
               saved, as one unit        │
                                         └─► any other error stops the job

What holds whenever `_take` has returned, for each open part that has not failed:

- `num_units` counts its units that are waiting or leased, and at least one is;
- each of its batches is saved, or belongs to one of these units, and to no other;
- a unit that seals is its only unit. So when it runs nobody else writes pieces, and all batches
  but its own are saved.

When the last other unit is done, `_seal_if_last` queues one without batches that seals. A part
that has failed loses its waiting units; the last leased one is followed by one that seals it with
the reason in every row. The ledger knows parts alone: what it calls leased when this process is
killed is computed again but for the pieces.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from openblip.jobs.ledger import Activity, Entry, Ledger, leased, released
from openblip.jobs.pools import Died, Pool, Report
from openblip.jobs.units import (
    Job,
    Part,
    Pieces,
    Result,
    Unit,
    UnitDone,
    Waiting,
    batch_rows,
    num_batches,
)
from openblip.runtime.errors import DataError, OpenBlipError
from openblip.runtime.progress import Progress

LEASE_SECONDS = 900.0
"""A worker that finishes no batch for so long is ended, and its unit given to another."""
LEASE_BATCHES = 10
"""It gets the time of so many of the slowest batches yet, if that is more."""
MAX_READS = 3
"""A part that cannot be read so often is recorded as failed."""
MAX_DEATHS = 5
"""A batch that ends so many workers, alone with each of them, is recorded without result."""
MAX_DEATHS_IN_A_ROW = 12
"""So many deaths without any finished batch between them stop the job."""
FLUSH_SECONDS = 1.0


@dataclass
class _Open:
    """A part that is being worked on."""

    part: Part
    version: int
    finished: set[int]
    """Batches that are saved."""
    careful: bool = False
    num_units: int = 0
    """Units that are waiting or leased."""
    reads: int = 0
    """Attempts that failed because the part could not be read."""
    deaths: dict[int, int] = field(default_factory=dict)
    """How many workers died on a batch, alone with it."""
    blamed: dict[int, str] = field(default_factory=dict)
    failure: str = ""


@dataclass
class _Lease:
    unit: Unit
    until: float
    reported: float
    """When its worker was last heard of, in seconds since 1970."""
    rows: int = 0
    """Rows of finished batches, saved or not."""


class Driver:
    """Runs the missing parts of a job through a pool, and keeps the ledger."""

    def __init__(
        self,
        job: Job,
        ledger: Ledger,
        pool: Pool,
        progress: Progress,
        check: Callable[[], None],
    ) -> None:
        """Nothing runs before `run`.

        Args:
            job: settings and table.
            ledger: of the job.
            pool: started by the caller, who also closes it.
            progress: counts rows; those done before are counted already.
            check: called often; raises when this driver must stop.
        """
        self._job, self._ledger, self._pool = job, ledger, pool
        self._progress, self._check = progress, check
        self._pieces = Pieces(job.folder)
        self._open: dict[int, _Open] = {}
        self._queue: deque[Unit] = deque()
        self._leases: dict[str, _Lease] = {}
        self._obsolete: list[Unit] = []
        self.counts: Counter[str] = Counter()
        """What workers have counted, by name; batches that were lost count too."""
        self._waits: dict[str, str] = {}
        """What workers wait for and people were told of, by worker."""
        self._deaths_in_a_row = 0
        self._lease_seconds = LEASE_SECONDS
        self._flushed = 0.0
        self._started, self._rows_before = time.time(), progress.num_done

    def run(
        self,
        parts: Sequence[Part],
        version: int,
        saved: Mapping[tuple[int, str], set[int]],
        interrupted: set[int],
    ) -> None:
        """Compute parts until each is recorded as done or failed.

        Args:
            parts: those that are missing.
            version: of the table that has them.
            saved: batches of theirs that an earlier run has finished.
            interrupted: parts that were being computed when an earlier driver was killed.

        Raises:
            OpenBlipError: the job cannot go on; all that is finished is kept.
        """
        self._plan(parts, version, saved, interrupted)
        try:
            while self._queue or self._leases:
                self._check()
                self._hand_out()
                for report in self._pool.reports(FLUSH_SECONDS):
                    self._take(report)
                    self._flush()
                    self._check()
                self._end_silent()
                self._flush()
        except BaseException:
            # Workers may still compute: what they save is found as pieces, nobody hears the rest.
            self._leases.clear()
            for opened in self._open.values():
                entry = self._ledger.find(opened.part.number, opened.part.digest)
                if entry is not None and entry.state == "leased":
                    self._ledger.put(released(entry, "the job was stopped"))
            with suppress(OpenBlipError):  # the disk may be full: what stopped the job is said
                self._flush(force=True)
            raise
        self._flush(force=True)

    def finish(self) -> None:
        """Close the books, once the results are committed."""
        self._ledger.compact()
        self._ledger.flush(self._activity())
        self._pieces.clear()

    def _plan(
        self,
        parts: Sequence[Part],
        version: int,
        saved: Mapping[tuple[int, str], set[int]],
        interrupted: set[int],
    ) -> None:
        missing = 0
        for part in parts:
            finished = saved.get((part.number, part.digest), set())
            opened = self._open[part.number] = _Open(part, version, finished)
            if part.number in interrupted:
                self._remove_unfinished(part)
                # One of them may have killed that driver. If it kills a worker, this one is told.
                opened.careful = self._pool.dies_with_driver
            missing += len(self._missing(opened))
        # A few units for each worker, also where there are few parts; the division decides
        # who computes a batch, never what is in it.
        workers = self._pool.size_hint()
        most = max(missing if workers == 1 else -(-missing // (4 * workers)), 1)
        for opened in self._open.values():
            self._enqueue(opened, self._missing(opened), most)

    def _remove_unfinished(self, part: Part) -> None:
        """Remove what a driver that was killed may have left among the results."""
        entry = self._ledger.find(part.number, part.digest)
        unit = self._unit(self._open[part.number], (), seals=True)
        if entry is not None:
            self._job.results.remove(replace(unit, attempt=entry.attempts).result_file(self._job))

    def _missing(self, opened: _Open) -> list[int]:
        count = num_batches(opened.part.num_rows, self._job.batch_size)
        return [batch for batch in range(count) if batch not in opened.finished]

    def _enqueue(
        self, opened: _Open, batches: Sequence[int], most: int, first: bool = False
    ) -> None:
        """Queue units for batches; the part's only unit seals it."""
        runs = [tuple(batches[n : n + most]) for n in range(0, len(batches), most)] or [()]
        alone = len(runs) == 1 and opened.num_units == 0
        units = [self._unit(opened, run, seals=alone) for run in runs]
        opened.num_units += len(units)
        if first:
            self._queue.extendleft(reversed(units))
        else:
            self._queue.extend(units)

    def _unit(self, opened: _Open, batches: tuple[int, ...], seals: bool) -> Unit:
        return Unit(
            part=opened.part.number,
            digest=opened.part.digest,
            num_rows=opened.part.num_rows,
            version=opened.version,
            batches=batches,
            seals=seals,
            careful=opened.careful,
            blamed=dict(opened.blamed),
            failure=opened.failure,
        )

    def _hand_out(self) -> None:
        for worker in self._pool.idle(len(self._queue)):
            if not self._queue:
                break
            unit = self._queue.popleft()
            entry = leased(self._entry(unit), worker, self._lease_seconds)
            self._ledger.put(entry)
            unit = replace(unit, attempt=entry.attempts)
            self._leases[worker] = _Lease(unit, entry.until, time.time())
            # If the unit kills this process, the next one must know which it was.
            self._flush(force=self._pool.dies_with_driver)
            self._pool.start(worker, unit)

    def _take(self, report: Report) -> None:
        lease = self._leases.get(report.worker)
        # A worker without a unit: it was ended for its silence, or could not load its models.
        if lease is None:
            if isinstance(report.event, OpenBlipError):
                raise report.event
            return
        if isinstance(report.event, Waiting):
            self._waits_for(report.worker, lease, report.event.line)
            return
        if isinstance(report.event, Counter):
            self.counts.update(report.event)
            shown = {name: self.counts[name] for name in self._job.kind.shown}
            self._progress.update(0, **shown)
            return
        if isinstance(report.event, int):
            self._goes_on(report.worker)
            self._deaths_in_a_row = 0
            lease.rows += report.event
            now = time.time()
            # Never shorter than before: a cluster with one slow machine must not lose its work.
            slowest = LEASE_BATCHES * (now - lease.reported)
            self._lease_seconds = max(self._lease_seconds, slowest)
            lease.reported, lease.until = now, now + self._lease_seconds
            self._progress.update(report.event)
            return
        del self._leases[report.worker]
        opened = self._open[lease.unit.part]
        opened.num_units -= 1
        if isinstance(report.event, UnitDone):
            self._done(opened, lease.unit, report.event.result)
        elif isinstance(report.event, Died):
            self._died(opened, lease, report.event.reason)
        elif isinstance(report.event, DataError):
            self._unreadable(opened, lease, str(report.event))
        else:
            self._ledger.put(released(self._entry(lease.unit), str(report.event)))
            raise report.event

    def _waits_for(self, worker: str, lease: _Lease, line: str) -> None:
        """A worker is not silent while it waits; what it waits for is told once for all of them."""
        lease.until = time.time() + self._lease_seconds
        if not line:
            self._goes_on(worker)
            return
        if line not in self._waits.values():
            self._progress.note(line)
        self._waits[worker] = line

    def _goes_on(self, worker: str) -> None:
        told = self._waits.pop(worker, None)
        if told is not None and told not in self._waits.values():
            self._progress.note(f"{told.split()[0]} answers again")

    def _done(self, opened: _Open, unit: Unit, result: Result | None) -> None:
        if result is None:
            opened.finished.update(unit.batches)
            self._seal_if_last(opened)
            return
        self._ledger.put(
            replace(
                self._entry(unit),
                state="failed" if unit.failure else "done",
                until=0.0,
                reason=unit.failure,
                file=result.file,
                num_bytes=result.num_bytes,
                checksum=result.checksum,
                num_errors=result.num_errors,
            )
        )
        del self._open[unit.part]
        if unit.failure:
            self._progress.update(unit.num_rows)
        if result.used_pieces:
            self._obsolete.append(unit)

    def _died(self, opened: _Open, lease: _Lease, reason: str) -> None:
        unit = lease.unit
        self._deaths_in_a_row += 1
        # Each worker of a pool may die twice of the same cause, such as a full memory, and recover.
        if self._deaths_in_a_row >= MAX_DEATHS_IN_A_ROW + 2 * self._pool.size_hint():
            raise OpenBlipError(
                f"{self._deaths_in_a_row} {self._job.kind.title} workers in a row died without "
                f"finishing a batch, "
                f"the last by {reason}; what was finished is kept: run the same command to go on, "
                "with fewer workers or a smaller --batch-size"
            )
        opened.careful = True
        missing = self._take_stock(opened, lease)
        self._ledger.put(released(self._entry(unit), f"its worker died: {reason}"))
        # Nobody knows whether it was written whole; another attempt writes another name.
        if unit.seals:
            self._job.results.remove(unit.result_file(self._job))
        if unit.careful and missing:
            # Batches are saved one by one in their order, so the first that is not is the guilty.
            guilty = missing[0]
            opened.deaths[guilty] = opened.deaths.get(guilty, 0) + 1
            if opened.deaths[guilty] >= MAX_DEATHS:
                opened.blamed[guilty] = (
                    f"{MAX_DEATHS} workers died on the batch of this row, the last by {reason}"
                )
        self._again(opened, missing)

    def _unreadable(self, opened: _Open, lease: _Lease, reason: str) -> None:
        missing = self._take_stock(opened, lease)
        self._ledger.put(released(self._entry(lease.unit), reason))
        opened.reads += 1
        if opened.reads < MAX_READS:
            self._again(opened, missing)
            return
        number = opened.part.number
        opened.failure = reason
        waiting = [unit for unit in self._queue if unit.part == number]
        self._queue = deque(unit for unit in self._queue if unit.part != number)
        opened.num_units -= len(waiting)
        # All rows get the reason, those of saved batches too: they count once, when it is sealed.
        saved = opened.finished
        self._progress.update(-sum(self._num_rows(opened, batch) for batch in saved))
        self._seal_if_last(opened)

    def _take_stock(self, opened: _Open, lease: _Lease) -> list[int]:
        """Batches of a unit that are lost; the others were saved."""
        opened.finished = self._pieces.finished(opened.part.number, opened.part.digest)
        missing = [batch for batch in lease.unit.batches if batch not in opened.finished]
        saved = [batch for batch in lease.unit.batches if batch in opened.finished]
        rows = sum(self._num_rows(opened, batch) for batch in saved)
        self._progress.update(rows - lease.rows)
        return missing

    def _again(self, opened: _Open, missing: Sequence[int]) -> None:
        if opened.failure:
            self._seal_if_last(opened)
        else:
            self._enqueue(opened, missing, max(len(missing), 1), first=True)

    def _seal_if_last(self, opened: _Open) -> None:
        if not opened.num_units:
            self._enqueue(opened, (), 1, first=True)

    def _num_rows(self, opened: _Open, batch: int) -> int:
        return len(batch_rows(batch, opened.part.num_rows, self._job.batch_size))

    def _end_silent(self) -> None:
        now = time.time()
        for worker in [name for name, lease in self._leases.items() if lease.until < now]:
            self._pool.kill(worker)
            silence = now - self._leases[worker].reported
            reason = f"silence of {silence:.0f} s (a smaller --batch-size makes a batch shorter)"
            self._take(Report(worker, Died(reason)))

    def _entry(self, unit: Unit) -> Entry:
        found = self._ledger.find(unit.part, unit.digest)
        return found or Entry(unit.part, unit.digest, unit.num_rows)

    def _flush(self, force: bool = False) -> None:
        now = time.time()
        if not force and now - self._flushed < FLUSH_SECONDS:
            return
        self._flushed = now
        for lease in self._leases.values():
            entry = self._entry(lease.unit)
            # Not at each batch: the ledger would grow with the batches, not with the parts.
            if lease.until - entry.until > self._lease_seconds / 3:
                self._ledger.put(replace(entry, until=lease.until))
        self._ledger.flush(self._activity())
        # The pieces of a part may go once its result is on record.
        for unit in self._obsolete:
            self._pieces.remove(unit.part, unit.digest)
        self._obsolete.clear()

    def _activity(self) -> Activity:
        return Activity(
            time=time.time(),
            session_start=self._started,
            session_rows=self._progress.num_done - self._rows_before,
            rows_done=self._progress.num_done,
            workers=self._pool.num_working(),
            counts=dict(self.counts),
        )
