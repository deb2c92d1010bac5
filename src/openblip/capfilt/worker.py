"""The work on one fragment: read, decode, caption, score, and write the new columns."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from openblip.capfilt.job import NEW_COLUMNS, CapFiltJob, CapFiltSettings, column_schema
from openblip.capfilt.units import FragmentResult, Pieces, SaveClock, Unit, UnitDone
from openblip.data.fragments import ColumnFile, encode_columns, read_rows
from openblip.data.guarded import GuardedDecoder
from openblip.data.images import open_image
from openblip.data.parallel import ordered_map
from openblip.data.reading import check_reachable, row_image
from openblip.data.shuffle import named_seed
from openblip.data.table import PairTable
from openblip.data.transforms import eval_transform
from openblip.errors import DataError
from openblip.inference import Blip, Caption, Match, load
from openblip.threads import one_thread

if TYPE_CHECKING:
    import pyarrow as pa

_READ = ["id", "image", "image_uri", "captions", "origin"]
Decode = Callable[[bytes, str], Image.Image]


@dataclass(frozen=True)
class LoadedBatch:
    """A batch read from the table: what is to be captioned, and what cannot be."""

    num_rows: int
    places: list[int]
    """Rows within the batch whose images stand in the tensors, in their order."""
    ids: list[str]
    captions: list[list[str]]
    images: dict[int, Tensor]
    """The images for models of each size, (images, 3, size, size)."""
    errors: dict[int, str]
    """Why a row of the batch could not be read."""


class Worker:
    """Captioners and filter, all loaded, on one device."""

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
        self.captioners = [load(source, device=device) for source in job.settings.captioners]
        self.filter: Blip = load(job.settings.filter, device=device)
        for captioner in self.captioners:
            captioner.require("lm")
        self.filter.require("itm")
        # Only now: what was loaded must be what is checked.
        job.check_models()
        # The filter alone reads texts.
        self._clean = self.filter.tokenizer.cleaning.caption
        self._names = job.models[:-1]
        self._pieces, self._data = Pieces(job.folder), job.data_folder
        self._table = PairTable.open(job.table_uri)
        # This machine need not be that of the driver.
        check_reachable(self._table)
        self._save_seconds, self._decode_threads = save_seconds, decode_threads

    def compute(self, unit: Unit) -> Iterator[int | UnitDone]:
        """Compute a unit; yields the rows of each finished batch, and at last a `UnitDone`.

        A CPU computes with one thread: the number of threads would change the last bits of a score.

        Raises:
            DataError: the fragment cannot be read.
            StorageError: results cannot be written.
        """
        clock = SaveClock(0.0 if unit.careful else self._save_seconds)
        fresh: dict[int, pa.Table] = {}
        with one_thread() if self.filter.device.type == "cpu" else nullcontext():
            for batch, columns in self._computed(unit):
                fresh[batch] = columns
                if clock.is_due():
                    self._pieces.write(unit, fresh)
                    fresh.clear()
                yield columns.num_rows
        if unit.seals:
            yield UnitDone(self._seal(unit, fresh))
        else:
            self._pieces.write(unit, fresh)
            yield UnitDone(None)

    def _computed(self, unit: Unit) -> "Iterator[tuple[int, pa.Table]]":
        table = self._table_at(unit.version)
        rows = {batch: self.job.batch_rows(batch, unit.num_rows) for batch in unit.batches}
        for batch, reason in unit.blamed.items():
            if batch in rows:
                yield batch, _reason_columns(reason, len(rows.pop(batch)))

        if unit.careful:
            with GuardedDecoder() as decoder:
                for batch in rows:
                    loaded = self.load(table, unit.fragment, rows[batch], decoder.open)
                    yield batch, self.process(loaded)
            return
        threads = self._decode_threads
        ahead = ordered_map(
            lambda batch: self.load(table, unit.fragment, rows[batch]), rows, threads, threads + 1
        )
        for batch, loaded in zip(rows, ahead, strict=True):
            yield batch, self.process(loaded)

    def load(
        self, table: PairTable, fragment: int, rows: range, decode: Decode = open_image
    ) -> LoadedBatch:
        """Read rows of a fragment and decode the images of those that came from the web."""
        places, ids, captions, images = [], [], [], []
        errors: dict[int, str] = {}
        for place, row in enumerate(read_rows(table, fragment, rows, _READ).to_pylist()):
            if row["origin"] != "web":
                continue
            try:
                image = row_image(row, decode)
            except DataError as error:
                errors[place] = str(error)
                continue
            places.append(place)
            ids.append(row["id"])
            captions.append([self._clean(text) for text in row["captions"] or []])
            images.append(image)
        sizes = {model.image_size for model in (*self.captioners, self.filter)}
        tensors = {
            size: torch.stack([eval_transform(image, size) for image in images])
            if images
            else torch.empty(0, 3, size, size)
            for size in sizes
        }
        return LoadedBatch(
            num_rows=len(rows),
            places=places,
            ids=ids,
            captions=captions,
            images=tensors,
            errors=errors,
        )

    def process(self, loaded: LoadedBatch) -> "pa.Table":
        """The new columns of a batch; rows that are not from the web have nulls."""
        if not loaded.places:
            return _columns(loaded, [], [], self._names)
        synthetic = self._write_captions(loaded)
        texts = [
            given + [self._clean(caption.text) for caption in written]
            for given, written in zip(loaded.captions, synthetic, strict=True)
        ]
        encoded = self.filter.encode(loaded.images[self.filter.image_size])
        scores = self.filter.score(encoded, texts, first_token=self.settings.first_token)
        return _columns(loaded, synthetic, scores, self._names)

    def _write_captions(self, loaded: LoadedBatch) -> list[list[Caption]]:
        """For each image the texts of the first captioner, then those of the next."""
        seeds = [named_seed(self.settings.seed, row_id) for row_id in loaded.ids]
        written: list[list[Caption]] = [[] for _ in seeds]
        for captioner in self.captioners:
            captions = captioner.generate(
                captioner.encode(loaded.images[captioner.image_size]),
                self.settings.decoding,
                prompt=self.settings.prompt,
                seeds=seeds,
                num_captions=self.settings.num_captions,
            )
            for of_image, own in zip(written, captions, strict=True):
                of_image += own
        return written

    def _seal(self, unit: Unit, fresh: "dict[int, pa.Table]") -> FragmentResult:
        """Write the fragment's data file, from what was just computed and what was saved before."""
        import pyarrow as pa

        count = self.job.num_batches(unit.num_rows)
        used_pieces = len(fresh) < count
        if unit.failure:
            columns = _reason_columns(unit.failure, unit.num_rows)
        else:
            if used_pieces:
                fresh = self._pieces.read(unit, self.settings.batch_size) | fresh
            columns = pa.concat_tables([fresh[batch] for batch in range(count)])
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


