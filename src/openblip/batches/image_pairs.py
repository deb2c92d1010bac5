"""Sentences about two images of a table (NLVR2), and batches of them to learn from.

The `meta` of a first image's row may hold `pairs`: a list of objects with `second` (the id of the
other image's row), `sentence`, `label` (true or false), and optionally `pair_id`.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openblip.batches.images import read_images
from openblip.batches.shuffle import keyed_hash
from openblip.batches.step_loader import ExampleLoader, Examples, spread
from openblip.batches.unknown_words import TextSample, count_texts
from openblip.runtime.errors import DataError
from openblip.table.rows import read_meta
from openblip.table.table import PairTable

# Which image is which matters to a sentence with a word like these: "on the right.", "leftmost".
_SIDES = re.compile(r"\b(left|right|first|second)", re.IGNORECASE)
# The published files have texts. 1 and 0 are right too: to Python they equal True and False.
_LABELS: dict[object, bool] = {True: True, False: False, "True": True, "False": False}


@dataclass(frozen=True)
class ImagePair:
    """A sentence about two images."""

    sentence: str
    second: str
    """Id of the second image's row."""
    label: bool
    """Whether the sentence is true."""
    key: str
    """Of the source, or the first row's id and the pair's place."""


def pairs_of(row_id: str, meta: str | None) -> list[ImagePair]:
    """The pairs of which a row's image is the first.

    Raises:
        DataError: one of them is malformed.
    """
    entries = read_meta(row_id, meta).get("pairs") or []
    return [_pair(f"{row_id}/{place}", entry) for place, entry in enumerate(entries)]


def _pair(key: str, entry: Mapping[str, Any]) -> ImagePair:
    try:
        return ImagePair(
            str(entry["sentence"]),
            str(entry["second"]),
            _LABELS[entry["label"]],
            str(entry.get("pair_id", key)),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"pair {key}: expected an object with `sentence`, `second` and `label` (true or "
            f"false), got {entry!r}"
        ) from error


@dataclass(frozen=True, eq=False)
class ImagePairIndex:
    """The pairs of a split."""

    table: PairTable
    split: str
    pairs: list[ImagePair]
    first_rows: np.ndarray
    """int64 (pairs,)."""
    second_rows: np.ndarray
    """int64 (pairs,)."""

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def image_rows(self) -> np.ndarray:
        """Rows of first and second images, int64 (2 pairs,)."""
        return np.concatenate([self.first_rows, self.second_rows])

    @classmethod
    def resolve(cls, table: PairTable, split: str) -> "ImagePairIndex":
        """The pairs of a split, found in one scan without images.

        Raises:
            DataError: there are none, one is malformed, or its second image is not in the table.
        """
        row_of: dict[str, int] = {}
        pairs: list[ImagePair] = []
        first_rows: list[int] = []
        for batch in table.scan(["id", "meta", "split"]):
            columns = (batch[name].to_pylist() for name in ("id", "meta", "split"))
            for key, meta, where in zip(*columns, strict=True):
                row_of[key] = len(row_of)
                if where == split:
                    own = pairs_of(key, meta)
                    pairs += own
                    first_rows += [row_of[key]] * len(own)
        if not pairs:
            raise DataError(f"{table.uri}: no row of the split {split!r} has pairs in its meta")
        # Only now: a second image may stand behind its pair, and in any split.
        missing = [pair for pair in pairs if pair.second not in row_of]
        if missing:
            raise DataError(
                f"{table.uri}: pair {missing[0].key}: no row has the id {missing[0].second!r} "
                f"({len(missing)} of {len(pairs)} pairs lack their second image)"
            )
        seconds = [row_of[pair.second] for pair in pairs]
        return cls(table, split, pairs, np.array(first_rows, np.int64), np.array(seconds, np.int64))


