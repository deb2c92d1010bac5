"""Batches of image-text pairs for training, made ahead by threads.

A position in training is (seed, step) and nothing else: the order is a keyed permutation of each
epoch (`Mixture`), the caption of a row a keyed hash, its augmentation a generator keyed by (seed,
pass, row). So a run resumes at any step, with any number of threads, and ranks need not talk to
each other.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from openblip.batches.augmentation import Augmentation
from openblip.batches.corruption import WRONG_KINDS, Corruptions
from openblip.batches.image_states import RowStates
from openblip.batches.images import (
    IMAGE_COLUMNS,
    StoredRow,
    empty_images,
    stacked_images,
    stored_rows,
)
from openblip.batches.mixture import Mixture, Samples, WeightedIndex
from openblip.batches.shuffle import keyed_hash
from openblip.batches.step_loader import Examples, StatesOf, StepLoader, smaller_batch, spread
from openblip.batches.tokenizer import TextTokenizer, TokenBatch
from openblip.batches.unknown_words import TextSample, count_texts
from openblip.runtime.errors import DataError
from openblip.table.judging import AdmittedText, TextRule, fitting
from openblip.table.views import CaptionView

if TYPE_CHECKING:
    pass

# No row number, so that rows cannot move from one table to the next unseen.
_BETWEEN_TABLES = b"\xff" * 8
# What is decided of a pair in a pass besides its text: each is a part of a hash of its own.
_TYPED_NEGATIVE, _FOLLOWED_RULE = 1, 2


@dataclass(frozen=True)
class Batch(Examples):
    """Image-text pairs ready for a model, on the host."""

    ids: tuple[str, ...]
    """Ids of the rows."""
    images: Tensor
    """float32 (batch, 3, height, width), normalised; or float16 (batch, patches, width), what the
    image encoder makes of them."""
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
    given_tokens: Tensor | None = None
    """int64 (batch,), tokens of the text that is given before the prompt, its `[SEP]` included;
    None where none is given."""
    corrupted_tokens: Tensor | None = None
    """int64 (batch, tokens), corruptions of the texts, which are wrong about the images; None where
    none are asked for."""
    corrupted_mask: Tensor | None = None
    """bool (batch, tokens), of these; a row without any is masked out."""
    decoder_tokens: Tensor | None = None
    """int64 (batch, tokens), where a decoder learns to write other texts than `tokens`; or None."""
    decoder_mask: Tensor | None = None
    """bool (batch, tokens), of these."""

    @property
    def written(self) -> tuple[Tensor, Tensor]:
        """Tokens and mask of the texts that a decoder learns to write."""
        if self.decoder_tokens is None or self.decoder_mask is None:
            return self.tokens, self.mask
        return self.decoder_tokens, self.decoder_mask

    @property
    def corrupted(self) -> TokenBatch | None:
        """Tokens and mask of the corruptions, if there are any."""
        if self.corrupted_tokens is None or self.corrupted_mask is None:
            return None
        return TokenBatch(self.corrupted_tokens, self.corrupted_mask)


@dataclass(frozen=True, kw_only=True)
class MadeTexts:
    """What a loader makes of the human texts of its tables."""

    corruptions: Sequence[Corruptions]
    """Of each part."""
    given_tokens: int = 0
    """A text that is given before a caption is cut to so many tokens; 0 gives none."""
    typed_negatives: float = 0.0
    """Share of the rows that get a corrupted text for matching."""


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
        made: MadeTexts | None = None,
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
            made: texts that are made of the tables' human ones besides; None makes none.

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
        self._states: list[RowStates] | None = None
        self._texts_to_make = made
        self._reads_given = made is not None and made.given_tokens > 0
        # What is given stands before what is written; nothing is contrasted then.
        self._has_two_texts = not self._reads_given and any(
            part.index.view.has_two_texts for part in parts
        )
        if self.mixture.pairs_per_epoch < self._global_size:
            tables = ", ".join(dict.fromkeys(part.index.table.uri for part in parts))
            raise DataError(
                f"an epoch has {self.mixture.pairs_per_epoch:g} rows of {tables}, less than one "
                f"global batch of {batch_size} x {world_size} = {self._global_size}: "
                f"{smaller_batch(self.mixture.pairs_per_epoch, world_size)}, or admit more "
                f"({'; '.join(self.mixture.summary())})"
            )

    def use_states(self, states_of: StatesOf) -> None:
        """As `StepLoader` says."""
        indices = [part.index for part in self.mixture.parts]
        self._states = [states_of(index.table, index.rows) for index in indices]

    def name_tokens(self) -> set[int]:
        """Tokens that a captioner is to write from its given text alone; of any other none."""
        if self._texts_to_make is None or not self._reads_given:
            return set()
        own = [one.name_tokens(self._tokenizer) for one in self._texts_to_make.corruptions]
        names, others = (set.union(*some) for some in zip(*own, strict=True))
        # What stands in a human text of any table is no name's alone.
        return names - others

    @property
    def batches_per_epoch(self) -> float:
        """Global batches in a pass over the mixture, with the fraction."""
        return self.mixture.pairs_per_epoch / self._global_size

    @property
    def num_examples(self) -> int:
        """Rows that are admitted, each counted once, whatever the weights."""
        return self.mixture.num_rows

    def fingerprint(self) -> str:
        """A digest of the rows, texts and weights that are admitted, equal on every machine."""
        digest = hashlib.blake2b(digest_size=8)
        for number, part in enumerate(self.mixture.parts):
            # Of one table nothing more: runs of before several were possible keep their digest.
            if number:
                digest.update(_BETWEEN_TABLES)
            digest.update(part.index.rows.astype("<i8").tobytes())
            digest.update(part.index.text_digest)
            if part.index.weights is not None:
                digest.update(part.index.weights.astype("<f4").tobytes())
        for own in () if self._texts_to_make is None else self._texts_to_make.corruptions:
            digest.update(own.digest())
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
        images = self._known_states(samples)
        if images is None:
            images = stacked_images(
                [pair.row for pair in pairs],
                [(self._seed, *draw) for draw in draws],
                empty_images(len(pairs), self._image_size, self._pin_memory),
                self._augmentation,
                self._scaled_decoding,
            )
        keys = [_Keys.of(self._seed, *draw) for draw in draws]
        chosen = _chosen(pairs, keys, "decoder_text" if self._reads_given else "contrast_text")
        corrupted = self._corrupted(samples, pairs, chosen, draws)
        given, read = self._given(samples, pairs, chosen, draws)
        texts = self._clean(read)
        tokens, given_tokens = self._tokens(given, texts)
        written = None
        if self._has_two_texts:
            texts_to_write = [text.text for text in _chosen(pairs, keys, "decoder_text")]
            written, _ = self._tokens(None, self._clean(texts_to_write))
        return Batch(
            ids=tuple(pair.row.id for pair in pairs),
            images=images,
            tokens=tokens.ids,
            mask=tokens.mask,
            image_ids=torch.from_numpy(self.mixture.image_ids(samples)),
            text_ids=torch.tensor([text_id(text) for text in texts]),
            step=step,
            given_tokens=given_tokens,
            corrupted_tokens=None if corrupted is None else corrupted.ids,
            corrupted_mask=None if corrupted is None else corrupted.mask,
            decoder_tokens=None if written is None else written.ids,
            decoder_mask=None if written is None else written.mask,
        )

    def _known_states(self, samples: Samples) -> Tensor | None:
        """The states of the samples' images in their order; None where images are read."""
        if self._states is None:
            return None
        found: list[Tensor] = [torch.empty(0)] * len(samples.rows)
        for number in np.unique(samples.parts).tolist():
            places = np.flatnonzero(samples.parts == number)
            states = self._states[number].read(samples.rows[places])
            for place, state in zip(places.tolist(), states, strict=True):
                found[place] = state
        return torch.stack(found)

    def _corruptions(self, samples: Samples) -> list[Corruptions]:
        """Of each sample those of its table."""
        assert self._texts_to_make is not None, "only where texts are made"
        return [self._texts_to_make.corruptions[part] for part in samples.parts.tolist()]

    def _given(
        self,
        samples: Samples,
        pairs: "Sequence[_Pair]",
        chosen: Sequence[AdmittedText],
        draws: Sequence[tuple[int, int]],
    ) -> tuple[list[str | None] | None, list[str]]:
        """What stands before each caption, if anything is given, and the captions."""
        if self._texts_to_make is None or not self._texts_to_make.given_tokens:
            return None, [text.text for text in chosen]
        told = [
            own.given(
                pair.row.id,
                text.text,
                [other.text for other in pair.texts],
                number,
                None if text.agreed is None else text.agreed.text,
            )
            for own, pair, text, (number, _) in zip(
                self._corruptions(samples), pairs, chosen, draws, strict=True
            )
        ]
        return [pair.given for pair in told], [pair.target for pair in told]

    def _clean(self, texts: Sequence[str]) -> list[str]:
        return [self._tokenizer.cleaning.caption(text, self._max_words) for text in texts]

    def _tokens(
        self, given: Sequence[str | None] | None, texts: Sequence[str]
    ) -> tuple[TokenBatch, Tensor | None]:
        """The captions behind the prefix, and how many tokens are given before that."""
        read = [self._prefix + text for text in texts]
        if given is None or self._texts_to_make is None:
            return self._tokenizer.encode(read, self._max_tokens), None
        before = self._clean([text or "" for text in given])
        most = self._texts_to_make.given_tokens
        return self._tokenizer.encode_behind(before, read, most, self._max_tokens)

    def _corrupted(
        self,
        samples: Samples,
        pairs: "Sequence[_Pair]",
        chosen: Sequence[AdmittedText],
        draws: Sequence[tuple[int, int]],
    ) -> TokenBatch | None:
        """For some of the pairs a text that is wrong, without the prefix."""
        if self._texts_to_make is None or not self._texts_to_make.typed_negatives:
            return None
        found = []
        for own, pair, text, draw in zip(
            self._corruptions(samples), pairs, chosen, draws, strict=True
        ):
            # Of the same key as the choice of the text, and yet another number.
            share = keyed_hash(self._seed, *draw, _TYPED_NEGATIVE) / 2**64
            made = None
            if share < self._texts_to_make.typed_negatives:
                others = [other.text for other in pair.texts]
                made = own.draw(WRONG_KINDS, pair.row.id, text.text, others, draw[0])
            found.append("" if made is None else made.text)
        tokens = self._tokenizer.encode(self._clean(found), self._max_tokens)
        has_text = torch.tensor([bool(text) for text in found])
        return TokenBatch(tokens.ids, tokens.mask & has_text[:, None])

    def _read(self, samples: Samples) -> "list[_Pair]":
        """The samples as they are stored, in order; one read for each table."""
        # Places and not a list: the pairs of a step come table by table, and stand mixed.
        pairs: dict[int, _Pair] = {}
        for number in np.unique(samples.parts).tolist():
            index = self.mixture.parts[number].index
            places = np.flatnonzero(samples.parts == number)
            rows = samples.rows[places]
            # A view's columns may be among those of an image.
            needed = IMAGE_COLUMNS if self._states is None else ("id",)
            columns = dict.fromkeys((*needed, *index.columns))
            found = index.table.take(rows, list(columns))
            values = zip(
                places.tolist(),
                stored_rows(index.table, rows, found),
                index.admitted(found),
                strict=True,
            )
            pairs |= {place: _Pair(row, texts, index.view) for place, row, texts in values}
        return [pairs[place] for place in range(len(samples.rows))]


