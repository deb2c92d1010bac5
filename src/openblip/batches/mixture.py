"""Several tables learnt from together: which pair comes when, as a function of (seed, number).

Pairs are numbered from 0 over the whole run. An epoch is a pass over the mixture: of each table it
takes as many rows as the table's weight says, in one common random order. Nothing is counted along
the way, so any number can be asked for at once, by any process; nothing is stored but the weights
of rows, where a view weighs them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np

from openblip.batches.shuffle import KeyedPermutation, Thinning, keyed_hash, thinned_size
from openblip.runtime.errors import RecipeError
from openblip.table.views import ViewIndex

_LARGEST_DENOMINATOR = 1_000_000
_ROW_BITS = 40


@dataclass(frozen=True, eq=False)
class WeightedIndex:
    """What a view admits of one table, and how often an epoch shows it."""

    index: ViewIndex
    """The admitted rows."""
    weight: float = 1.0
    """Passes over those rows in one epoch, more than 0: with 0.5 each row comes in one of two
    epochs, with 2 twice in each. Taken as the fraction that it is nearest to (1/3 for 0.333333).
    Where the view weighs its rows, a pass shows a part of them, each in proportion."""

    def __post_init__(self) -> None:
        """Checks the weight."""
        if not (math.isfinite(self.weight) and self.exact_weight > 0):
            raise RecipeError(
                f"the weight of {self.index.table.uri} is {self.weight}; give more than 0, or "
                "leave the table out"
            )

    @property
    def exact_weight(self) -> Fraction:
        """The weight as a fraction, so that no rounding adds up over the epochs."""
        return Fraction(self.weight).limit_denominator(_LARGEST_DENOMINATOR)

    @cached_property
    def rows_per_pass(self) -> int:
        """Rows that a pass shows: all, where the view does not weigh them."""
        weights = self.index.weights
        return len(self.index) if weights is None else thinned_size(weights)

    def rows_before(self, epoch: int) -> int:
        """Rows of this table that all epochs before `epoch` show together."""
        return math.floor(self.exact_weight * self.rows_per_pass * epoch)


class Samples(NamedTuple):
    """Rows of the mixture's tables in the order in which a run meets them; int64 (samples,)."""

    parts: np.ndarray
    """Which part of the mixture each is from."""
    rows: np.ndarray
    """Its row number in the table of that part."""
    passes: np.ndarray
    """Which pass over that part it is, from 0: how often the row has come before, or could have."""