@dataclass(frozen=True)
class ImagePairBatch(Examples):
    """Sentences about two images each, ready for a model."""

    ids: tuple[str, ...]
    """Ids of the examples."""
    first_images: Tensor
    """float32 (pairs, 3, height, width), normalised; or states, as in `Batch`."""
    second_images: Tensor
    """float32 (pairs, 3, height, width), likewise."""
    tokens: Tensor
    """int64 (pairs, tokens), the first token is `[ENC]`."""
    mask: Tensor
    """bool (pairs, tokens), True = attend."""
    labels: Tensor
    """int64 (pairs,): 1 where the sentence is true of its images, else 0."""
    step: int
    """Number of the global batch that this is (a part of), from 0."""


class ImagePairLoader(ExampleLoader[ImagePairBatch, ImagePairIndex]):
    """Endless batches of the pairs of a table, shuffled anew in each epoch.

    With augmentation, half of the pairs whose sentence names neither left nor right are shown the
    other way round, as in the original, which does so in validation and test too.
    """

    noun = "pairs"

    def fingerprint(self) -> str:
        """A digest of the pairs' places in the table, their sentences and labels."""
        digest = hashlib.blake2b(digest_size=8)
        for numbers in (self.index.first_rows, self.index.second_rows):
            # In one order of bytes, as a run may go on on another machine.
            digest.update(numbers.astype("<i8").tobytes())
        digest.update("".join(f"{pair}\n" for pair in self.index.pairs).encode())
        return digest.hexdigest()

    def summary(self) -> list[str]:
        """How many pairs there are."""
        true = sum(pair.label for pair in self.index.pairs)
        count = len(self.index)
        return [
            f"{self.index.table.uri}: {count:,} sentences about two images, {true:,} of them true"
        ]

    def text_sample(self, most: int) -> TextSample:
        """As `StepLoader` says, of the sentences."""
        numbers = spread(len(self.index), most).tolist()
        sentences = [self.index.pairs[number].sentence for number in numbers]
        cleaning = self._tokenizer.cleaning
        texts = [cleaning.caption(sentence, self._max_words) for sentence in sentences]
        return TextSample(
            count_texts(self._tokenizer, texts, self._max_tokens),
            len(sentences),
            len(self.index),
            self._max_tokens,
            self._max_words,
            sum(cleaning.exceeds(sentence, self._max_words) for sentence in sentences),
        )

    def make(self, step: int) -> ImagePairBatch:
        """This rank's part of the global batch of that number."""
        numbers, keys = self._drawn(step)
        pairs = [self.index.pairs[number] for number in numbers.tolist()]
        swapped = np.array([self._swaps(p, k) for p, k in zip(pairs, keys, strict=True)])
        rows = np.stack([self.index.first_rows[numbers], self.index.second_rows[numbers]])
        rows = np.where(swapped, rows[::-1], rows)
        _, images = read_images(
            self.index.table,
            rows.reshape(-1),
            self._image_size,
            self._augmentation,
            # With the side, or both images of a pair would be cropped and flipped alike; in the
            # order of the rows, all first images before all second ones.
            [(self._seed, *key, side) for side in range(2) for key in keys],
            self._states,
        )
        clean = self._tokenizer.cleaning.caption
        texts = [clean(pair.sentence, self._max_words) for pair in pairs]
        tokens = self._tokenizer.encode(texts, self._max_tokens, first="enc")
        first_images, second_images = images.chunk(2)
        return ImagePairBatch(
            ids=tuple(pair.key for pair in pairs),
            first_images=first_images,
            second_images=second_images,
            tokens=tokens.ids,
            mask=tokens.mask,
            labels=torch.tensor([int(pair.label) for pair in pairs]),
            step=step,
        )

    def _swaps(self, pair: ImagePair, key: tuple[int, int]) -> bool:
        if self._augmentation is None or may_name_a_side(pair.sentence):
            return False
        # By epoch and number alone: a run that is resumed shows a pair as it would have.
        return keyed_hash(self._seed, *key) % 2 == 1


def may_name_a_side(sentence: str) -> bool:
    """Whether it matters to a sentence which image is which: in another script nobody can tell."""
    letters = [letter for letter in sentence if letter.isalpha()]
    is_foreign = 2 * sum(map(str.isascii, letters)) < len(letters)
    return is_foreign or _SIDES.search(sentence) is not None
