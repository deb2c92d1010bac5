"""What a worker of CapFilt computes: rows are read and decoded, images captioned, texts scored."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
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
from openblip.capfilt.filters import Filter
from openblip.capfilt.job import SYNTHETIC_ERROR, CapFiltJob, CapFiltSettings, column_schema
from openblip.inference.encoding import EncodedImages
from openblip.jobs.columns import Load
from openblip.jobs.units import Waiting
from openblip.runtime.errors import DataError
from openblip.sources.images import open_image
from openblip.sources.row_images import GuardedDecoder, row_image
from openblip.table.columns import read_rows
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
    given: list[str]
    """What captioners read of each, see `WebRows.given`."""
    images: dict[str, Tensor]
    """The images for filters, (images, 3, height, width), by `Filter.input_key`."""
    pending: list[Pending]
    """What each captioner has begun to write about them."""
    errors: dict[int, str]
    """Why a row of the batch could not be read."""


class CapFiltComputer:
    """Captioners and filters, all loaded, on one device."""

    def __init__(self, job: CapFiltJob, device: str | None = None) -> None:
        """Loads the models.

        Args:
            job: settings and table.
            device: such as "cpu" or "cuda:0".

        Raises:
            DataError, CheckpointError, MissingHead: table or models cannot be used.
        """
        self.job = job
        self.settings: CapFiltSettings = job.settings
        self.captioners = open_captioners(job, device)
        self.filters = [Filter(one, device) for one in job.filters]
        # Only now: what was loaded must be what is checked.
        job.check_models()
        self._columns = [*_READ, *(name for own in self.captioners for name in own.columns)]
        self._usage = Usage()
        self.is_on_cpu = self.filters[0].model.device.type == "cpu"
        self.num_begun = 0
        if any(divided(source)[0] == "openai" for source in job.settings.captioners):
            # While one batch waits for its slowest answer, those behind it keep the server busy.
            requests = job.settings.batch_size * job.settings.num_captions
            self.num_begun = -(-2 * job.requests.at_once // requests)

    def close(self) -> None:
        """End what runs beside this thread."""
        for captioner in self.captioners:
            captioner.close()

    def counts(self) -> Counter[str]:
        """What the texts since the last time have cost, if that is known."""
        usage, self._usage = self._usage, Usage()
        return Counter({name: count for name, count in asdict(usage).items() if count})

    @contextmanager
    def guarded(self) -> Iterator[Load[LoadedBatch]]:
        """As `load`, but images are decoded in a process that may die of them."""
        with GuardedDecoder() as decoder:
            yield partial(self.load, decode=decoder.open)

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
            given=web.given,
            images={each.input_key: each.prepared(web) for each in self.filters},
            pending=[captioner.begin(web) for captioner in self.captioners] if found else [],
            errors=errors,
        )

    def process(self, loaded: LoadedBatch) -> "pa.Table":
        """The new columns of a batch; rows that are not from the web have nulls."""
        if not loaded.places:
            return _columns(self.job, loaded, [], {})
        # Before anything is written: what captioners read is decided here.
        encoded = self._judge_given(loaded) if self.settings.given_above else {}
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
            images = encoded.get(each) or loaded.images[each.input_key]
            scores |= each.score(images, cleaned, self.settings.first_token)
        return _columns(self.job, loaded, rows, scores)

    def _judge_given(self, loaded: LoadedBatch) -> dict[Filter, EncodedImages]:
        """Empty the given texts that the first filter of ours rejects, before they are read.

        Returns:
            the images as that filter has encoded them: it scores all texts later.
        """
        judge = next(one for one in self.filters if one.named.matches)
        encoded = judge.blip.encode(loaded.images[judge.input_key])
        texts = [[judge.clean(text)] if text else [] for text in loaded.given]
        scores = judge.score(encoded, texts, self.settings.first_token)[judge.named.scores[0]]
        for place, own in enumerate(scores):
            if not own or own[0] is None or own[0] <= self.settings.given_above:
                loaded.given[place] = ""
        return {judge: encoded}

    def wait(self, loaded: LoadedBatch) -> Iterator[Waiting]:
        """Yields while what was begun about a batch is not there yet."""
        for pending in loaded.pending:
            while (line := pending.wait(_WAIT_SECONDS)) is not None:
                yield Waiting(line)

    def without_result(self, reason: str, num_rows: int) -> "pa.Table":
        """The columns of rows that have no result, all for one reason."""
        import pyarrow as pa

        values: dict[str, list[object]] = {name: [None] * num_rows for name in self.job.columns}
        values["capfilt_error"] = [reason] * num_rows
        return pa.table(values, schema=column_schema(self.job.columns))


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
