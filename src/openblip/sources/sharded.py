"""One import by many workers: each reads shards and writes rows, one commit makes them a table.

| who | does what | and leaves |
| --- | --- | --- |
| driver | asks the source for its shards; reads what its lists say of all images | the job |
| worker | reads one shard, writes its rows as fragments that no version names | a result file |
| driver | goes through the ids of all results; the first row of an id counts | rows to drop |
| worker | writes the fragments of a shard anew without these rows | a second result file |
| driver | appends all fragments in one step, adds up the reports | the table |

So table and report are those of one process that reads shard after shard. A shard is done when its
result is recorded; killed before, it is read anew, and what was written of it is never named.
"""

import gzip
import hashlib
import io
import json
import platform
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Self

import numpy as np

from openblip.jobs.ledger import Entry as Record
from openblip.jobs.ledger import Ledger, Store, decoded, open_store
from openblip.jobs.run import Standing
from openblip.jobs.units import Event, Kind, Part, Result, Unit, UnitDone
from openblip.runtime.errors import OpenBlipError, StorageError
from openblip.runtime.threads import ordered_map
from openblip.sources.checking import Checked, Checks, Outcome
from openblip.sources.report import ImportReport, has_escaped_ids
from openblip.sources.source import Cursor, DividedSource, Entry, Shard
from openblip.table.rows import IdSet, KnownRows, PairRow, content_hash, id_hash, row_batches
from openblip.table.table import PairTable
from openblip.table.versions import (
    FragmentWriter,
    fragments_from_json,
    fragments_to_json,
    written_rows,
)

_MB = 1 << 20
_DESCRIPTION, _SECONDS = "job.json", "seconds"
# A shard is one batch: it cannot be begun in its middle.
_NO_LIMIT = 1 << 60
# What the driver reads at a time, of results that are small files.
_READERS, _AHEAD = 8, 32


@dataclass(frozen=True)
class ShardResult:
    """What a worker has made of a shard: rows that no version names yet, and what it counted."""

    fragments: str
    """As `fragments_to_json` writes them."""
    report: ImportReport
    cursor: Cursor | None
    """Of its last entry; None without any."""
    ids: np.ndarray
    """The hash of each row's id, in order; no two are equal."""
    contents: np.ndarray
    """The hash of what each row holds, in order; none in a result of an older version."""
    outcomes: bytes
    """Of each entry, in order, as `_Counts` packs them."""

    def to_bytes(self) -> bytes:
        """The content of its file."""
        told = {
            "fragments": self.fragments,
            "report": asdict(self.report),
            "cursor": self.cursor,
        }
        content = io.BytesIO()
        # Hashes have nothing to be packed, and outcomes are packed.
        with zipfile.ZipFile(content, "w") as file:
            file.writestr("result.json", json.dumps(told))
            file.writestr("ids", self.ids.tobytes())
            file.writestr("contents", self.contents.tobytes())
            file.writestr("outcomes", self.outcomes)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, *, with_outcomes: bool = False) -> Self:
        """What `to_bytes` wrote.

        Args:
            content: of the file.
            with_outcomes: else there are none: only who drops rows needs them.
        """
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            told = json.loads(file.read("result.json"))
            contents = file.read("contents") if "contents" in file.namelist() else b""
            return cls(
                told["fragments"],
                ImportReport.from_dict(told["report"]),
                told["cursor"],
                np.frombuffer(file.read("ids"), dtype=np.uint64),
                np.frombuffer(contents, dtype=np.uint64),
                file.read("outcomes") if with_outcomes else b"",
            )


class _Counts:
    """A report, and the outcomes that it counts, packed: a list may have millions."""

    def __init__(self) -> None:
        self.report = ImportReport("", "", "")
        # No file, which an interruption would leave open. 31: with the head and end of gzip.
        self._packer = zlib.compressobj(level=1, wbits=31)
        self._packed = io.BytesIO()

    def add(self, outcome: Outcome) -> None:
        outcome.count(self.report)
        self._packed.write(self._packer.compress(outcome.to_json().encode() + b"\n"))

    def outcomes(self) -> bytes:
        """All of them; nothing is added afterwards."""
        self._packed.write(self._packer.flush())
        return self._packed.getvalue()


