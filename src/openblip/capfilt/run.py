"""Runs a CapFilt job over a table: plans, computes, and commits the new columns."""

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from openblip.batches.unknown_words import warn_of_unknown_words
from openblip.capfilt.captioners import divided, given_text
from openblip.capfilt.driver import Driver
from openblip.capfilt.endpoint import Requests
from openblip.capfilt.job import (
    LATEST,
    METADATA_KEY,
    SYNTHETIC_ERROR,
    CapFiltJob,
    CapFiltSettings,
    column_schema,
    columns_left_by,
    is_committed,
    jobs_folder,
)
from openblip.capfilt.ledger import Entry, Ledger, open_store, released
from openblip.capfilt.lock import JobLock
from openblip.capfilt.pools import ManyProcesses, OneProcess, Pool, RayCluster
from openblip.capfilt.worker import Pieces
from openblip.checkpoints.reading import find_model, read_outline
from openblip.inference.captions import cut_given
from openblip.inference.embedder import is_published_clip
from openblip.inference.loading import load_tokenizer
from openblip.runtime.errors import DataError, OpenBlipWarning, RecipeError
from openblip.runtime.progress import Progress
from openblip.runtime.threads import num_usable_cores
from openblip.sources.row_images import check_reachable
from openblip.table.columns import ColumnFile, Fragment, attach_columns, list_fragments
from openblip.table.table import PairTable
from openblip.table.versions import again_after_conflicts

# Rows whose captions are looked at for words that the filter does not know, and how far.
_SAMPLED_ROWS, _SAMPLED_AT_ONCE, _READ_TOKENS = 1024, 32, 35


@dataclass(frozen=True)
class CapFiltResult:
    """What a finished job did."""

    rows: int
    """Rows of the table."""
    computed: int
    """Rows that this call worked on; the others were done before."""
    errors: int
    """Rows without result; column `capfilt_error` says why."""
    refused: int
    """Rows about which a captioner wrote nothing; column `synthetic_error` says which, and why."""
    failed: tuple[str, ...]
    """Why fragments could not be read; a later call tries them again."""
    seconds: float


def run_capfilt(
    table: str | Path,
    settings: CapFiltSettings,
    *,
    processes: int | None = None,
    ray: RayCluster | None = None,
    save_seconds: float = 10.0,
    requests: Requests | None = None,
) -> CapFiltResult:
    """Caption and score the web rows of a table; the results become columns of it.

    The result depends on the table, the models and the settings alone. A job that was stopped at
    any moment goes on where it was; one that is complete is not done again, and a table that has
    grown gets only its new rows done. Every CPU worker computes with one thread: the number of
    threads would change the last bits of a score.

    Args:
        table: where the `PairTable` lies.
        settings: models, decoding and seed.
        processes: default: one for each GPU, or for each core where there is none. One computes in
            this process.
        ray: workers of a Ray cluster instead of processes of this machine.
        save_seconds: unfinished fragments are saved so often; what a killed worker loses.
        requests: how the servers of `openai:` captioners are asked.

    Raises:
        RecipeError: a setting is out of range.
        DataError, CheckpointError, MissingHead: if table or models cannot be used.
        JobLockedError: another job works on the table.
        EndpointError: a server gives no captions any more.
        OpenBlipError: the job cannot go on; what is finished is kept.
    """
    started = time.perf_counter()
    if processes is not None and processes < 1:
        raise RecipeError(f"--processes {processes}: at least 1 process does the work")
    opened = PairTable.open(str(table))
    check_reachable(opened)
    if not len(opened):
        raise DataError(f"{table} has no rows: `openblip data import SOURCE {table}` adds some")
    job = CapFiltJob.plan(str(table), settings, requests)
    run = _Run(job, lambda: _pool(job, processes, ray, save_seconds))
    if not run.look().is_complete:
        _warn_of_unknown_words(job)
        with JobLock(open_store(jobs_folder(job.table_uri))) as lock:
            run.complete(lock)
    opened = PairTable.open(job.table_uri)
    return CapFiltResult(
        rows=len(opened),
        computed=run.computed,
        errors=opened.count_values("capfilt_error"),
        refused=opened.count_values(SYNTHETIC_ERROR) if SYNTHETIC_ERROR in job.columns else 0,
        failed=tuple(run.failed.values()),
        seconds=time.perf_counter() - started,
    )