class Mixture:
    """The common order of the pairs of one or more tables.

    After every epoch in which `weight * epochs` is whole, each row of a table has been shown
    exactly that number of times; after any other epoch, once more than some of its fellows at most.
    Of a table whose rows have weights, each has been shown in proportion to its own (`Thinning`).

    Attributes:
        parts: the tables; a table may occur with several views.
    """

    def __init__(self, parts: Sequence[WeightedIndex], seed: int) -> None:
        """Reads nothing.

        Args:
            parts: at least one.
            seed: decides the order.
        """
        self.parts = tuple(parts)
        self._seed = seed
        uris = [part.index.table.uri for part in parts]
        # One table twice is one set of images.
        self._table_numbers = np.array([uris.index(uri) for uri in uris], dtype=np.int64)
        self._exact_pairs = sum(
            (part.exact_weight * part.rows_per_pass for part in self.parts), Fraction(0)
        )
        self._thinnings = [
            None if weights is None else Thinning(weights, keyed_hash(seed, number, -1))
            for number, weights in enumerate(part.index.weights for part in self.parts)
        ]

    @property
    def num_rows(self) -> int:
        """Rows that are admitted, each counted once, whatever the weights."""
        return sum(len(part.index) for part in self.parts)

    @property
    def pairs_per_epoch(self) -> float:
        """Pairs in an epoch on average; those of single epochs differ by less than a table each."""
        return float(self._exact_pairs)

    def pairs_before(self, epoch: int) -> int:
        """Number of the first pair of an epoch."""
        return sum(part.rows_before(epoch) for part in self.parts)

    def epoch_of(self, number: int) -> int:
        """The epoch that the pair of this number belongs to."""
        # Exact: a float would lose whole numbers above 2^53, and with them a resumed position.
        epoch = math.floor(number / self._exact_pairs)
        # Rounding down, table by table, makes epochs begin a little earlier than on average.
        while self.pairs_before(epoch + 1) <= number:
            epoch += 1
        return epoch

    def samples(self, start: int, stop: int) -> Samples:
        """The pairs with the numbers from `start` to `stop` - 1."""
        none = np.zeros(0, dtype=np.int64)
        found = [Samples(none, none, none)]
        while start < stop:
            epoch = self.epoch_of(start)
            first, end = self.pairs_before(epoch), self.pairs_before(epoch + 1)
            order = KeyedPermutation(end - first, keyed_hash(self._seed, epoch))
            places = order(np.arange(start, min(stop, end)) - first)
            found.append(self._of_epoch(epoch, places))
            start = end
        return Samples(*(np.concatenate(columns) for columns in zip(*found, strict=True)))

    def image_ids(self, samples: Samples) -> np.ndarray:
        """Numbers that tell images of all tables apart, int64: of the first table, its rows."""
        # Tables have fewer than 2^40 rows, and fewer than 2^23 of them are mixed.
        ids: np.ndarray = (self._table_numbers[samples.parts] << _ROW_BITS) + samples.rows
        return ids

    def draw_keys(self, samples: Samples) -> np.ndarray:
        """Keys of what is drawn for each sample in its pass, int64; parts draw on their own."""
        keys: np.ndarray = (samples.parts << _ROW_BITS) + samples.rows
        return keys

    def summary(self) -> list[str]:
        """A line for each table: pairs in an epoch, and the texts that its view admits."""
        lines = []
        for part in self.parts:
            pairs = float(part.exact_weight * part.rows_per_pass)
            share = 100 * pairs / self.pairs_per_epoch
            is_weighed = part.index.weights is not None
            rows = f"{part.rows_per_pass:,} of " * is_weighed + f"{len(part.index):,} rows"
            lines.append(
                f"{part.index.table.uri}: {pairs:,.10g} pairs per epoch ({share:.3g} %), "
                f"weight {part.weight:g} x {rows}; {part.index.summary()}"
            )
        return lines

    def _of_epoch(self, epoch: int, places: np.ndarray) -> Samples:
        """What stands at places of an epoch, whose tables follow each other unshuffled."""
        begins = [part.rows_before(epoch) for part in self.parts]
        counts = [
            part.rows_before(epoch + 1) - begin
            for part, begin in zip(self.parts, begins, strict=True)
        ]
        ends = np.cumsum(counts)
        # A part without a pair in this epoch ends where the one before does, and is passed over.
        which = np.searchsorted(ends, places, side="right")
        rows, passes = np.empty_like(places), np.empty_like(places)
        for number in np.unique(which).tolist():
            own = which == number
            turns = places[own] - (ends[number] - counts[number]) + begins[number]
            rows[own], passes[own] = self._of_part(number, turns)
        return Samples(which, rows, passes)

    def _of_part(self, number: int, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and passes at turns of a part, which count from 0 over the whole run."""
        part, thinning = self.parts[number], self._thinnings[number]
        passes, within = np.divmod(turns, part.rows_per_pass)
        # Whole passes need no order of their own: the epoch's takes all of their rows.
        if part.exact_weight.denominator != 1:
            for turn in np.unique(passes).tolist():
                own = passes == turn
                key = keyed_hash(self._seed, number, turn)
                within[own] = KeyedPermutation(part.rows_per_pass, key)(within[own])
        if thinning is not None:
            within = thinning(within, passes)
        return part.index.rows[within], passes
