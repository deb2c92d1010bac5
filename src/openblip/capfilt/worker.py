"""The work on one fragment: read, decode, caption, score, and write the new columns.

A worker is given units, reports each batch that is finished, and saves pieces on the way.
"""

import hashlib
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from openblip.batches.shuffle import named_seed
from openblip.capfilt.captioners import (
    Pending,
    Usage,
    WebRow,
    WebRows,
    Written,
    divided,
    open_captioners,
)
from openblip.capfilt.endpoint import EndpointError
from openblip.capfilt.filters import Filter
from openblip.capfilt.job import SYNTHETIC_ERROR, CapFiltJob, CapFiltSettings, column_schema
from openblip.capfilt.ledger import Store
from openblip.runtime.errors import DataError
from openblip.runtime.threads import one_thread, ordered_map
from openblip.sources.images import open_image
from openblip.sources.row_images import GuardedDecoder, check_reachable, row_image
from openblip.table.columns import ColumnFile, encode_columns, read_rows
from openblip.table.scores import score_column
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

_READ = ("id", "image", "image_uri", "captions", "origin")
# How often somebody is told what a batch waits for.
_WAIT_SECONDS = 1.0
Decode = Callable[[bytes, str], Image.Image]


@dataclass(frozen=True)
class LoadedBatch:
    """A batch read from the table: what is to be captioned, and what cannot be."""

    num_rows: int
    places: list[int]
    """Rows within the batch whose images stand in the tensors, in their order."""
    captions: list[list[str]]
    images: dict[str, Tensor]
    """The images for filters, (images, 3, height, width), by `Filter.input_key`."""
    pending: list[Pending]
    """What each captioner has begun to write about them."""
    errors: dict[int, str]
    """Why a row of the batch could not be read."""


@dataclass(frozen=True)
class FragmentResult:
    """The new columns of a fragment, in a file that no version of the table names yet."""

    file: ColumnFile
    checksum: str
    """SHA-256 of the file."""
    num_rows: int
    num_errors: int
    """Rows without result."""
    used_pieces: bool
    """Whether batches of the fragment were saved, and may go now."""


@dataclass(frozen=True)
class UnitDone:
    """A worker's last word on a unit; `result` is there if the unit seals its fragment."""

    result: FragmentResult | None


@dataclass(frozen=True)
class Waiting:
    """A worker is well, and waits for somebody else."""

    line: str
    """What for, if people should know it; else empty."""


Event = int | Usage | Waiting | UnitDone
"""What a worker says of a unit: rows that are finished, what they have cost, and so on."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Some batches of one fragment; the last unit of a fragment writes its data file."""

    fragment: int
    digest: str
    num_rows: int
    """Rows of the fragment."""
    version: int
    """Version of the table that has the fragment."""
    batches: tuple[int, ...]
    """What to compute; the fragment's other batches are saved pieces, or another unit's."""
    seals: bool
    """Whether the fragment's data file is written when the batches are done."""
    attempt: int = 1
    careful: bool = False
    """Decode in a process of its own and save every batch: somebody died on this unit before."""
    blamed: Mapping[int, str]
    """Batches that are not computed, since they killed worker after worker, with the reason."""
    failure: str = ""
    """Why the fragment cannot be read: the reason that each of its rows gets."""

    def column_file(self, fingerprint: str) -> str:
        """Name of the data file; another attempt never writes the same one."""
        return f"capfilt-{fingerprint}-{self.fragment:08d}-{self.digest}-{self.attempt}.lance"


