"""Image embeddings of a table's rows: a column, for searching and for finding what looks alike.

They are computed by a job (`jobs/`), on workers of this machine or of a Ray cluster. Each computes
what any other would: which worker embeds a row decides nothing.
"""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from openblip.curation.marks import EMBEDDING_KEY
from openblip.index.noted import EMBEDDING, ERROR_KEY
from openblip.inference.embedder import Embedder, embedder_fingerprint, load_embedder, prepare_image
from openblip.inference.loading import default_device
from openblip.jobs.columns import ColumnWorker, Load, TableColumns
from openblip.jobs.ledger import Store, open_store
from openblip.jobs.pools import RayCluster, ThisMachine, open_pool
from openblip.jobs.run import Run
from openblip.jobs.units import Kind, Waiting, num_batches
from openblip.runtime.errors import CheckpointError, DataError, RecipeError, one_line
from openblip.sources.images import open_image
from openblip.sources.row_images import GuardedDecoder, check_reachable, encoded_image
from openblip.table.columns import attach_columns, column_state, read_rows
from openblip.table.table import PairTable
from openblip.table.versions import again_after_conflicts

_READ = ("id", "image", "image_uri")
Decode = Callable[[bytes, str], Image.Image]


@dataclass(frozen=True)
class Embedded:
    """What a call has done for the column of a table."""

    computed: int
    """Rows that it worked on; the others were done before."""
    images: int
    """Images that went through the model; those that a killed worker lost went twice."""
    failed: tuple[str, ...]
    """Why parts of the table could not be read; a later call tries them again."""


def embed_table(
    table: PairTable,
    model: str,
    *,
    device: str | None = None,
    batch_size: int = 32,
    show_progress: bool = True,
    processes: int | None = None,
    ray: RayCluster | None = None,
    save_seconds: float = 10.0,
) -> Embedded:
    """Embed the images of a table; the column `image_embedding` covers every row then.

    Float16 of unit length; zeros for an image that cannot be read, about which the column
    `embedding_error` says why. Resumes, and extends as the table grows. The result depends on
    table, model and batch size alone: a processor computes with one thread for each worker, since
    their number would change the last bits.

    Args:
        table: gets the columns, and shows them afterwards.
        model: a model with an itc head, or a published CLIP; whatever `load_embedder` takes.
        device: of all processes; by default a GPU after the other where there are some.
        batch_size: images at a time.
        show_progress: on stderr.
        processes: default: one for each GPU, or for each core where there is none, but no more
            than there are batches. One computes in this process.
        ray: workers of a Ray cluster instead of processes of this machine.
        save_seconds: what is finished is saved so often; what a killed worker loses.

    Raises:
        CheckpointError, MissingHead: the model cannot be read, or cannot embed.
        DataError: rows were deleted from the table, and it was not compacted.
        JobLockedError: another process embeds the images of the table.
        RecipeError: a setting is out of range.
        OpenBlipError: the job cannot go on; what is finished is kept.
    """
    if ray is not None and device is not None:
        raise RecipeError(f"--device {device} is this machine's; with --ray: --gpus-per-worker")
    if device is None and default_device().type == "mps":
        # Told, since a pool looks for CUDA alone: it would start a process for each core.
        device = "mps"
    here = ThisMachine(processes=processes, device=device)
    if not len(table):
        return Embedded(0, 0, ())
    check_reachable(table)
    job = EmbeddingJob.prepare(table.uri, model, batch_size)
    if job.is_committed(table) and ERROR_KEY not in table.columns:
        # Embedded by an earlier version, which has written no reasons; its embeddings stay.
        attach_columns(table, {}, pa.schema([(ERROR_KEY, pa.string())]), replace=False)
    run = Run(job, TableColumns(job), lambda: open_pool(job, place, save_seconds), show_progress)
    view = run.look()
    batches = sum(num_batches(part.num_rows, batch_size) for part in view.missing)
    if processes is None:
        # Each of them loads the model: one without a batch would do it for nothing.
        here = replace(here, processes=max(min(here.num_workers(), batches), 1))
    place = ray or here
    if not view.is_complete:
        view = run.complete()
    table.refresh()
    if column_state(table, EMBEDDING_KEY).get("rows") != view.num_rows:
        noted = job.noted(view.num_rows)
        again_after_conflicts(lambda: PairTable.open(table.uri).update_metadata(noted))
        table.refresh()
    return Embedded(run.computed, run.counts["embedded"], tuple(run.failed.values()))


