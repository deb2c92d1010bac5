"""The work on one batch of rows: read, caption, score."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from openblip.capfilt.job import CapFiltJob, CapFiltSettings
from openblip.data.reading import row_image
from openblip.data.shuffle import named_seed
from openblip.data.table import PairTable
from openblip.data.text import clean_caption
from openblip.data.transforms import eval_transform
from openblip.errors import DataError
from openblip.inference import Blip, Caption, Match, load

if TYPE_CHECKING:
    import pyarrow as pa

_READ = ["id", "image", "image_uri", "captions", "origin"]
NEW_COLUMNS = (
    "synthetic",
    "synthetic_logprob",
    "captions_itm",
    "captions_itc",
    "synthetic_itm",
    "synthetic_itc",
    "capfilt_error",
)


@dataclass(frozen=True)
class LoadedPart:
    """A batch read from the table: what is to be captioned, and what cannot be."""

    part: int
    num_rows: int
    places: list[int]
    """Rows within the part whose images stand in the tensors, in their order."""
    ids: list[str]
    captions: list[list[str]]
    captioner_images: Tensor
    filter_images: Tensor
    errors: dict[int, str]
    """Why a row of the part could not be read."""


class Worker:
    """Captioner and filter, both loaded, on one device."""

    def __init__(self, job: CapFiltJob, device: str | None = None) -> None:
        self.job = job
        self.settings: CapFiltSettings = job.settings
        self.captioner: Blip = load(job.settings.captioner, device=device)
        self.filter: Blip = load(job.settings.filter, device=device)
        self.captioner.med.require("lm")
        self.filter.med.require("itm")
        self.table = PairTable.open(job.table_uri)

    def run(self, parts: Iterable[int], done: Callable[[int], None]) -> None:
        """Compute and store parts; `done` is told the rows of each.

        The next part is read and decoded while the models work on this one. A CPU computes with one
        thread: the number of threads would change the last bits of a score.
        """
        with _one_thread():
            for loaded in _ahead(self.load, parts):
                self.job.write(loaded.part, self.process(loaded))
                done(loaded.num_rows)

    def load(self, part: int) -> LoadedPart:
        """Read a part's rows and decode the images of those that came from the web."""
        rows = self.job.rows(part)
        places, ids, captions, images = [], [], [], []
        errors: dict[int, str] = {}
        for place, row in enumerate(self.table.take(list(rows), _READ).to_pylist()):
            if row["origin"] != "web":
                continue
            try:
                image = row_image(row)
            except DataError as error:
                errors[place] = str(error)
                continue
            places.append(place)
            ids.append(row["id"])
            captions.append([clean_caption(text) for text in row["captions"] or []])
            images.append(image)
        sizes = {self.captioner.image_size, self.filter.image_size}
        tensors = {
            size: torch.stack([eval_transform(image, size) for image in images])
            if images
            else torch.empty(0, 3, size, size)
            for size in sizes
        }
        return LoadedPart(
            part=part,
            num_rows=len(rows),
            places=places,
            ids=ids,
            captions=captions,
            captioner_images=tensors[self.captioner.image_size],
            filter_images=tensors[self.filter.image_size],
            errors=errors,
        )

    def process(self, loaded: LoadedPart) -> "pa.Table":
        """The new columns of a part; rows that are not from the web have nulls."""
        if not loaded.places:
            return _columns(loaded, [], [])
        synthetic = self._write_captions(loaded)
        texts = [
            given + [clean_caption(caption.text) for caption in written]
            for given, written in zip(loaded.captions, synthetic, strict=True)
        ]
        encoded = self.filter.encode(loaded.filter_images)
        scores = self.filter.score(encoded, texts, first_token=self.settings.first_token)
        return _columns(loaded, synthetic, scores)

    def _write_captions(self, loaded: LoadedPart) -> list[list[Caption]]:
        encoded = self.captioner.encode(loaded.captioner_images)
        return self.captioner.generate(
            encoded,
            self.settings.decoding,
            prompt=self.settings.prompt,
            seeds=[named_seed(self.settings.seed, row_id) for row_id in loaded.ids],
            num_captions=self.settings.num_captions,
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ahead(load_part: Callable[[int], LoadedPart], parts: Iterable[int]) -> Iterator[LoadedPart]:
    """The loaded parts in order, one of them loading ahead in a thread."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = None
        for part in parts:
            following = pool.submit(load_part, part)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _columns(
    loaded: LoadedPart, synthetic: list[list[Caption]], scores: list[list[Match]]
) -> "pa.Table":
    import pyarrow as pa

    values: dict[str, list[object]] = {name: [None] * loaded.num_rows for name in NEW_COLUMNS}
    for number, place in enumerate(loaded.places):
        given = len(loaded.captions[number])
        written, matches = synthetic[number], scores[number]
        values["synthetic"][place] = [caption.text for caption in written]
        values["synthetic_logprob"][place] = [caption.logprob for caption in written]
        values["captions_itm"][place] = [match.itm for match in matches[:given]]
        values["captions_itc"][place] = [match.itc for match in matches[:given]]
        values["synthetic_itm"][place] = [match.itm for match in matches[given:]]
        values["synthetic_itc"][place] = [match.itc for match in matches[given:]]
    for place, reason in loaded.errors.items():
        values["capfilt_error"][place] = reason
    types = dict.fromkeys(NEW_COLUMNS, pa.list_(pa.float32()))
    types["synthetic"] = pa.list_(pa.string())
    types["capfilt_error"] = pa.string()
    return pa.table({name: pa.array(values[name], type=types[name]) for name in NEW_COLUMNS})