def _unpacked(outcomes: bytes) -> Iterator[Outcome]:
    with gzip.open(io.BytesIO(outcomes)) as lines:
        yield from map(Outcome.from_json, lines)


@dataclass(frozen=True)
class ImportJob:
    """The import of a source, as its workers know it."""

    table_uri: str
    source: DividedSource
    shards: tuple[Shard, ...]
    checks: Checks
    again: bool
    """The source had been imported before, so that known ids are expected."""
    num_threads: int | None = None
    """That decode in each worker; None for what there is room for."""

    @cached_property
    def fingerprint(self) -> str:
        """That of the settings: the same import by one process is known by it too."""
        return self.checks.settings.fingerprint()

    @property
    def kind(self) -> Kind:
        """Progress counts bytes where the size of each shard is known."""
        things = "MB" if self.counts_bytes else "shards"
        return Kind(name="import", title="import", things=things, suffix="zip", shown=("images",))

    @property
    def counts_bytes(self) -> bool:
        """Whether each shard is a file."""
        return all(shard.is_file for shard in self.shards)

    @property
    def batch_size(self) -> int:
        """A shard is one batch."""
        return _NO_LIMIT

    @property
    def folder(self) -> Store:
        """Ledger and results."""
        return open_store(job_folder(self.table_uri, self.fingerprint))

    @property
    def results(self) -> Store:
        """A file for each shard that was read."""
        return open_store(f"{self.folder.uri}/results")

    def description(self) -> str:
        """What is imported, and whether again."""
        return json.dumps(
            {"settings": asdict(self.checks.settings), "again": self.again}, default=str
        )

    def begin(self) -> None:
        """Notes that the job is begun, if it is not."""
        self.folder.write(_DESCRIPTION, self.description().encode())

    def seconds_before(self) -> float:
        """Time that earlier calls have spent on it, as far as they could say so."""
        return float(self.folder.read(_SECONDS) or 0)

    def note_seconds(self, seconds: float) -> None:
        """Notes the time that was spent on it, if it can be noted."""
        with suppress(StorageError):
            self.folder.write(_SECONDS, str(seconds).encode())

    def open_worker(self, device: str, save_seconds: float, decode_threads: int) -> "ShardWorker":
        """See `Job.open_worker`; no device is needed, and nothing but shards is saved."""
        return ShardWorker(self, self.num_threads or decode_threads)

    def part(self, number: int) -> "ShardPart":
        """A shard as the ledger knows it."""
        shard = self.shards[number]
        size = max(shard.size // _MB, 1) if self.counts_bytes else 1
        return ShardPart(number, shard.digest, size)


def job_folder(table_uri: str, fingerprint: str) -> str:
    """Where the job of an import keeps its files, beside the table."""
    return f"{table_uri.rstrip('/')}.import/{fingerprint}"


def remove_job(table_uri: str, fingerprint: str) -> None:
    """Remove the files of a job whose rows are in the table."""
    above, _, own = job_folder(table_uri, fingerprint).rpartition("/")
    folder = open_store(above)
    # What says that it was begun goes last: killed on the way, the next call removes the rest.
    for name in sorted(folder.names(f"{own}/"), key=lambda name: name.endswith(_DESCRIPTION)):
        folder.remove(name)


def begun(table_uri: str, fingerprint: str) -> Mapping[str, Any] | None:
    """What is noted of an import by many workers that was begun; None if none was."""
    folder = open_store(job_folder(table_uri, fingerprint))
    if (content := folder.read(_DESCRIPTION)) is None:
        return None
    return decoded(folder, _DESCRIPTION, content, dict)


@dataclass(frozen=True)
class ShardPart:
    """A shard that is read, or one that is written anew without some of its rows."""

    number: int
    """Place of the shard; the number of all shards is added to it for the second."""
    digest: str
    num_rows: int
    """MB where the job counts these, else 1."""


class ShardWorker:
    """Reads shards, in a process or thread of its own."""

    def __init__(self, job: ImportJob, num_threads: int) -> None:
        """Opens nothing yet; `num_threads` decode images."""
        self._job, self._num_threads = job, num_threads

    def compute(self, unit: Unit) -> Iterator[Event]:
        """See `Worker.compute`."""
        number, mends = unit.part % len(self._job.shards), unit.part >= len(self._job.shards)
        if trouble := unit.failure or unit.blamed.get(0, ""):
            name = self._job.shards[number].name
            raise OpenBlipError(
                f"{name}: {trouble}; the other shards that were read are kept. Move it away, or "
                "mend it, and run the same command to go on"
            )
        work = _mended(self._job, number, unit.digest) if mends else self._read(number)
        size, told = unit.num_rows, 0
        result: ShardResult | None = None
        images = num_bytes = 0
        for event in work:
            if isinstance(event, ShardResult):
                result = event
                continue
            images, num_bytes = images + event.num_rows, num_bytes + event.nbytes
            # The last is said when the shard is done: its size is not the sum of its images.
            now = min(num_bytes // _MB, size - 1) if self._job.counts_bytes else 0
            yield now - told
            told = now
            if not mends:
                yield Counter({"images": event.num_rows})
        assert result is not None
        content, name = result.to_bytes(), unit.result_file(self._job)
        # Before it is reported: the ledger names no file that is not there.
        self._job.results.write(name, content)
        checksum, report = hashlib.sha256(content).hexdigest(), result.report
        yield size - told
        yield UnitDone(
            Result(name, len(content), checksum, report.num_rows, report.num_skipped, False)
        )

    def close(self) -> None:
        """See `Worker.close`."""

    def _read(self, number: int) -> "Iterator[Any]":
        """Yields batches of rows as they are taken, and then the result."""
        job, uri = self._job, self._job.table_uri
        if not (shard := job.shards[number]).is_here():
            # Else each of them would be left out as damaged, and the import would be complete.
            raise OpenBlipError(
                f"{shard.path} is not there on {platform.node()}: every machine must reach the "
                "source by the same path. What is finished is kept: run the same command to go on"
            )
        entries = job.source.entries_of(shard)
        with closing(self._checked(entries)) as checked:
            rows = _Rows(checked, job.again)
            batches = row_batches(rows.run(), rows.is_new, rows.on_duplicate)
            fragments: list[Any] = []
            if (first := next(batches, None)) is not None:
                # Only now: a source of which nothing can be used makes no table.
                table = PairTable.open_or_create(uri)
                with FragmentWriter(table.dataset, uri) as writer:
                    for batch in chain([first], batches):
                        writer.add(batch)
                        yield batch
                fragments = writer.fragments
        ids = np.fromiter(rows.ids, dtype=np.uint64, count=len(rows.ids))
        contents = np.array(rows.contents, dtype=np.uint64)
        yield ShardResult(
            fragments_to_json(fragments),
            rows.counts.report,
            rows.cursor,
            ids,
            contents,
            rows.counts.outcomes(),
        )

    def _checked(self, entries: Iterator[Entry]) -> Generator[Checked, None, None]:
        check, threads = self._job.checks.check, self._num_threads
        # With one thread a worker reads, decodes and writes in turn, and takes one core.
        found = map(check, entries)
        yield from found if threads == 1 else ordered_map(check, entries, threads, threads * 4)


class _Rows:
    """The rows of one shard, each id once, and what became of every entry."""

    def __init__(self, checked: Any, again: bool) -> None:
        self._checked, self._again = checked, again
        self._is_known = False
        self.ids: dict[int, None] = {}
        """Hashes of ids in the order of the rows."""
        self.contents: list[int] = []
        """Hashes of what they hold."""
        self.counts = _Counts()
        self.cursor: Cursor | None = None

    def run(self) -> Iterator[PairRow]:
        for result in self._checked:
            outcome = result.outcome
            if result.row is not None:
                self._is_known = False
                # Whoever takes the row asks `is_new`, and maybe calls `on_duplicate`, first.
                yield result.row
                if self._is_known:
                    outcome = outcome.known(self._again)
                else:
                    row = result.row
                    self.contents.append(content_hash(row.image, row.captions, row.split))
            self.counts.add(outcome)
            self.cursor = result.entry.cursor

    def is_new(self, row_id: str) -> bool:
        value, number = id_hash(row_id), len(self.ids)
        self.ids.setdefault(value)
        return len(self.ids) > number

    def on_duplicate(self, row: PairRow) -> None:
        self._is_known = True


def _drops(number: int, digest: str) -> str:
    return f"drops/{number:08d}-{digest}"


def _mended(job: ImportJob, number: int, digest: str) -> "Iterator[Any]":
    """Yields the rows of a shard that stay, and then the result; nothing is read anew."""
    content = job.folder.read(_drops(number, digest))
    told = json.loads(content or b"{}")
    before = job.results.read(told["file"]) if content else None
    if before is None:
        raise StorageError(f"{job.folder.uri}: files of this job are gone; remove the whole folder")
    read, dropped = ShardResult.from_bytes(before, with_outcomes=True), set(told["rows"])
    uri = job.table_uri
    changed: dict[int, list[str]] = {row: [] for row in told.get("changed", ())}
    with FragmentWriter(PairTable.open(uri).dataset, uri) as writer:
        start = 0
        for batch in written_rows(uri, fragments_from_json(read.fragments)):
            stay = [n for n in range(batch.num_rows) if start + n not in dropped]
            for row in changed.keys() & range(start, start + batch.num_rows):
                changed[row] = batch["captions"][row - start].as_py()
            start += batch.num_rows
            if stay:
                writer.add(batch if len(stay) == batch.num_rows else batch.take(stay))
            yield batch
    counts, row = _Counts(), 0
    for outcome in _unpacked(read.outcomes):
        is_row = not outcome.reason
        is_known = is_row and row in dropped
        counts.add(outcome.known(job.again, changed.get(row)) if is_known else outcome)
        row += is_row
    kept, contents = np.delete(read.ids, sorted(dropped)), read.contents
    contents = np.delete(contents, sorted(dropped)) if len(contents) else contents
    fragments = fragments_to_json(writer.fragments)
    yield ShardResult(fragments, counts.report, read.cursor, kept, contents, counts.outcomes())


def _changed(known: KnownRows, result: ShardResult, rows: np.ndarray) -> list[int]:
    """Which of some rows the table has with another content; none in results of older versions."""
    if not len(result.contents):
        return []
    return [int(row) for row in rows[known.differ(result.ids[rows], result.contents[rows])]]


@dataclass
class Merged:
    """All results together, as one process would have it."""

    table: PairTable | None
    """The version whose ids were looked at; None if there is none."""
    ids: IdSet
    """Of that version and of all rows."""
    report: ImportReport
    fragments: list[Any]
    replaced: list[Any]
    """Fragments that were written anew without some rows; no version will name them."""
    cursor: Cursor | None = None


class ImportTarget:
    """Where the results of shards go: together, in their order, into the table."""

    def __init__(self, job: ImportJob, publish: Callable[[Merged], None]) -> None:
        """Nothing happens yet.

        Args:
            job: the import.
            publish: makes merged results visible, in one step.
        """
        self._job, self._publish = job, publish
        self._merged: Merged | None = None
        self._is_committed = False

    def look(self, ledger: Ledger, is_settled: Callable[[Record], bool]) -> Standing:
        """See `Target.look`; when every shard is read, its ids are."""
        parts: list[Part] = [self._job.part(number) for number in range(len(self._job.shards))]
        size = sum(part.num_rows for part in parts)
        found = {part.number: ledger.find(part.number, part.digest) for part in parts}
        done = {number: e for number, e in found.items() if e is not None and e.state == "done"}
        missing = [part for part in parts if part.number not in done]
        if not missing and not self._is_committed:
            mended, missing = self._merge(ledger, done)
            done |= mended
            size += sum(part.num_rows for part in missing)
        computed = {} if self._is_committed else done
        return Standing(
            version=0,
            num_rows=size,
            is_committed=self._is_committed,
            missing=missing,
            computed=computed,
        )

    def commit(self, standing: Standing) -> None:
        """See `Target.commit`."""
        assert self._merged is not None
        self._publish(self._merged)
        self._is_committed = True

    def _merge(
        self, ledger: Ledger, done: Mapping[int, Record]
    ) -> tuple[dict[int, Record], list[Part]]:
        """The entries of shards that were written anew, and those that have to be."""
        job, table = self._job, PairTable.open_if_any(self._job.table_uri)
        if table is not None and len(table) and not has_escaped_ids(table.metadata):
            table.accept_older_ids()
        ids = table.known_ids() if table is not None else IdSet()
        is_again = table is not None and job.again
        scan = table.scan(KnownRows.COLUMNS, KnownRows.BATCH_ROWS) if table and is_again else ()
        known = KnownRows(scan)
        merged = Merged(table, ids, ImportReport("", "", ""), [], [])
        mended: dict[int, Record] = {}
        missing: list[Part] = []
        names = [done[number].file for number in range(len(job.shards))]
        needed: list[Any] = []
        for number, result in enumerate(self._read(names)):
            # In the order of the source: the first row of an id is the one that counts.
            dropped = np.flatnonzero(~ids.add_hashes(result.ids))
            if len(dropped):
                part = self._part_without(number, dropped)
                changed = _changed(known, result, dropped)
                entry = ledger.find(part.number, part.digest)
                if entry is None or entry.state != "done":
                    told = {"file": names[number], "rows": dropped.tolist()}
                    told["changed"] = changed
                    name = _drops(number, part.digest)
                    job.folder.write(name, json.dumps(told).encode())
                    missing.append(part)
                    needed += fragments_from_json(result.fragments)
                    continue
                mended[part.number] = entry
                merged.replaced += fragments_from_json(result.fragments)
                [result] = self._read([entry.file])
            merged.report.add(result.report)
            merged.fragments += fragments_from_json(result.fragments)
            merged.cursor = result.cursor or merged.cursor
        self._merged = merged
        self._check_files([*merged.fragments, *needed])
        return mended, missing

    def _check_files(self, fragments: Sequence[Any]) -> None:
        """Nothing, if no file of rows is lost: till the commit they are nobody's to Lance.

        Raises:
            StorageError: some are.
        """
        uri = self._job.table_uri
        there = set(open_store(f"{uri}/data").names())
        lost = [file.path for f in fragments for file in f.files if file.path not in there]
        if lost:
            raise StorageError(
                f"{uri}: {len(lost)} files of rows that were read are gone (data/{lost[0]}): "
                f"remove {self._job.folder.uri}, and run the same command to begin anew"
            )

    def _part_without(self, number: int, dropped: np.ndarray) -> ShardPart:
        part = self._job.part(number)
        digest = hashlib.sha256(part.digest.encode() + dropped.tobytes()).hexdigest()[:16]
        return ShardPart(number + len(self._job.shards), digest, part.num_rows)

    def _read(self, names: Sequence[str]) -> Iterator[ShardResult]:
        results = self._job.results

        def read(name: str) -> ShardResult:
            if (content := results.read(name)) is None:
                raise StorageError(f"{results.uri}/{name} is gone: remove {self._job.folder.uri}")
            return ShardResult.from_bytes(content)

        return ordered_map(read, names, _READERS, _AHEAD)
