"""One call on a job: look what is missing, compute it, commit it, until nothing is missing.

Parts may come while it computes, and a killed call has left some of its work: so each turn looks
anew, at what there is and at the ledger, and does the one thing that is next.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from openblip.jobs.driver import Driver
from openblip.jobs.ledger import Entry, Ledger, open_store, released
from openblip.jobs.lock import JobLock
from openblip.jobs.pools import Pool
from openblip.jobs.units import Job, Part, Pieces, rows_in
from openblip.runtime.progress import Progress

LATEST = "latest"
"""Name of the file that holds the fingerprint of the job of its kind that was started last."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a job is, as its target shows it now."""

    version: int
    """Of the table that has the parts; 0 where they are in none."""
    num_rows: int
    """Of all parts."""
    is_committed: bool
    """Whether what stands there already is of this job."""
    missing: Sequence[Part]
    """Parts to compute."""
    computed: dict[int, Entry]
    """By number, parts with a result that the next commit must make visible."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.is_committed and not self.missing and not self.computed


class Target(Protocol):
    """Where the results of a job's parts go; used by the driver's process alone."""

    def look(self, ledger: Ledger, is_settled: Callable[[Entry], bool]) -> Standing:
        """How far the job is now; reads no row.

        Args:
            ledger: what is recorded of each part.
            is_settled: whether a part with such an entry need not be computed (again).
        """
        ...

    def commit(self, standing: Standing) -> None:
        """Make all results of a job's standing visible, whole or not at all.

        Killed at any moment of it, the next call looks, and commits what is not yet committed.
        """
        ...


class Run:
    """One call on a job: computes until no part is missing, those that came meanwhile too."""

    def __init__(
        self,
        job: Job,
        target: Target,
        start_pool: Callable[[], Pool],
        show_progress: bool = True,
    ) -> None:
        """Reads the ledger; nothing is computed before `complete`.

        Args:
            job: what is to be done.
            target: where it goes.
            start_pool: called once, when there is something to compute.
            show_progress: on stderr.
        """
        self.job, self.target, self._start_pool = job, target, start_pool
        self._show_progress = show_progress
        self.ledger = Ledger(job.folder, job.kind.title)
        self.computed = 0
        """Rows that this call has worked on."""
        self.counts: Counter[str] = Counter()
        """What its workers have counted."""
        self.failed: dict[tuple[int, str], str] = {}
        """Why this call could not read a part."""

    def look(self) -> Standing:
        """How far the job is."""
        return self.target.look(self.ledger, self._is_settled)

    def _is_settled(self, entry: Entry) -> bool:
        """Whether a part is done, or could not be read by this call."""
        failed = entry.state == "failed" and (entry.part, entry.digest) in self.failed
        return entry.state == "done" or failed

    def complete(self) -> Standing:
        """How the job is when it is complete: computes and commits till then, as the only one.

        Raises:
            JobLockedError: another job of this kind works on the table.
            OpenBlipError: the job cannot go on; what is finished is kept.
        """
        folder = open_store(self.job.kind.folder(self.job.table_uri))
        with JobLock(folder, self.job.kind) as lock:
            # What another job has written before this one had the lock counts too.
            self.ledger = Ledger(self.job.folder, self.job.kind.title)
            # Before any work: what lies in the folder can be told apart also after a kill.
            self.job.folder.write("job.json", self.job.description().encode())
            folder.write(LATEST, self.job.fingerprint.encode())
            return self._complete(lock)

    def _complete(self, lock: JobLock) -> Standing:
        pool: Pool | None = None
        driver: Driver | None = None
        try:
            # Rows may be appended while it computes, so it looks again until nothing is left.
            while not (standing := self.look()).is_complete:
                if standing.missing:
                    pool = pool or self._start_pool()
                    driver = self._compute(standing, pool, lock)
                elif self._verify(standing.computed):
                    # The one step that another job could not undo: asked for once more, before it.
                    lock.verify()
                    self.target.commit(standing)
            if driver is not None:
                driver.finish()
            return standing
        finally:
            if pool is not None:
                pool.close()

    def _compute(self, standing: Standing, pool: Pool, lock: JobLock) -> Driver:
        pieces = Pieces(self.job.folder).all_finished()
        rows_missing = sum(part.num_rows for part in standing.missing)
        saved = sum(
            rows_in(pieces.get((part.number, part.digest), ()), part.num_rows, self.job.batch_size)
            for part in standing.missing
        )
        interrupted = {e.part for e in self.ledger.entries() if e.state == "leased"}
        kind, total = self.job.kind, standing.num_rows
        done_before = total - rows_missing + saved
        with Progress(
            kind.name, total, kind.things, start=done_before, enabled=self._show_progress
        ) as progress:
            driver = Driver(self.job, self.ledger, pool, progress, lock.check)
            driver.run(standing.missing, standing.version, pieces, interrupted)
        self.computed += rows_missing - saved
        self.counts.update(driver.counts)
        for entry in self.ledger.entries():
            if entry.state == "failed":
                self.failed[entry.part, entry.digest] = entry.reason
        return driver

    def _verify(self, computed: dict[int, Entry]) -> bool:
        """Whether all results are what their workers wrote; else these are computed again."""

        def is_whole(entry: Entry) -> bool:
            content = self.job.results.read(entry.file)
            return content is not None and hashlib.sha256(content).hexdigest() == entry.checksum

        with ThreadPoolExecutor(8) as threads:
            whole = list(threads.map(is_whole, computed.values()))
        for entry, good in zip(computed.values(), whole, strict=True):
            if not good:
                self.job.results.remove(entry.file)
                reason = f"{entry.file} was changed or lost after it had been written"
                self.ledger.put(released(entry, reason))
        self.ledger.flush()
        return all(whole)