class _Pair(NamedTuple):
    """An image and the texts that may stand for it."""

    row: StoredRow
    texts: list[AdmittedText]
    view: CaptionView


class _Keys(NamedTuple):
    """What decides which text stands for an image in a pass: hashes that are independent.

    Contrast and decoder share both, so that readers with the same choice get the same text.
    """

    text: int
    rule: int

    @classmethod
    def of(cls, seed: int, *draw: int) -> "_Keys":
        return cls(keyed_hash(seed, *draw), keyed_hash(seed, *draw, _FOLLOWED_RULE))


def _chosen(
    pairs: Sequence[_Pair],
    keys: Sequence[_Keys],
    reader: Literal["contrast_text", "decoder_text"],
) -> list[AdmittedText]:
    """A text of each pair, as its view's rule for a reader says."""
    chosen = []
    for pair, key in zip(pairs, keys, strict=True):
        rule = getattr(pair.view, reader)
        texts = pair.texts if rule == "any" else _preferred(pair.texts, rule, key.rule)
        chosen.append(_drawn(texts, key.text))
    return chosen


def _preferred(texts: Sequence[AdmittedText], rule: TextRule, key: int) -> Sequence[AdmittedText]:
    """The texts that a rule takes; now and then all, where those are less likely right.

    An image comes as often as the likeliest of all its texts is right. Were the rule always
    followed, texts that are hardly ever right would come as often. So it is followed as often as if
    they were all that the image has; the draw among all may still be one of them.
    """
    own = fitting(texts, rule)
    best, of_all = (max(text.weight for text in some) for some in (own, texts))
    # Of equal ones no hash decides: divided as a float, the largest is 1.
    return own if best == of_all or key / 2**64 * of_all < best else texts


def _drawn(texts: Sequence[AdmittedText], key: int) -> AdmittedText:
    """One of some texts, in proportion to their weights.

    A hash of the draw decides, not a random number: so nothing depends on the thread.
    """
    weights = [text.weight for text in texts]
    if min(weights) == max(weights):
        return texts[key % len(texts)]
    point = key / 2**64 * sum(weights)
    # Rounding may leave the point a little behind the last one's end.
    ends = list(accumulate(weights))
    return texts[min(bisect_right(ends, point), len(texts) - 1)]


def text_id(text: str) -> int:
    """A 63-bit hash of a cleaned text, the same on every machine and in every release."""
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    # Tensors have no unsigned 64 bits.
    return int.from_bytes(digest, "little") >> 1
