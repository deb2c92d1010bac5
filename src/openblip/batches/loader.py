"""Batches for training, and images in order for evaluation, made ahead by threads.

A position in training is (seed, step) and nothing else: the order is a keyed permutation of each
epoch (`Mixture`), the caption of a row a keyed hash, its augmentation a generator keyed by (seed,
pass, row). So a run resumes at any step, with any number of threads, and ranks need not talk to
each other.
"""

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from openblip.batches.augmentation import Augmentation
from openblip.batches.mixture import Mixture, Samples, WeightedIndex
from openblip.batches.shuffle import keyed_hash
from openblip.batches.step_loader import Examples, StepLoader, spread
from openblip.batches.tokenizer import TextTokenizer
from openblip.batches.transforms import eval_transform, train_transform
from openblip.batches.unknown_words import TextSample, count_texts
from openblip.runtime.errors import DataError
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.images import UndecodedImage, open_image
from openblip.sources.row_images import encoded_image
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_COLUMNS = ("id", "image", "image_uri")
# What reading or decoding an image may raise.
_UNREADABLE = (DataError, OSError, ValueError)
# No row number, so that rows cannot move from one table to the next unseen.
_BETWEEN_TABLES = b"\xff" * 8


@dataclass(frozen=True)
class Batch(Examples):
    """Image-text pairs ready for a model, on the host."""

    ids: tuple[str, ...]
    """Ids of the rows."""
    images: Tensor
    """float32 (batch, 3, height, width), normalised."""
    tokens: Tensor
    """int64 (batch, tokens), the first token is `[CLS]`."""
    mask: Tensor
    """bool (batch, tokens), True = attend."""
    image_ids: Tensor
    """int64 (batch,), equal means the same image: row numbers, above 2^40 for further tables."""
    text_ids: Tensor
    """int64 (batch,), hashes of the cleaned texts: equal means the same text."""
    step: int
    """Number of the global batch that this is (a part of), from 0."""