@dataclass(frozen=True)
class EmbeddingJob:
    """A model at work on the images of a table, however many rows it has today."""

    table_uri: str
    model: str
    """Whatever `load_embedder` takes, on every machine with workers."""
    model_fingerprint: str
    batch_size: int
    kind: ClassVar[Kind] = EMBEDDING
    columns: ClassVar[tuple[str, ...]] = (EMBEDDING_KEY, ERROR_KEY)
    filled_by: ClassVar[tuple[str, ...]] = (EMBEDDING_KEY,)
    """Earlier versions have written no reasons."""
    error_column: ClassVar[str] = ERROR_KEY

    @classmethod
    def prepare(cls, table_uri: str, model: str, batch_size: int) -> "EmbeddingJob":
        """The job of a model on a table; reads the model's files once.

        Raises:
            CheckpointError: there is no such model.
            RecipeError: the batch size is below 1.
        """
        if batch_size < 1:
            raise RecipeError(f"--batch-size {batch_size}: at least 1 image is embedded at a time")
        return cls(table_uri.rstrip("/"), model, embedder_fingerprint(model), batch_size)

    @property
    def fingerprint(self) -> str:
        """Of the model and of the batches in which pieces are saved."""
        # A saved piece is named by numbers of batches, which are other rows at another size.
        values = {"model": self.model_fingerprint, "batch_size": self.batch_size}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Store:
        """Ledger and unfinished work of this job."""
        return open_store(f"{EMBEDDING.folder(self.table_uri)}/{self.fingerprint}")

    @property
    def results(self) -> Store:
        """The table's own data files."""
        return open_store(f"{self.table_uri}/data")

    def description(self) -> str:
        """Model and batch size as JSON."""
        return json.dumps(
            {
                "model": self.model,
                "fingerprint": self.model_fingerprint,
                "batch_size": self.batch_size,
            }
        )

    def is_committed(self, table: PairTable) -> bool:
        """Whether the embeddings of a table are of this model, in batches of any size."""
        stored = column_state(table, EMBEDDING_KEY).get("settings")
        return stored == {"model": self.model_fingerprint} and EMBEDDING_KEY in table.columns

    def columns_left_by(self, table: PairTable) -> tuple[str, ...]:
        """None: the job has the same columns for all models."""
        return ()

    def noted(self, num_rows: int) -> dict[str, str]:
        """What the table's metadata says of the embeddings of so many rows."""
        settings = {"model": self.model_fingerprint}
        return {EMBEDDING_KEY: json.dumps({"settings": settings, "rows": num_rows})}

    def open_worker(self, device: str, save_seconds: float, decode_threads: int) -> ColumnWorker:
        """A worker of this process, with the model; see `Job.open_worker`."""
        computer, table = EmbeddingComputer(self, device), PairTable.open(self.table_uri)
        # This machine need not be that of the driver.
        check_reachable(table)
        return ColumnWorker(self, computer, table, save_seconds, decode_threads)


@dataclass(frozen=True)
class LoadedImages:
    """A batch read from the table."""

    num_rows: int
    places: list[int]
    """Rows within the batch whose images could be read, in their order."""
    images: list[torch.Tensor]
    """As the model reads them, (3, height, width)."""
    errors: dict[int, str]
    """Why the image of a row could not be read."""


