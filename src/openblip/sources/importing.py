"""The import itself: read, check, write, and carry on after an interruption."""

import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from openblip.jobs.pools import ManyProcesses, OneProcess, Pool, RayCluster, RayWorkers
from openblip.jobs.run import Run
from openblip.runtime.documents import encodable
from openblip.runtime.errors import DataError, OpenBlipWarning
from openblip.runtime.progress import Progress
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.bucket import root_of
from openblip.sources.checking import Checked, Checks, Ids, ImportSettings, Store
from openblip.sources.datasets_library import dataset_name, is_dataset_name
from openblip.sources.detect import open_source
from openblip.sources.report import (
    ESCAPED_IDS,
    ImportReport,
    Reason,
    has_escaped_ids,
    metadata_key,
)
from openblip.sources.sharded import (
    ImportJob,
    ImportTarget,
    Merged,
    begun,
    job_folder,
    remove_job,
)
from openblip.sources.source import Cursor, DividedSource, PairSource, Shard, SourceOptions
from openblip.sources.splits import FileSplits, SourceRoot, source_root
from openblip.table.rows import KnownRows, content_hash, id_hash
from openblip.table.storage import is_object_address
from openblip.table.table import ORIGINS, SPLITS, PairRow, PairTable
from openblip.table.versions import remove_fragments

# Work that a kill loses at most; each commit becomes a fragment of the table.
_COMMIT_ROWS, _COMMIT_BYTES, _COMMIT_SECONDS = 8192, 1 << 30, 60.0