def _warn_of_unknown_words(job: CapFiltJob) -> None:
    """Judge the prompt and a sample of the captions here: each worker sees only a part of them."""
    rows, settings = _sampled_rows(PairTable.open(job.table_uri)), job.settings
    texts = [text for row in rows if row["origin"] == "web" for text in row["captions"] or []]
    # A published CLIP reads any word, in pieces.
    for source in (plan.source for plan in job.filters if not is_published_clip(plan.source)):
        tokenizer = load_tokenizer(source)
        captions = [tokenizer.cleaning.caption(text) for text in texts]
        what = f"captions of {len(rows):,} rows"
        if warn_of_unknown_words(tokenizer, captions, _READ_TOKENS, what):
            break
    if settings.given:
        _check_given(settings, rows)
    for captioner in settings.captioners:
        if divided(captioner)[0] != "ours":
            continue
        tokenizer = load_tokenizer(captioner)
        if warn_of_unknown_words(tokenizer, [settings.prompt], _READ_TOKENS, "prompts"):
            break


def _check_given(settings: CapFiltSettings, rows: Sequence[dict[str, Any]]) -> None:
    """Warn of given texts that are cut.

    Raises:
        RecipeError: no captioner reads any.
    """
    ours = [source for source in settings.captioners if divided(source)[0] == "ours"]
    outlines = {source: read_outline(find_model(source)) for source in ours}
    readers = {source: found for source, found in outlines.items() if found.given_tokens}
    if not readers:
        raise RecipeError(
            f"--given {settings.given}: none of {', '.join(settings.captioners)} was fine-tuned to "
            "read a given text; `openblip finetune captioner ... --given web` makes one"
        )
    given = [given_text(row["captions"] or ()) for row in rows if row["origin"] == "web"]
    for source, found in readers.items():
        if cut := cut_given(found.tokenizer, given, found.given_tokens):
            warnings.warn(
                f"{source} reads the first {found.given_tokens} tokens of a given text; of "
                f"{len(given):,} that were looked at {cut:,} are longer, and are cut: a captioner "
                "that is fine-tuned with a higher --data.given-tokens reads more",
                OpenBlipWarning,
                stacklevel=2,
            )