class EmbeddingComputer:
    """A model on one device, that embeds the images of rows."""

    num_begun = 0

    def __init__(self, job: EmbeddingJob, device: str) -> None:
        """Loads the model.

        Raises:
            CheckpointError, MissingHead: it cannot be read, cannot embed, or is another by now.
        """
        self._model = load_embedder(job.model, device)
        # Only now: what was loaded must be what is checked.
        if (found := embedder_fingerprint(job.model)) != job.model_fingerprint:
            raise CheckpointError(
                f"{job.model} on {platform.node()} is the model {found}, but the job began with "
                f"{job.model_fingerprint}: put the same files there on every machine, or start the "
                "job anew"
            )
        self._width = embedding_width(self._model)
        self.is_on_cpu = self._model.device.type == "cpu"
        self._embedded = 0

    def close(self) -> None:
        """Nothing runs beside this thread."""

    def counts(self) -> Counter[str]:
        """Images that went through the model since the last time."""
        count, self._embedded = self._embedded, 0
        return Counter(embedded=count) if count else Counter()

    @contextmanager
    def guarded(self) -> Iterator[Load[LoadedImages]]:
        """As `load`, but images are decoded in a process that may die of them."""
        with GuardedDecoder() as decoder:
            yield partial(self.load, decode=decoder.open)

    def load(
        self, table: PairTable, fragment: int, rows: range, decode: Decode = open_image
    ) -> LoadedImages:
        """Read and prepare the images of some rows of a fragment."""
        places, images = [], []
        errors: dict[int, str] = {}
        for place, row in enumerate(read_rows(table, fragment, rows, _READ).to_pylist()):
            try:
                encoded = encoded_image(row["image"], row["image_uri"])
                image = decode(encoded, f"image of {len(encoded)} bytes")
                # In the reading thread: what waits for the model are small tensors, no photographs.
                images.append(prepare_image(self._model, image))
            except DataError as error:
                errors[place] = one_line(error)
                continue
            places.append(place)
        return LoadedImages(len(rows), places, images, errors)

    def wait(self, loaded: LoadedImages) -> Iterator[Waiting]:
        """Nothing: what is loaded is there."""
        return iter(())

    def process(self, loaded: LoadedImages) -> pa.Table:
        """The columns of a batch, zeros where an image cannot be read."""
        # Zeros and no nulls: every row has a vector, and the column is read as one array.
        values = np.zeros((loaded.num_rows, self._width), np.float16)
        if loaded.places:
            embeds = self._model.embed_prepared(torch.stack(loaded.images))
            values[loaded.places] = embeds.numpy().astype(np.float16)
        self._embedded += len(loaded.places)
        return _columns(values, [loaded.errors.get(place) for place in range(loaded.num_rows)])

    def without_result(self, reason: str, num_rows: int) -> pa.Table:
        """The columns of rows that have no result, all for one reason."""
        return _columns(np.zeros((num_rows, self._width), np.float16), [reason] * num_rows)


def _columns(values: NDArray[np.float16], reasons: list[str | None]) -> pa.Table:
    return pa.table(
        {EMBEDDING_KEY: embedding_array(values), ERROR_KEY: pa.array(reasons, pa.string())}
    )


def embedding_width(model: Embedder) -> int:
    """Numbers of an embedding.

    Raises:
        MissingHead: the model cannot embed.
    """
    # Tried out, as models of other libraries say it each in their own way.
    return model.embed_images(Image.new("RGB", (8, 8))).shape[1]


def embed_all(
    model: Embedder, images: Iterable[Image.Image], batch_size: int
) -> NDArray[np.float16]:
    """Embeddings (images, width) of images that can be read, as they are stored."""
    stored: NDArray[np.float16] = model.embed_images(images, batch_size).numpy().astype(np.float16)
    return stored


def embedding_array(values: NDArray[np.float16]) -> Any:
    """Embeddings (rows, width) as an Arrow array of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