@dataclass
class _State:
    """What is stored of an import: enough to carry on with it."""

    report: ImportReport
    cursor: Cursor | None = None
    version: int = 0
    """Version of the table after which the notes of appended rows are newer than this."""
    again: bool = False
    """Whether the source had been imported before, so that known ids are expected."""
    escaped_ids: bool = False
    """Whether the table had no rows before, so that `escaped` made all of its ids."""
    until: int | None = field(default=None, compare=False)
    """Number of rows at which to stop; None for the end of the source. Not stored."""

    def to_json(self) -> str:
        report = asdict(self.report)
        return json.dumps(
            {
                "report": report,
                "cursor": self.cursor,
                "version": self.version,
                "again": self.again,
                ESCAPED_IDS: self.escaped_ids,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "_State":
        values: dict[str, Any] = json.loads(text)
        report = ImportReport.from_dict(values["report"])
        is_again, is_escaped = values.get("again", False), values.get(ESCAPED_IDS, False)
        return cls(report, values["cursor"], values["version"], is_again, is_escaped)


def _on_disk(source: str | Path) -> str:
    """An absolute path: the import is the same one from wherever it is restarted."""
    if not str(source).strip():
        raise DataError("the name of the source is empty: give a file, a folder or a pattern")
    if is_dataset_name(str(source)):
        return str(dataset_name(str(source)))
    if is_object_address(str(source)):
        return str(source)
    path = Path(source)
    if os.path.exists(path) and not (path.is_file() or path.is_dir()):  # noqa: PTH110
        raise DataError(f"{source} is no regular file: write what comes from a pipe into one first")
    return str(path.absolute())


def import_pairs(
    source: str | Path,
    uri: str | Path,
    format: str | None = None,
    origin: str | None = None,
    split: str | None = None,
    *,
    store: Store = "bytes",
    ids: Ids = "key",
    limit: int | None = None,
    again: bool = False,
    without_captions: bool = False,
    num_threads: int | None = None,
    commit_rows: int = _COMMIT_ROWS,
    show_progress: bool = True,
    processes: int | None = None,
    ray: RayCluster | None = None,
    **options: Any,
) -> ImportReport:
    """Appends the pairs of a source to a pair table, which is made if there is none.

    Every image is decoded once, so that training never meets a broken one. What is damaged,
    unsafe, incomplete or there twice is left out and stands in the report, which is also stored
    with the table. Called again after an interruption, the import carries on where it was;
    called again after it is complete, it only returns the report, which then says so. A source of
    which nothing can be used makes no table, and is read anew each time.

    Args:
        source: a file, folder, or pattern; see `openblip.sources.detect`.
        uri: the table.
        format: one of `openblip.sources.detect.FORMATS`; None to find out.
        origin: `web` (noisy) or `human` (annotated); None takes the word of an exported row
            (`caption_sources`), or `web`.
        split: for all rows, whatever the source says; None takes the source's word, or `train`.
        store: `bytes` copies the encoded images, `uri` only notes where the files are.
        ids: `key` takes the source's ids, `sha256` the hash of the image, which drops images that
            are there twice.
        limit: stop at this many imported rows; a later call may go on with a larger one.
        again: read a source once more whose import is complete, and add the rows whose ids are
            new; rows of known ids stay as they are.
        without_captions: also take images that have no text, instead of refusing them.
        num_threads: that read and decode; None for one for each core, 2 to 16.
        commit_rows: rows that become visible, and safe, at a time.
        show_progress: on stderr.
        processes: that read shards of the source side by side, to the same end; None: this one.
        ray: workers of a Ray cluster instead; they reach source and table by the same paths.
        options: what the source does not say itself; the fields of `SourceOptions`.

    Raises:
        DataError: the source is of no known kind, an option does not fit it, or it is being
            imported in another way.
        JobLockedError: another import by several workers goes into the table.
    """
    settings = ImportSettings(
        source=_on_disk(source),
        format=format,
        origin=_one_of("origin", origin, ORIGINS),
        split=_one_of("split", split, SPLITS),
        store=store,
        ids=ids,
        options=SourceOptions(**options),
        without_captions=without_captions,
    )
    opened = _opened(settings)
    table = PairTable.open_if_any(uri)
    stored = _restored(table, settings) if table is not None else None
    is_read = again or not _is_done(stored)
    shards = _shards(opened, settings) if is_read and (processes or ray) else []
    _check_way(settings, str(uri), stored, shards, limit)
    empty = ImportReport(settings.source, str(uri), opened.format)
    state = replace(_continued(stored, empty, again), until=limit)
    if state.report.complete or _is_full(state):
        state.report.nothing_read = True
        return state.report
    run = _Import(settings, opened, table, state, commit_rows)
    if shards:
        run.run_shards(shards, processes or 1, ray, num_threads, show_progress)
    else:
        run.run(num_threads or default_threads(), show_progress)
    return state.report


def _opened(settings: ImportSettings) -> PairSource:
    opened = open_source(settings.source, settings.options, settings.format)
    if settings.store == "uri" and opened.format == "webdataset":
        raise DataError("images in .tar shards have no path of their own: use store='bytes'")
    if settings.store == "uri" and is_object_address(settings.source):
        raise DataError("images in shards of an object store have no path: use store='bytes'")
    return opened


def _is_done(stored: "_State | None") -> bool:
    return stored is not None and stored.report.complete


def _shards(source: PairSource, settings: ImportSettings) -> list[Shard]:
    """The shards of a source that workers may read; none, with a warning, if one has all work."""
    shards = source.shards() if isinstance(source, DividedSource) else []
    if sum(shard.size > 0 for shard in shards) > 1:
        return shards
    warnings.warn(
        f"{settings.source} cannot be divided ({source.format}): it is read by one process. "
        "Several tars or tables, and folders with many images, can be",
        OpenBlipWarning,
        stacklevel=3,
    )
    return []


def _check_way(
    settings: ImportSettings,
    uri: str,
    state: "_State | None",
    shards: Sequence[Shard],
    limit: int | None,
) -> None:
    """Nothing, if an import that was begun goes on in the way in which it was begun.

    Raises:
        DataError: it does not.
    """
    is_begun = begun(uri, settings.fingerprint()) is not None
    if is_begun and _is_done(state):
        # Killed after its commit.
        remove_job(uri, settings.fingerprint())
    elif is_begun and not shards:
        folder = job_folder(uri, settings.fingerprint())
        raise DataError(
            f"{settings.source}: several processes have begun to import it: go on with --processes "
            f"or --ray, or remove {folder} to begin anew"
        )
    elif shards and not is_begun and state is not None and not state.report.complete:
        raise DataError(
            f"{settings.source}: one process has begun to import it ({state.report.num_rows:,} "
            "rows so far): go on without --processes and --ray"
        )
    if shards and limit is not None:
        raise DataError("a limit takes the first rows: leave out --limit, or --processes and --ray")


def _continued(stored: "_State | None", empty: ImportReport, again: bool) -> "_State":
    """The state to go on with; `empty` is the report of what begins anew."""
    if stored is None or not stored.report.complete:
        return stored or _State(empty)
    if again:
        return _State(empty, again=True, escaped_ids=stored.escaped_ids)
    # One that came to nothing has nothing to be repeated: it may be mended now.
    return stored if stored.report.num_rows or stored.report.num_known else _State(empty)


class _Import:
    """One run of an import, from where an earlier one got to."""

    def __init__(
        self,
        settings: ImportSettings,
        source: PairSource,
        table: PairTable | None,
        state: _State,
        commit_rows: int,
    ) -> None:
        self._settings, self._source, self._table = settings, source, table
        self._key = metadata_key(settings.fingerprint())
        self._state, self._commit_rows = state, commit_rows
        self._was_duplicate = False
        self._known_rows: KnownRows | None = None
        self._is_finished = False
        self._timed = time.monotonic()

    def run(self, num_threads: int, show_progress: bool) -> None:
        """Imports to the end or the limit, and stores the report."""
        report = self._state.report
        progress = Progress(
            f"importing {Path(self._settings.source).name}",
            total=self._total() if show_progress else None,
            start=report.num_seen,
            enabled=show_progress,
        )
        with progress:
            check = checks_of(self._settings, self._source).check
            entries = self._source.entries(self._state.cursor)
            with closing(ordered_map(check, entries, num_threads, num_threads * 4)) as checked:
                first = self._first_row(checked, progress)
                if first is not None:
                    self._append(chain([first], checked), progress)
        if self._table is not None:
            # Entries without a row at the end were not committed with any.
            self._table.update_metadata({self._key: self._noted()})

    def run_shards(
        self,
        shards: Sequence[Shard],
        processes: int,
        cluster: RayCluster | None,
        num_threads: int | None,
        show_progress: bool,
    ) -> None:
        """Imports shards by many workers, and stores the report."""
        assert isinstance(self._source, DividedSource)
        state, uri = self._state, self._state.report.uri
        known = begun(uri, self._settings.fingerprint())
        state.again = bool(known["again"]) if known is not None else state.again
        checks = checks_of(self._settings, self._source)
        # Other machines have other working directories.
        place = uri if "://" in uri else str(Path(uri).absolute())
        job = ImportJob(place, self._source, tuple(shards), checks, state.again, num_threads)
        if known is None and self._table is not None:
            # First what is begun, then that nothing is complete: so a job that is there and a
            # report that is complete mean that the job was committed.
            job.begin()
            state.version = self._table.version
            self._table.update_metadata({self._key: self._noted()})

        def start_pool() -> Pool:
            if cluster is not None:
                return RayWorkers(job, replace(cluster, gpus_per_worker=0.0), 0.0)
            if processes == 1:
                return OneProcess(job, "cpu", 0.0)
            return ManyProcesses(job, ["cpu"] * processes, 0.0)

        state.report.seconds = job.seconds_before()
        try:
            target = ImportTarget(job, self._publish)
            Run(job, target, start_pool, show_progress).complete()
        except BaseException:
            self._noted()
            job.note_seconds(state.report.seconds)
            raise
        remove_job(uri, job.fingerprint)

    def _publish(self, merged: Merged) -> None:
        """The one commit: all rows of all shards, with the report."""
        state = self._state
        self._table = table = merged.table
        # Before the commit it must be on record after which version its note is looked for.
        if table is not None:
            state.escaped_ids |= not len(table)
            state.version = table.version
            table.update_metadata({self._key: self._noted()})
        state.report.add(merged.report)
        state.cursor = merged.cursor
        self._finish()
        if table is not None and merged.fragments:
            table.append_written(merged.fragments, merged.ids, {self._key: self._noted()})
            remove_fragments(table.uri, merged.replaced)
        if table is not None:
            table.update_metadata({self._key: self._noted()})

    def _finish(self) -> None:
        """Notes that the source was read to its end."""
        report = self._state.report
        if not report.num_seen:
            name = Path(self._settings.source).name
            report.skip(Reason.EMPTY_FILE, name, "it holds no image and no record")
        report.finish()

    def _first_row(self, checked: Iterator[Checked], progress: Progress) -> Checked | None:
        """The first result with a row; without one there is nothing to make a table for."""
        for result in checked:
            if result.row is not None:
                return result
            result.outcome.count(self._state.report)
            progress.update(1, **{"left out": self._state.report.num_skipped})
        self._finish()
        return None

    def _append(self, checked: Iterator[Checked], progress: Progress) -> None:
        self._table = table = self._table or PairTable.open_or_create(self._state.report.uri)
        self._state.escaped_ids |= not len(table)
        if not (self._state.escaped_ids or has_escaped_ids(table.metadata)):
            table.accept_older_ids()
        self._state.version = table.version
        table.update_metadata({self._key: self._noted()})
        if self._state.again:
            # As they are before anything is added.
            self._known_rows = KnownRows(table.scan(KnownRows.COLUMNS, KnownRows.BATCH_ROWS))
        while not self._is_finished:
            table.append(
                self._chunk(checked, progress),
                journal=lambda: {self._key: self._noted()},
                on_duplicate=self._on_duplicate,
            )

    def _chunk(self, checked: Iterator[Checked], progress: Progress) -> Iterator[PairRow]:
        """Yields the rows of one commit."""
        state, report = self._state, self._state.report
        num_rows = num_bytes = 0
        began = time.monotonic()
        for result in checked:
            if result.row is not None:
                self._was_duplicate = False
                # The table looks at the row, and maybe calls `_on_duplicate`, before it goes on.
                yield result.row
                num_rows += 1
                num_bytes += len(result.row.image or b"")
            outcome = result.outcome
            if result.row is not None and self._was_duplicate:
                outcome = outcome.known(state.again, self._other_texts(result.row))
            outcome.count(report)
            state.cursor = result.entry.cursor
            progress.update(1, **{"left out": report.num_skipped})
            self._is_finished = _is_full(state)
            is_late = time.monotonic() - began > _COMMIT_SECONDS
            is_large = num_rows >= self._commit_rows or num_bytes >= _COMMIT_BYTES
            if self._is_finished or is_late or is_large:
                return
        report.finish()
        self._is_finished = True

    def _on_duplicate(self, row: PairRow) -> None:
        self._was_duplicate = True

    def _other_texts(self, row: PairRow) -> Sequence[str] | None:
        """The texts of a row that the table has with another content; else None."""
        if self._known_rows is None:
            return None
        content = content_hash(row.image, row.captions, row.split)
        own = [id_hash(encodable(row.id))], [content]
        ids, contents = np.array(own, dtype=np.uint64)
        return row.captions if self._known_rows.differ(ids, contents).any() else None

    def _noted(self) -> str:
        """The state as JSON, the time brought up to date."""
        now = time.monotonic()
        self._state.report.seconds += now - self._timed
        self._timed = now
        return self._state.to_json()

    def _total(self) -> int | None:
        total, until = self._source.total(), self._state.until
        return until if total is None else min(total, until or total)


def checks_of(settings: ImportSettings, source: PairSource) -> Checks:
    """The checks of all entries of a source, whose lists are read for it."""
    name = settings.source
    folder = dataset_name(name).folder if is_dataset_name(name) else None
    if is_object_address(name):
        root = root_of(name)
    else:
        root = SourceRoot(folder) if folder else source_root(name)
    # What is said for all rows asks no list.
    files = FileSplits(source.listed(), root) if settings.split is None else FileSplits()
    return Checks(settings, root, files)


def _restored(table: PairTable, settings: ImportSettings) -> _State | None:
    """The state that was committed last, with rows or on its own."""
    key = metadata_key(settings.fingerprint())
    text = table.metadata.get(key)
    if text is None:
        return None
    stored = _State.from_json(text)
    newer = table.journal_since(stored.version, key)
    return stored if newer is None or stored.report.complete else _State.from_json(newer)


def _is_full(state: _State) -> bool:
    return state.until is not None and state.report.num_rows >= state.until


def _one_of(name: str, value: str | None, allowed: tuple[str, ...]) -> str | None:
    if value is not None and value not in allowed:
        raise DataError(f"{name} must be one of {', '.join(allowed)}. Got {value!r}.")
    return value