def _columns(
    loaded: LoadedBatch,
    synthetic: list[list[Caption]],
    scores: list[list[Match]],
    captioners: Sequence[str],
) -> "pa.Table":
    import pyarrow as pa

    values: dict[str, list[object]] = {name: [None] * loaded.num_rows for name in NEW_COLUMNS}
    for number, place in enumerate(loaded.places):
        given = len(loaded.captions[number])
        written, matches = synthetic[number], scores[number]
        values["synthetic"][place] = [caption.text for caption in written]
        values["synthetic_logprob"][place] = [caption.logprob for caption in written]
        each = len(written) // len(captioners)
        values["synthetic_captioner"][place] = [name for name in captioners for _ in range(each)]
        values["captions_itm"][place] = [match.itm for match in matches[:given]]
        values["captions_itc"][place] = [match.itc for match in matches[:given]]
        values["synthetic_itm"][place] = [match.itm for match in matches[given:]]
        values["synthetic_itc"][place] = [match.itc for match in matches[given:]]
    for place, reason in loaded.errors.items():
        values["capfilt_error"][place] = reason
    return pa.table(values, schema=column_schema())


def _reason_columns(reason: str, num_rows: int) -> "pa.Table":
    """The columns of rows that have no result, all for one reason."""
    import pyarrow as pa

    values: dict[str, list[object]] = {name: [None] * num_rows for name in NEW_COLUMNS}
    values["capfilt_error"] = [reason] * num_rows
    return pa.table(values, schema=column_schema())