class Worker:
    """Captioners and filters, all loaded, on one device."""

    def __init__(
        self,
        job: CapFiltJob,
        device: str | None = None,
        *,
        save_seconds: float = 10.0,
        decode_threads: int = 1,
    ) -> None:
        """Loads the models.

        Args:
            job: settings and table.
            device: such as "cpu" or "cuda:0".
            save_seconds: finished batches of a fragment are saved when so much time has passed.
            decode_threads: how many batches are read and decoded at once, ahead of the device.

        Raises:
            DataError, CheckpointError, MissingHead: table or models cannot be used.
        """
        self.job = job
        self.settings: CapFiltSettings = job.settings
        self.captioners = open_captioners(job, device)
        self.filters = [Filter(plan, device) for plan in job.filters]
        # Only now: what was loaded must be what is checked.
        job.check_models()
        self._columns = [*_READ, *(name for own in self.captioners for name in own.columns)]
        self._usage = Usage()
        self._pieces, self._data = Pieces(job.folder), job.data_folder
        self._table = PairTable.open(job.table_uri)
        # This machine need not be that of the driver.
        check_reachable(self._table)
        self._save_seconds, self._decode_threads = save_seconds, decode_threads
        self._num_ahead = decode_threads + 1
        if any(divided(source)[0] == "openai" for source in job.settings.captioners):
            # While one batch waits for its slowest answer, those behind it keep the server busy.
            requests = job.settings.batch_size * job.settings.num_captions
            self._num_ahead += -(-2 * job.requests.at_once // requests)

    def close(self) -> None:
        """End what runs beside this thread; nothing is computed afterwards."""
        for captioner in self.captioners:
            captioner.close()

    def compute(self, unit: Unit) -> Iterator[Event]:
        """Compute a unit; yields the rows of each finished batch, and at last a `UnitDone`.

        A CPU computes with one thread: the number of threads would change the last bits of a score.

        Raises:
            DataError: the fragment cannot be read.
            StorageError: results cannot be written.
            EndpointError: a server gives no captions any more; finished batches are saved.
        """
        clock = _SaveClock(0.0 if unit.careful else self._save_seconds)
        fresh: dict[int, pa.Table] = {}
        with one_thread() if self.filters[0].model.device.type == "cpu" else nullcontext():
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
                    yield from self._used()
            except EndpointError:
                self._pieces.write(unit, fresh)
                raise
        if unit.seals:
            yield UnitDone(self._seal(unit, fresh))
        else:
            self._pieces.write(unit, fresh)
            yield UnitDone(None)

    def _used(self) -> Iterator[Usage]:
        """What the last batches have cost, if that is known."""
        usage, self._usage = self._usage, Usage()
        if usage != Usage():
            yield usage

    def _computed(self, unit: Unit) -> "Iterator[tuple[int, pa.Table] | Waiting]":
        table = self._table_at(unit.version)
        rows = {batch: self.job.batch_rows(batch, unit.num_rows) for batch in unit.batches}
        for batch, reason in unit.blamed.items():
            if batch in rows:
                yield batch, _reason_columns(self.job, reason, len(rows.pop(batch)))

        if unit.careful:
            # One batch after the other, so that the first that is not saved is the guilty one.
            with GuardedDecoder() as decoder:
                for batch in rows:
                    loaded = self.load(table, unit.fragment, rows[batch], decoder.open)
                    yield from _until_there(loaded)
                    yield batch, self.process(loaded)
            return
        # Read and decoded while the device computes the batch before.
        ahead = ordered_map(
            lambda batch: self.load(table, unit.fragment, rows[batch]),
            rows,
            self._decode_threads,
            self._num_ahead,
        )
        for batch, loaded in zip(rows, ahead, strict=True):
            yield from _until_there(loaded)
            yield batch, self.process(loaded)

    def load(
        self, table: PairTable, fragment: int, rows: range, decode: Decode = open_image
    ) -> LoadedBatch:
        """Read rows of a fragment, decode the images of those that came from the web, and begin."""
        places, found = [], []
        errors: dict[int, str] = {}
        for place, row in enumerate(read_rows(table, fragment, rows, self._columns).to_pylist()):
            # What people wrote is neither judged nor added to (section 3.3 of the paper).
            if row["origin"] != "web":
                continue
            try:
                image = row_image(row, decode)
            except DataError as error:
                errors[place] = str(error)
                continue
            places.append(place)
            # By the row's id: neither batch nor worker nor place in the table decides the draws.
            seed = named_seed(self.settings.seed, row["id"])
            found.append(WebRow(row["id"], seed, tuple(row["captions"] or ()), image, row))
        web = WebRows(found)
        return LoadedBatch(
            num_rows=len(rows),
            places=places,
            captions=[list(row.captions) for row in found],
            images={each.input_key: each.prepared(web) for each in self.filters},
            pending=[captioner.begin(web) for captioner in self.captioners] if found else [],
            errors=errors,
        )

    def process(self, loaded: LoadedBatch) -> "pa.Table":
        """The new columns of a batch; rows that are not from the web have nulls."""
        if not loaded.places:
            return _columns(self.job, loaded, [], {})
        written = [pending.finish() for pending in loaded.pending]
        rows = list(zip(*written, strict=True))
        self._usage = sum((one.usage for row in rows for one in row), self._usage)
        self._usage += Usage(refused=sum(any(one.reason for one in row) for row in rows))
        texts = [
            given + [text for one in row for text in one.texts]
            for given, row in zip(loaded.captions, rows, strict=True)
        ]
        scores: dict[str, list[list[float | None]]] = {}
        for each in self.filters:
            cleaned = [[each.clean(text) for text in own] for own in texts]
            images = loaded.images[each.input_key]
            scores |= each.score(images, cleaned, self.settings.first_token)
        return _columns(self.job, loaded, rows, scores)

    def _seal(self, unit: Unit, fresh: "dict[int, pa.Table]") -> FragmentResult:
        """Write the fragment's data file, from what was just computed and what was saved before."""
        import pyarrow as pa

        count = self.job.num_batches(unit.num_rows)
        used_pieces = len(fresh) < count
        # What was saved of a fragment that cannot be read any more would make half a fragment.
        if unit.failure:
            columns = _reason_columns(self.job, unit.failure, unit.num_rows)
        else:
            if used_pieces:
                fresh = self._pieces.read(unit, self.settings.batch_size) | fresh
            columns = pa.concat_tables([fresh[batch] for batch in range(count)])
        # No version of the table names the file: only the driver's commit makes it be seen.
        content = encode_columns(self._table, columns)
        name = unit.column_file(self.job.fingerprint)
        self._data.write(name, content)
        return FragmentResult(
            file=ColumnFile(name, len(content)),
            checksum=hashlib.sha256(content).hexdigest(),
            num_rows=columns.num_rows,
            num_errors=columns.num_rows - columns["capfilt_error"].null_count,
            used_pieces=used_pieces,
        )

    def _table_at(self, version: int) -> PairTable:
        if self._table.version < version:
            self._table = PairTable.open(self.job.table_uri)
        return self._table


def _until_there(loaded: LoadedBatch) -> Iterator[Waiting]:
    """Yields while what was begun about a batch is not there yet."""
    for pending in loaded.pending:
        while (line := pending.wait(_WAIT_SECONDS)) is not None:
            yield Waiting(line)


def _columns(
    job: CapFiltJob,
    loaded: LoadedBatch,
    written: Sequence[Sequence[Written]],
    scores: dict[str, list[list[float | None]]],
) -> "pa.Table":
    """The columns of a batch, given what each captioner has written about each image."""
    import pyarrow as pa

    names = job.captioner_names
    values: dict[str, list[object]] = {name: [None] * loaded.num_rows for name in job.columns}
    for number, place in enumerate(loaded.places):
        given = len(loaded.captions[number])
        own = list(zip(names, written[number], strict=True))
        values["synthetic"][place] = [text for _, one in own for text in one.texts]
        values["synthetic_logprob"][place] = [
            logprob for _, one in own for logprob in one.logprobs or [None] * len(one.texts)
        ]
        values["synthetic_captioner"][place] = [name for name, one in own for _ in one.texts]
        if reasons := [f"{name}: {one.reason}" for name, one in own if one.reason]:
            values[SYNTHETIC_ERROR][place] = "; ".join(reasons)
        for score, of_images in scores.items():
            values[score_column("captions", score)][place] = of_images[number][:given]
            values[score_column("synthetic", score)][place] = of_images[number][given:]
    for place, reason in loaded.errors.items():
        values["capfilt_error"][place] = reason
    return pa.table(values, schema=column_schema(job.columns))


def _reason_columns(job: CapFiltJob, reason: str, num_rows: int) -> "pa.Table":
    """The columns of rows that have no result, all for one reason."""
    import pyarrow as pa

    values: dict[str, list[object]] = {name: [None] * num_rows for name in job.columns}
    values["capfilt_error"] = [reason] * num_rows
    return pa.table(values, schema=column_schema(job.columns))


class Pieces:
    """Finished batches of fragments that are not finished, saved so that a kill loses seconds."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, unit: Unit, columns: "Mapping[int, pa.Table]") -> None:
        """Save batches; runs of consecutive ones share a file.

        Raises:
            StorageError: they cannot be written.
        """
        import pyarrow as pa

        for run in _runs(columns):
            table = pa.concat_tables([columns[batch] for batch in run])
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            # The name says which batches are in it, so that one listing tells what is finished.
            name = f"{_folder(unit.fragment, unit.digest)}{run[0]:08d}-{run[-1]:08d}"
            self._store.write(name, sink.getvalue())

    def read(self, unit: Unit, batch_size: int) -> "dict[int, pa.Table]":
        """The saved batches of a unit's fragment.

        Raises:
            StorageError: they cannot be read.
        """
        import pyarrow as pa

        found = {}
        for name in self._store.names(_folder(unit.fragment, unit.digest)):
            if (content := self._store.read(name)) is None:
                continue
            table = pa.ipc.open_stream(content).read_all()
            first, last = _span(name)
            # Of units that were given out again, pieces may overlap; they say the same.
            for batch in range(first, last + 1):
                found[batch] = table.slice((batch - first) * batch_size, batch_size)
        return found

    def finished(self, fragment: int, digest: str) -> set[int]:
        """Numbers of the saved batches of a fragment."""
        spans = [_span(name) for name in self._store.names(_folder(fragment, digest))]
        return {batch for first, last in spans for batch in range(first, last + 1)}

    def all_finished(self) -> dict[tuple[int, str], set[int]]:
        """Numbers of the saved batches, by fragment and digest; one listing."""
        found: dict[tuple[int, str], set[int]] = {}
        for name in self._store.names("pieces/"):
            fragment, digest = name.split("/")[1].split("-")
            first, last = _span(name)
            found.setdefault((int(fragment), digest), set()).update(range(first, last + 1))
        return found

    def remove(self, fragment: int, digest: str) -> None:
        """Delete the pieces of a fragment, once its data file is recorded."""
        self._remove(_folder(fragment, digest))

    def clear(self) -> None:
        """Delete all pieces, those included that a driver left which was killed too soon."""
        self._remove("pieces/")

    def _remove(self, prefix: str) -> None:
        for name in self._store.names(prefix):
            self._store.remove(name)


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


def _folder(fragment: int, digest: str) -> str:
    return f"pieces/{fragment:08d}-{digest}/"


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