def _sampled_rows(table: PairTable) -> list[dict[str, Any]]:
    sampled = range(0, len(table), max(len(table) // _SAMPLED_ROWS, 1))
    rows: list[dict[str, Any]] = []
    for start in range(0, len(sampled), _SAMPLED_AT_ONCE):
        some = sampled[start : start + _SAMPLED_AT_ONCE]
        # A damaged part of the table is told of as a failed fragment, and does not stop the rest.
        with suppress(DataError):
            rows += table.take(some, ["captions", "origin"]).to_pylist()
    return rows


@dataclass(frozen=True)
class _View:
    """How a version of the table stands to the job."""

    table: PairTable
    is_committed: bool
    """Whether the columns are those of this job."""
    missing: list[Fragment]
    """Fragments to compute."""
    computed: dict[int, Entry]
    """Fragments with a data file that the next commit must make a part of the table."""

    @property
    def is_complete(self) -> bool:
        return self.is_committed and not self.missing and not self.computed


class _Run:
    """One call on a job: computes until no fragment is missing, those that came meanwhile too."""

    def __init__(self, job: CapFiltJob, start_pool: Callable[[], Pool]) -> None:
        self.job, self._start_pool = job, start_pool
        self.ledger = Ledger(job.folder)
        self.computed = 0
        self.failed: dict[tuple[int, str], str] = {}
        """Why this call could not read a fragment."""

    def look(self) -> _View:
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
        table = PairTable.open(self.job.table_uri)
        committed = is_committed(table, self.job.fingerprint, self.job.columns)
        missing, computed = [], {}
        for fragment in list_fragments(table, self.job.columns):
            entry = self.ledger.find(fragment.number, fragment.digest)
            if entry is None:
                # Committed by a job whose ledger is gone, or compacted since.
                if not (committed and fragment.filled):
                    missing.append(fragment)
            elif not self._is_settled(entry):
                missing.append(fragment)
            # Columns that are replaced are replaced in all fragments: a kill before the metadata
            # were written leaves files that stand in the table, and are not committed.
            elif not committed or entry.file not in fragment.files:
                computed[fragment.number] = entry
        return _View(table, committed, missing, computed)

    def _is_settled(self, entry: Entry) -> bool:
        """Whether a fragment is done, or could not be read by this call."""
        failed = entry.state == "failed" and (entry.fragment, entry.digest) in self.failed
        return entry.state == "done" or failed

    def complete(self, lock: JobLock) -> None:
        """Compute and commit until the table, as it is then, is complete.

        Raises:
            OpenBlipError: see `run_capfilt`.
        """
        # What another job has written before this one had the lock counts too.
        self.ledger = Ledger(self.job.folder)
        # Before any work: what lies in the folder can be told apart also after a kill.
        self.job.folder.write("job.json", self.job.description().encode())
        open_store(jobs_folder(self.job.table_uri)).write(LATEST, self.job.fingerprint.encode())
        pool: Pool | None = None
        driver: Driver | None = None
        try:
            # Rows may be appended while it computes, so it looks again until nothing is left.
            while not (view := self.look()).is_complete:
                if view.missing:
                    pool = pool or self._start_pool()
                    driver = self._compute(view, pool, lock)
                elif self._verify(view.computed):
                    # The one step that another job could not undo: asked for once more, before it.
                    lock.verify()
                    self._commit(view)
            if driver is not None:
                driver.finish()
        finally:
            if pool is not None:
                pool.close()

    def _compute(self, view: _View, pool: Pool, lock: JobLock) -> Driver:
        pieces = Pieces(self.job.folder).all_finished()
        rows_missing = sum(fragment.num_rows for fragment in view.missing)
        saved = sum(
            len(self.job.batch_rows(batch, fragment.num_rows))
            for fragment in view.missing
            for batch in pieces.get((fragment.number, fragment.digest), ())
        )
        interrupted = {e.fragment for e in self.ledger.entries() if e.state == "leased"}
        total = len(view.table)
        done_before = total - rows_missing + saved
        with Progress("capfilt", total=total, unit="images", start=done_before) as progress:
            driver = Driver(self.job, self.ledger, pool, progress, lock.check)
            driver.run(view.missing, view.table.version, pieces, interrupted)
        self.computed += rows_missing - saved
        for entry in self.ledger.entries():
            if entry.state == "failed":
                self.failed[entry.fragment, entry.digest] = entry.reason
        return driver

    def _verify(self, computed: dict[int, Entry]) -> bool:
        """Whether all data files are what their workers wrote; else these are computed again."""

        def is_whole(entry: Entry) -> bool:
            content = self.job.data_folder.read(entry.file)
            return content is not None and hashlib.sha256(content).hexdigest() == entry.checksum

        with ThreadPoolExecutor(8) as threads:
            whole = list(threads.map(is_whole, computed.values()))
        for entry, good in zip(computed.values(), whole, strict=True):
            if not good:
                self.job.data_folder.remove(entry.file)
                reason = f"{entry.file} was changed or lost after it had been written"
                self.ledger.put(released(entry, reason))
        self.ledger.flush()
        return all(whole)

    def _commit(self, view: _View) -> None:
        """Make the data files a part of the table; killed here, the next call does it again."""
        table = view.table
        if view.computed:
            files = {n: ColumnFile(e.file, e.num_bytes) for n, e in view.computed.items()}
            schema = column_schema(self.job.columns)
            # What another job said would stand beside texts that it is not about.
            dropped = [] if view.is_committed else columns_left_by(table, self.job.columns)
            replace = not view.is_committed
            attach_columns(table, files, schema, replace=replace, dropped=dropped)
        # Last, as it is what `is_committed` looks at: a kill before it commits the files once more.
        if not view.is_committed:
            done = {METADATA_KEY: self.job.description()}
            again_after_conflicts(lambda: PairTable.open(table.uri).update_metadata(done))


def _pool(
    job: CapFiltJob, processes: int | None, ray: RayCluster | None, save_seconds: float
) -> Pool:
    if ray is not None:
        from openblip.capfilt.pools import RayWorkers

        return RayWorkers(_shared(job, ray.workers or 1), ray, save_seconds)
    gpus = torch.cuda.device_count()
    count = processes or gpus or num_usable_cores()
    devices = [f"cuda:{number % gpus}" if gpus else "cpu" for number in range(count)]
    job = _shared(job, count)
    if count == 1:
        return OneProcess(job, devices[0], save_seconds)
    return ManyProcesses(job, devices, save_seconds)


def _shared(job: CapFiltJob, workers: int) -> CapFiltJob:
    """The job of each of some workers, which together make as many requests as one would."""
    return replace(job, requests=job.requests.shared(workers))
