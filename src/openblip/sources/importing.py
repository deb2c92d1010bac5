"""The import itself: read, check, write, and carry on after an interruption."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from openblip.runtime.documents import has_halves
from openblip.runtime.errors import DataError
from openblip.runtime.progress import Progress
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.datasets_library import dataset_name, is_dataset_name
from openblip.sources.detect import open_source
from openblip.sources.images import open_image
from openblip.sources.report import ImportReport, Reason, metadata_key
from openblip.sources.row_images import read_image_file
from openblip.sources.source import (
    Cursor,
    Entry,
    Found,
    PairSource,
    Refused,
    SourceOptions,
    is_file,
)
from openblip.sources.splits import FileSplits, SourceRoot, SplitConflict, row_split, source_root
from openblip.table.rows import in_utf8
from openblip.table.storage import is_object_address
from openblip.table.table import ORIGINS, SPLITS, PairRow, PairTable

Store = Literal["bytes", "uri"]
Ids = Literal["key", "sha256"]
# Work that a kill loses at most; each commit becomes a fragment of the table.
_DEFAULT_ORIGIN = "web"
# Of an exported text: who wrote it (docs/data.md).
_SOURCES_FIELD = "caption_sources"
_HUMAN_SOURCES = {"human", "reviewed"}
_COMMIT_ROWS, _COMMIT_BYTES, _COMMIT_SECONDS = 8192, 1 << 30, 60.0


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What decides which rows an import makes of a source."""

    source: str
    format: str | None
    origin: str | None
    split: str | None
    store: Store
    ids: Ids
    options: SourceOptions
    without_captions: bool = False

    def fingerprint(self) -> str:
        """16 hex digits that tell this import from others into the same table."""
        decided = asdict(self) | {"origin": self.origin or _DEFAULT_ORIGIN}
        # Imports that were begun before there were these settings are known by what they had.
        if not self.without_captions:
            del decided["without_captions"]
        for name in ("columns", "encoding"):
            if decided["options"][name] is None:
                del decided["options"][name]
        values = json.dumps(decided, sort_keys=True, default=str)
        return hashlib.sha256(values.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Checked:
    """A row that can be written, or why there is none."""

    row: PairRow | None
    refused: Refused | None
    entry: Entry
    said_by: str = ""
    """Who said which split the row is in."""


@dataclass
class _State:
    """What is stored of an import: enough to carry on with it."""

    report: ImportReport
    cursor: Cursor | None = None
    version: int = 0
    """Version of the table after which the notes of appended rows are newer than this."""
    again: bool = False
    """Whether the source had been imported before, so that known ids are expected."""
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
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "_State":
        values: dict[str, Any] = json.loads(text)
        report = ImportReport.from_dict(values["report"])
        return cls(report, values["cursor"], values["version"], values.get("again", False))


def _on_disk(source: str | Path) -> str:
    if not str(source).strip():
        raise DataError("the name of the source is empty: give a file, a folder or a pattern")
    if is_dataset_name(str(source)):
        return str(dataset_name(str(source)))
    if is_object_address(str(source)):
        raise DataError(
            f"{source}: sources are read from a disk; copy or mount it, and give the object store "
            "as the place of the table"
        )
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
    **options: Any,
) -> ImportReport:
    """Appends the pairs of a source to a pair table, which is made if there is none.

    Every image is decoded once, so that training never meets a broken one. What is damaged,
    unsafe, incomplete or there twice is left out and stands in the report, which is also stored
    with the table. Called again after an interruption, the import carries on where it was;
    called again after it is complete, it only returns the report, which then says so. A source
    of which nothing can be used makes no table, and is read anew each time.

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
        options: what the source does not say itself; the fields of `SourceOptions`.

    Raises:
        DataError: the source is of no known kind, or an option does not fit it.
    """
    settings = _Settings(
        # An absolute path: the import is the same one from wherever it is restarted.
        source=_on_disk(source),
        format=format,
        origin=None if origin is None else _one_of("origin", origin, ORIGINS),
        split=None if split is None else _one_of("split", split, SPLITS),
        store=store,
        ids=ids,
        options=SourceOptions(**options),
        without_captions=without_captions,
    )
    opened = open_source(settings.source, settings.options, format)
    if store == "uri" and opened.format == "webdataset":
        raise DataError("images in .tar shards have no path of their own: use store='bytes'")
    table = PairTable.open_if_any(uri)
    key = metadata_key(settings.fingerprint())
    state = _restored(table, key) if table is not None else None
    if state is not None and state.report.complete:
        if again:
            state = _State(_new_report(settings, uri, opened), again=True)
        elif not (state.report.num_rows or state.report.num_known):
            # It came to nothing, so that there is nothing to be repeated: it may be mended now.
            state = None
    state = state or _State(_new_report(settings, uri, opened))
    state.until = limit
    if state.report.complete or _is_full(state):
        state.report.nothing_read = True
        return state.report
    run = _Import(settings, opened, table, key, state, commit_rows)
    run.run(num_threads or default_threads(), show_progress)
    return state.report