class PairLoader(StepLoader[Batch]):
    """Endless batches of one or more tables, shuffled anew in each epoch.

    In an epoch every admitted row comes once, or as often as its table's weight says, with one of
    its admitted texts. The batch in which an epoch ends is filled up by the next one. Usable as a
    context manager, which ends the threads.

    Attributes:
        mixture: what comes when.
        waited_seconds: time that consumers have waited for batches so far.
    """

    def __init__(
        self,
        parts: Sequence[WeightedIndex],
        tokenizer: TextTokenizer,
        batch_size: int,
        image_size: int,
        augmentation: Augmentation | None,
        max_tokens: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_threads: int | None = None,
        prefix: str = "",
        max_words: int = 50,
        num_prefetched: int = 2,
        pin_memory: bool = False,
        scaled_decoding: bool = False,
    ) -> None:
        """Starts no thread.

        Args:
            parts: the admitted rows of each table, at least one, with their weights.
            tokenizer: for the texts.
            batch_size: pairs for each rank and step; the global batch is `world_size` times that.
            image_size: pixels of a side.
            augmentation: None for the plain resizing of evaluation.
            max_tokens: texts are cut to this many, `[CLS]` and `[SEP]` included.
            seed: at least 0; decides order, captions and augmentation.
            rank: which part of the global batch is wanted, below `world_size`.
            world_size: number of processes that share a global batch.
            num_threads: None for one for each core, 2 to 16.
            prefix: put before every cleaned caption, such as "a picture of ".
            max_words: captions are cut to this many before they are tokenised.
            num_prefetched: finished batches that may wait for the consumer.
            pin_memory: put batches where a GPU can fetch them while it computes.
            scaled_decoding: decode a JPEG no larger than its crop needs; not without augmentation.

        Raises:
            DataError: an epoch is smaller than one global batch.
        """
        super().__init__(
            batch_size, seed, rank, world_size, num_threads, num_prefetched, pin_memory
        )
        self.mixture = Mixture(parts, seed)
        self._tokenizer = tokenizer
        self._image_size, self._augmentation = image_size, augmentation
        self._max_tokens, self._prefix, self._max_words = max_tokens, prefix, max_words
        self._scaled_decoding = scaled_decoding
        if self.mixture.pairs_per_epoch < self._global_size:
            tables = ", ".join(dict.fromkeys(part.index.table.uri for part in parts))
            raise DataError(
                f"an epoch has {self.mixture.pairs_per_epoch:g} rows of {tables}, less than one "
                f"global batch of {batch_size} x {world_size} = {self._global_size}: lower the "
                f"batch size, or admit more ({'; '.join(self.mixture.summary())})"
            )

    @property
    def batches_per_epoch(self) -> float:
        """Global batches in a pass over the mixture, with the fraction."""
        return self.mixture.pairs_per_epoch / self._global_size

    @property
    def num_examples(self) -> int:
        """Rows that are admitted, each counted once, whatever the weights."""
        return self.mixture.num_rows

    def fingerprint(self) -> str:
        """A digest of the rows and texts that are admitted, equal on every machine."""
        digest = hashlib.blake2b(digest_size=8)
        for number, part in enumerate(self.mixture.parts):
            # Of one table nothing more: runs of before several were possible keep their digest.
            if number:
                digest.update(_BETWEEN_TABLES)
            digest.update(part.index.rows.astype("<i8").tobytes())
            digest.update(part.index.text_digest)
        return digest.hexdigest()

    def summary(self) -> list[str]:
        """A line for each table: pairs in an epoch, and the texts that its view admits."""
        return self.mixture.summary()

    def text_sample(self, most: int) -> TextSample:
        """As `StepLoader` says, of all texts that a row's view admits."""
        texts: list[str] = []
        num_rows = 0
        for part in self.mixture.parts:
            # Rounded up: a small table beside a large one is looked at too.
            share = -(-most * len(part.index) // self.num_examples)
            rows = part.index.rows[spread(len(part.index), share)]
            num_rows += len(rows)
            texts += [text for own in part.index.captions_of_rows(rows) for text in own]
        cleaning = self._tokenizer.cleaning
        read = [self._prefix + cleaning.caption(text, self._max_words) for text in texts]
        return TextSample(
            count_texts(self._tokenizer, read, self._max_tokens),
            num_rows,
            self.num_examples,
            self._max_tokens,
            self._max_words,
            sum(cleaning.exceeds(text, self._max_words) for text in texts),
        )

    def samples_of_step(self, step: int) -> Samples:
        """What this rank's part of the global batch `step` is made of."""
        first = step * self._global_size + self._rank * self._batch_size
        return self.mixture.samples(first, first + self._batch_size)

    def make(self, step: int) -> Batch:
        """This rank's part of the global batch of that number."""
        samples = self.samples_of_step(step)
        pairs = self._read(samples)
        draws = list(
            zip(samples.passes.tolist(), self.mixture.draw_keys(samples).tolist(), strict=True)
        )
        images = _stacked(
            [pair.row for pair in pairs],
            [(self._seed, *draw) for draw in draws],
            _empty_images(len(pairs), self._image_size, self._pin_memory),
            self._augmentation,
            self._scaled_decoding,
        )
        # Which text is a hash of the draw, not a random number: so nothing depends on the thread.
        texts = [
            self._tokenizer.cleaning.caption(
                pair.texts[keyed_hash(self._seed, *draw) % len(pair.texts)], self._max_words
            )
            for pair, draw in zip(pairs, draws, strict=True)
        ]
        tokens = self._tokenizer.encode([self._prefix + text for text in texts], self._max_tokens)
        return Batch(
            ids=tuple(pair.row.id for pair in pairs),
            images=images,
            tokens=tokens.ids,
            mask=tokens.mask,
            image_ids=torch.from_numpy(self.mixture.image_ids(samples)),
            text_ids=torch.tensor([text_id(text) for text in texts]),
            step=step,
        )

    def _read(self, samples: Samples) -> "list[_Pair]":
        """The samples as they are stored, in order; one read for each table."""
        # Places and not a list: the pairs of a step come table by table, and stand mixed.
        pairs: dict[int, _Pair] = {}
        for number in np.unique(samples.parts).tolist():
            index = self.mixture.parts[number].index
            places = np.flatnonzero(samples.parts == number)
            rows = samples.rows[places]
            # A view's columns may be among those of an image.
            columns = dict.fromkeys((*_IMAGE_COLUMNS, *index.columns))
            found = index.table.take(rows, list(columns))
            values = zip(
                places.tolist(),
                _rows_of(index.table, rows, found),
                index.admitted_texts(found),
                strict=True,
            )
            pairs |= {place: _Pair(row, texts) for place, row, texts in values}
        return [pairs[place] for place in range(len(samples.rows))]


class _Row(NamedTuple):
    """A row with an image, as it is stored."""

    number: int
    id: str
    image: bytes | None
    image_uri: str | None
    table: PairTable

    def tensor(
        self,
        image_size: int,
        augmentation: Augmentation | None = None,
        key: Sequence[int] = (),
        scaled_decoding: bool = False,
    ) -> Tensor:
        """Its image, float32 (3, size, size); at the transform of evaluation without augmentation.

        Raises:
            DataError, OSError, ValueError: it cannot be read.
        """
        encoded = encoded_image(self.image, self.image_uri)
        if augmentation is None:
            return eval_transform(open_image(encoded), image_size)
        image = UndecodedImage(encoded) if scaled_decoding else open_image(encoded)
        return train_transform(image, image_size, augmentation, np.random.default_rng(key))


class _Pair(NamedTuple):
    """An image and the texts that may stand for it."""

    row: _Row
    texts: list[str]


class ImageBatch(NamedTuple):
    """Some rows' images, and what is wrong with those that have none."""

    rows: np.ndarray
    """Row numbers of `images`, int64 (images,)."""
    images: Tensor
    """float32 (images, 3, size, size), normalised."""
    errors: dict[int, str]
    """Why a row that was asked for is not in `rows`, by row number."""


def iterate_images(
    table: PairTable,
    rows: Sequence[int] | np.ndarray,
    batch_size: int,
    image_size: int,
    num_threads: int | None = None,
) -> Generator[ImageBatch, None, None]:
    """Yields the images of `rows` in order, at the transform of evaluation.

    A batch covers `batch_size` of the rows that were asked for; an image that cannot be read
    makes it shorter (it may even be empty) and stands in its `errors`.

    Args:
        table: where the images are.
        rows: row numbers, in any order.
        batch_size: at least 1.
        image_size: pixels of a side.
        num_threads: None for one for each core, 2 to 16.
    """
    return _load_ahead(table, _parts(rows, batch_size), image_size, num_threads)


def every_image(
    table: PairTable, rows: Sequence[int] | np.ndarray, batch_size: int, image_size: int
) -> Iterator[Tensor]:
    """Yields the images of `iterate_images`, for those who can do without none of them.

    Raises:
        DataError: an image cannot be read; names the row.
    """
    return every_image_of(table, _parts(rows, batch_size), image_size)


def every_image_of(
    table: PairTable, batches: Iterable[np.ndarray], image_size: int
) -> Iterator[Tensor]:
    """As `every_image`, where batches differ in size: one tensor for the row numbers of each.

    Raises:
        DataError: an image cannot be read; names the row.
    """
    for batch in _load_ahead(table, batches, image_size):
        for row, reason in batch.errors.items():
            raise DataError(f"row {row} of {table.uri}: {reason}")
        yield batch.images


def read_images(
    table: PairTable,
    rows: np.ndarray,
    image_size: int,
    augmentation: Augmentation | None,
    keys: Sequence[Sequence[int]],
) -> tuple[tuple[str, ...], Tensor]:
    """Ids and images of some rows, which may repeat.

    Args:
        table: where they are.
        rows: int64 (rows,).
        image_size: pixels of a side.
        augmentation: None for the plain resizing of evaluation.
        keys: what decides each image's augmentation, one sequence per row.

    Returns:
        The ids, and float32 (rows, 3, size, size), normalised.

    Raises:
        DataError: an image cannot be read; names the row.
    """
    found = list(_rows_of(table, rows, table.take(rows, _IMAGE_COLUMNS)))
    images = _empty_images(len(rows), image_size, pin_memory=False)
    return tuple(row.id for row in found), _stacked(found, keys, images, augmentation)


def text_id(text: str) -> int:
    """A 63-bit hash of a cleaned text, the same on every machine and in every release."""
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    # Tensors have no unsigned 64 bits.
    return int.from_bytes(digest, "little") >> 1


def _parts(rows: Sequence[int] | np.ndarray, size: int) -> Iterator[np.ndarray]:
    wanted = np.asarray(rows, dtype=np.int64)
    return (wanted[at : at + size] for at in range(0, len(wanted), size))


def _load_ahead(
    table: PairTable,
    batches: Iterable[np.ndarray],
    image_size: int,
    num_threads: int | None = None,
) -> Generator[ImageBatch, None, None]:
    threads = num_threads or default_threads()
    return ordered_map(lambda rows: _load(table, rows, image_size), batches, threads, threads + 2)


def _load(table: PairTable, rows: np.ndarray, image_size: int) -> ImageBatch:
    # Filled from the front, and cut behind the last that could be read.
    images = _empty_images(len(rows), image_size, pin_memory=False)
    good: list[int] = []
    errors: dict[int, str] = {}
    for row in _rows_of(table, rows, table.take(rows, _IMAGE_COLUMNS)):
        try:
            images[len(good)] = row.tensor(image_size)
            good.append(row.number)
        except _UNREADABLE as error:
            errors[row.number] = str(error)
    return ImageBatch(np.array(good, dtype=np.int64), images[: len(good)], errors)


def _rows_of(table: PairTable, rows: np.ndarray, found: "pa.Table") -> Iterator[_Row]:
    """What was read of rows of these numbers, `_IMAGE_COLUMNS` and others."""
    columns = (found[name].to_pylist() for name in _IMAGE_COLUMNS)
    for number, key, image, uri in zip(rows.tolist(), *columns, strict=True):
        yield _Row(number, key, image, uri, table)


def _stacked(
    rows: Sequence[_Row],
    keys: Sequence[Sequence[int]],
    images: Tensor,
    augmentation: Augmentation | None,
    scaled_decoding: bool = False,
) -> Tensor:
    """`images` (rows, 3, size, size), filled; `keys` decide the augmentation of each.

    Raises:
        DataError: an image cannot be read; names the row.
    """
    for place, (row, key) in enumerate(zip(rows, keys, strict=True)):
        try:
            images[place] = row.tensor(images.shape[-1], augmentation, key, scaled_decoding)
        except _UNREADABLE as error:
            where = f"row {row.number} (id {row.id!r}) of {row.table.uri}"
            raise DataError(f"{where}: {error}") from error
    return images


def _empty_images(count: int, size: int, pin_memory: bool) -> Tensor:
    # Every image is written before it is read, so nothing is set to zero first.
    return torch.empty((count, 3, size, size), pin_memory=pin_memory)