def _new_report(settings: _Settings, uri: str | Path, opened: PairSource) -> ImportReport:
    return ImportReport(settings.source, str(uri), opened.format)


class _Import:
    """One run of an import, from where an earlier one got to."""

    def __init__(
        self,
        settings: _Settings,
        source: PairSource,
        table: PairTable | None,
        key: str,
        state: _State,
        commit_rows: int,
    ) -> None:
        self._settings, self._source, self._table = settings, source, table
        folder = dataset_name(settings.source).folder if is_dataset_name(settings.source) else None
        self._root = SourceRoot(folder) if folder else source_root(settings.source)
        self._files = FileSplits()
        self._key, self._state, self._commit_rows = key, state, commit_rows
        self._was_duplicate = False
        self._is_finished = False
        self._timed = time.monotonic()

    def run(self, num_threads: int, show_progress: bool) -> None:
        """Imports to the end or the limit, and stores the report."""
        report = self._state.report
        entries = self._source.entries(self._state.cursor)
        checked = ordered_map(self._check, entries, num_threads, num_threads * 4)
        progress = Progress(
            f"importing {Path(self._settings.source).name}",
            total=self._total() if show_progress else None,
            start=report.num_seen,
            enabled=show_progress,
        )
        try:
            with progress:
                if self._settings.split is None:
                    self._files = FileSplits(self._source.listed(), self._root)
                first = self._first_row(checked, progress)
                if first is not None:
                    self._append(chain([first], checked), progress)
        finally:
            checked.close()
        if self._table is not None:
            # Entries without a row at the end were not committed with any.
            self._table.update_metadata({self._key: self._noted()})

    def _first_row(self, checked: Iterator[_Checked], progress: Progress) -> _Checked | None:
        """The first result with a row; without one there is nothing to make a table for."""
        for result in checked:
            if result.row is not None:
                return result
            self._leave_out(result)
            progress.update(1, **{"left out": self._state.report.num_skipped})
        report = self._state.report
        if not report.num_seen:
            name = Path(self._settings.source).name
            report.skip(Reason.EMPTY_FILE, name, "it holds no image and no record")
        report.finish()
        return None

    def _append(self, checked: Iterator[_Checked], progress: Progress) -> None:
        self._table = table = self._table or PairTable.open_or_create(self._state.report.uri)
        self._state.version = table.version
        table.update_metadata({self._key: self._noted()})
        while not self._is_finished:
            table.append(
                self._chunk(checked, progress),
                journal=lambda: {self._key: self._noted()},
                on_duplicate=self._on_duplicate,
            )

    def _chunk(self, checked: Iterator[_Checked], progress: Progress) -> Iterator[PairRow]:
        """Yields the rows of one commit."""
        state, report = self._state, self._state.report
        num_rows = num_bytes = 0
        began = time.monotonic()
        for result in checked:
            if result.row is not None:
                self._was_duplicate = False
                # The table looks at the row, and maybe calls `_on_duplicate`, before it goes on.
                yield result.row
                self._count(result, result.row)
                num_rows += 1
                num_bytes += len(result.row.image or b"")
            self._leave_out(result)
            state.cursor = result.entry.cursor
            progress.update(1, **{"left out": report.num_skipped})
            self._is_finished = _is_full(state)
            is_late = time.monotonic() - began > _COMMIT_SECONDS
            is_large = num_rows >= self._commit_rows or num_bytes >= _COMMIT_BYTES
            if self._is_finished or is_late or is_large:
                return
        report.finish()
        self._is_finished = True

    def _leave_out(self, result: _Checked) -> None:
        if (left := result.refused) is not None:
            report, number = self._state.report, result.entry.num_records
            report.skip(left.reason, left.where, left.detail, number)

    def _count(self, result: _Checked, row: PairRow) -> None:
        report, entry = self._state.report, result.entry
        if self._was_duplicate:
            known = Reason.ALREADY_IMPORTED if self._state.again else Reason.DUPLICATE_ID
            report.skip(known, entry.where, f"id {row.id!r} is in the table", entry.num_records)
            return
        report.count_row(row.split, len(row.captions), result.said_by, entry.num_records)
        if not row.captions:
            is_said = isinstance(entry, Found) and entry.may_lack_captions
            why = "the source says that there are none" if is_said else "there is no text of it"
            report.note(Reason.NO_CAPTIONS, entry.where, why)
        if (other := _other_sources(row)) is not None:
            report.note(Reason.OTHER_ORIGIN, entry.where, other)
        if damaged := [text for text in row.captions if has_halves(text)]:
            shown = in_utf8(damaged[0])
            report.note(Reason.REPLACED_CHARACTERS, entry.where, f"stored as {shown!r}")
        for remark in entry.remarks if isinstance(entry, Found) else ():
            report.note(remark.reason, remark.where, remark.detail)

    def _on_duplicate(self, row: PairRow) -> None:
        self._was_duplicate = True

    def _noted(self) -> str:
        """The state as JSON, the time brought up to date."""
        now = time.monotonic()
        self._state.report.seconds += now - self._timed
        self._timed = now
        return self._state.to_json()

    def _total(self) -> int | None:
        total, until = self._source.total(), self._state.until
        return until if total is None else min(total, until or total)

    def _check(self, entry: Entry) -> _Checked:
        """The row of an entry whose image decodes; runs in many threads at once."""
        if isinstance(entry, Refused):
            return _Checked(None, entry, entry)

        def refused(reason: Reason, detail: str) -> _Checked:
            return _Checked(None, Refused(entry.where, entry.cursor, reason, detail), entry)

        captions = [text.strip() for text in entry.captions if text.strip()]
        may_lack = entry.may_lack_captions or self._settings.without_captions
        if not captions and not may_lack:
            return refused(Reason.MISSING_CAPTION, "no text that is not blank")
        try:
            said = row_split(entry, self._root, self._settings.split)
            split, said_by = self._files.agreed(entry, *said)
        except SplitConflict as error:
            return refused(Reason.CONTRADICTION, str(error))
        except DataError as error:
            return refused(Reason.BAD_RECORD, str(error))
        if isinstance(entry.image, Path) and not is_file(entry.image):
            return refused(Reason.MISSING_IMAGE, f"there is no file {entry.image}")
        try:
            row = self._row(entry, captions, split)
        except DataError as error:
            return refused(_reason(error), str(error))
        return _Checked(row, None, entry, said_by)

    def _row(self, entry: Found, captions: list[str], split: str) -> PairRow:
        is_file = isinstance(entry.image, Path)
        encoded = read_image_file(entry.image) if isinstance(entry.image, Path) else entry.image
        width, height = open_image(encoded, entry.where).size
        use_key = entry.key and self._settings.ids == "key"
        keep_bytes = self._settings.store == "bytes" or not is_file
        return PairRow(
            id=(entry.key or "") if use_key else hashlib.sha256(encoded).hexdigest(),
            image=encoded if keep_bytes else None,
            image_uri=None if keep_bytes else str(entry.image),
            width=width,
            height=height,
            captions=captions,
            origin=self._settings.origin or _told_origin(entry.meta, captions),
            split=split,
            meta=entry.meta,
        )


def _told_origin(meta: Mapping[str, Any], captions: Sequence[str]) -> str:
    """That of the row that was exported; `web` for a row that says nothing."""
    said = meta.get(_SOURCES_FIELD)
    if not isinstance(said, list) or len(said) != len(captions):
        return _DEFAULT_ORIGIN
    # What people have judged is as good as what they have written.
    return "human" if said and {*map(str, said)} <= _HUMAN_SOURCES else _DEFAULT_ORIGIN


def _other_sources(row: PairRow) -> str | None:
    """Which texts of a row are by its metadata of another origin than the row; None for none."""
    said = row.meta.get(_SOURCES_FIELD)
    own = _HUMAN_SOURCES if row.origin == "human" else {row.origin}
    others = [name for name in map(str, said) if name not in own] if isinstance(said, list) else []
    counts = ", ".join(f"{others.count(name)} {name}" for name in dict.fromkeys(others))
    return f"of its texts {counts}, which count as {row.origin} here" if others else None


def _restored(table: PairTable, key: str) -> _State | None:
    """The state that was committed last, with rows or on its own."""
    text = table.metadata.get(key)
    if text is None:
        return None
    stored = _State.from_json(text)
    newer = table.journal_since(stored.version, key)
    return stored if newer is None or stored.report.complete else _State.from_json(newer)


def _is_full(state: _State) -> bool:
    return state.until is not None and state.report.num_rows >= state.until


def _reason(error: DataError) -> Reason:
    # Sizes are checked from the header, before anything is decoded.
    is_size = "pixels" in str(error) or "bytes, more than" in str(error)
    return Reason.IMAGE_TOO_LARGE if is_size else Reason.UNREADABLE_IMAGE


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise DataError(f"{name} must be one of {', '.join(allowed)}. Got {value!r}.")
    return value
