"""Which rows of a table somebody wants to see, and in which order.

What is asked of a text is asked of one text: "synthetic, below 0.3, with the word dog" finds rows
with a text of which all of it is true. A choice that was made once is kept, so that scrolling
through it costs nothing.
"""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from openblip.runtime.errors import RecipeError
from openblip.studio.arrays import FLAGS, SourceTexts, TableArrays, frugally, is_scored
from openblip.table.agreement import current_verdicts
from openblip.table.judging import REJECTIONS, Rejection
from openblip.table.reviews import ReviewLog, ReviewRecord, Verdict
from openblip.table.rows import TEXT_SOURCES
from openblip.table.table import SPLITS
from openblip.table.vectors import rows_where

JUDGED: tuple[str, ...] = ("any", "none", *get_args(Verdict))
"""What people may have said of a text: something, nothing, or a certain verdict."""


@dataclass(frozen=True, eq=False)
class Judged:
    """The texts of a table that have verdicts."""

    state: tuple[str, ...] = ()
    """Keys of the verdicts: what was chosen by others has to be chosen anew."""
    positions: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """By source: the judged texts as positions in `TableArrays.texts`; one for each verdict."""
    verdicts: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """By source: which verdict, as its place in `JUDGED`."""
    num_stale: int = 0
    """Verdicts on texts that do not stand any more where they were judged."""

    @property
    def num_texts(self) -> int:
        """Texts that have a verdict which is not stale."""
        return sum(len(np.unique(positions)) for positions in self.positions.values())

    def fits(self, source: str, count: int, verdict: str) -> NDArray[np.bool_]:
        """Which of a source's `count` texts have a verdict that is one of `JUDGED`."""
        fits = np.zeros(count, dtype=bool)
        if source in self.positions:
            of_all = verdict in ("any", "none")
            is_it = self.verdicts[source] == JUDGED.index(verdict)
            fits[self.positions[source][is_it | of_all]] = True
        return ~fits if verdict == "none" else fits


class JudgedTexts:
    """The log beside a table, followed while it grows; safe to use from threads."""

    def __init__(self, arrays: TableArrays) -> None:
        self._arrays = arrays
        self._log = ReviewLog.of(arrays.table.uri)
        self._lock = threading.Lock()
        self._latest = Judged()

    def latest(self) -> Judged:
        """What has been said by now; the texts are looked up only when that has changed.

        Raises:
            DataError, StorageError: the log is damaged, or cannot be reached.
        """
        standing = self._log.standing()
        state = tuple(record.key for record in standing)
        with self._lock:
            if state != self._latest.state:
                self._latest = _looked_up(self._arrays, standing, state)
            return self._latest

    def of_row(self, row_id: str, texts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The verdicts on a row that hold, the latest first.

        Args:
            row_id: of the row.
            texts: its texts as they are now, with `source`, `place` and `text`.
        """
        now = {(text["source"], text["place"]): text["text"] for text in texts}
        names = ("source", "place", "text", "edited", "verdict", "reviewer", "time", "itm")
        told = []
        for record in reversed(self._log.standing()):
            if record.row == row_id:
                values = {name: value for name, value in asdict(record).items() if name in names}
                is_stale = now.get((record.source, record.place)) != record.text
                told.append({**values, "is_stale": is_stale})
        return told


def _looked_up(arrays: TableArrays, standing: list[ReviewRecord], state: tuple[str, ...]) -> Judged:
    current = current_verdicts(arrays.table, standing)
    numbers = arrays.rows_of_ids({record.row for record in current})
    found: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for record in current:
        assert record.verdict is not None  # of a record that stands
        verdict = JUDGED.index(record.verdict)
        found[record.source].append((numbers[record.row], record.place, verdict))
    positions, verdicts = {}, {}
    for source, entries in found.items():
        rows, places, codes = np.array(entries, dtype=np.int64).T
        # A row's texts stand one after the other: the position of the first, and the place behind
        # it.
        positions[source] = np.searchsorted(arrays.texts()[source].rows, rows) + places
        verdicts[source] = codes.astype(np.uint8)
    return Judged(state, positions, verdicts, len(standing) - len(current))


SCORE_ORDERS = {
    f"{which}-{whose}-{score}": (which, whose, score)
    for which in ("best", "worst")
    for whose in ("given", "synthetic")
    for score in ("itm", "itc")
}
ORDERS = ("row", "id", "size", "texts", *SCORE_ORDERS)
_CODES = {"counts": 0, **{reason.value: code for code, reason in enumerate(REJECTIONS, 1)}}
# A choice by people's verdicts is one of its own.
FATES = tuple(n for n in _CODES if n not in (Rejection.JUDGED_WRONG, Rejection.UNDECIDED))
_GIVEN = ("human", "web")
_KEPT_CHOICES = 4


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the rows have to be, and their order; None or nothing asks nothing."""

    split: str | None = None
    """One of `SPLITS`."""
    flag: str | None = None
    """One of `FLAGS`: what has been found of the row."""
    where: str | None = None
    """A condition on the row, as Lance's SQL."""
    source: str | None = None
    """Of a text: one of `TEXT_SOURCES`."""
    fate: str | None = None
    """Of a text: that it counts, or why it does not; one of `FATES`."""
    words: str | None = None
    """Which a text contains, in upper or lower case."""
    verdict: str | None = None
    """Of a text, by people: one of `JUDGED`."""
    itm_from: float | None = None
    """Least match probability of a text."""
    itm_to: float | None = None
    """Largest match probability of a text."""
    itc_from: float | None = None
    """Least cosine of a text."""
    itc_to: float | None = None
    """Largest cosine of a text."""
    threshold: float = 0.5
    """Which texts count: above this match probability."""
    without: tuple[str, ...] = ()
    """Which texts count: none of those that these checks have flagged, see `CaptionView`."""
    sort: str = "row"
    """One of `ORDERS`; rows without what they are sorted by come last."""
    desc: bool = False
    """Whether the largest comes first."""

    def __post_init__(self) -> None:
        known = {
            "split": SPLITS,
            "flag": FLAGS,
            "source": TEXT_SOURCES,
            "fate": FATES,
            "verdict": JUDGED,
            "sort": ORDERS,
        }
        for name, words in known.items():
            value = getattr(self, name)
            if value is not None and value not in words:
                raise RecipeError(f"{name} is {value!r:.80}; it must be one of {', '.join(words)}")
        for name in ("itm_from", "itm_to", "itc_from", "itc_to", "threshold"):
            value = getattr(self, name)
            if value is not None and not np.isfinite(value):
                raise RecipeError(f"{name} must be a number. Got {value}.")

    @property
    def asks_for_texts(self) -> bool:
        """Whether anything is asked of a text."""
        names = ("source", "fate", "words", "verdict", "itm_from", "itm_to", "itc_from", "itc_to")
        return any(getattr(self, name) is not None for name in names)


class Choices:
    """The rows of the latest choices from one version of a table; safe to use from threads."""

    def __init__(self, arrays: TableArrays) -> None:
        self.arrays = arrays
        self.judged = JudgedTexts(arrays)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Choice, tuple[str, ...]], NDArray[np.int32]] = OrderedDict()

    def rows(self, choice: Choice) -> NDArray[np.int32] | range:
        """Numbers of the chosen rows in their order.

        Raises:
            DataError: the condition cannot be read, or the table lacks what is asked for.
        """
        if choice.fate is None:
            # What counts is not asked: another threshold makes no other choice.
            choice = replace(choice, threshold=Choice.threshold, without=Choice.without)
        if choice == Choice():
            return range(len(self.arrays))
        judged = self.judged.latest() if choice.verdict is not None else Judged()
        key = (choice, judged.state)
        with self._lock:
            # One at a time: a page asks for several parts of a new choice at once.
            if key not in self._kept:
                with frugally():
                    chosen = _chosen(self.arrays, choice, judged)
                    self._kept[key] = _in_order(self.arrays, chosen, choice)
            self._kept.move_to_end(key)
            # Each has four bytes a row; who goes back a few choices finds them here.
            while len(self._kept) > _KEPT_CHOICES:
                self._kept.popitem(last=False)
            return self._kept[key]


def _chosen(arrays: TableArrays, choice: Choice, judged: Judged) -> NDArray[np.integer]:
    """Numbers of the rows that fulfil a choice, ascending."""
    mask = np.ones(len(arrays), dtype=bool)
    if choice.split is not None:
        mask &= arrays.splits() == SPLITS.index(choice.split)
    if choice.flag is not None:
        mask &= (arrays.flags() & FLAGS[choice.flag]) > 0
    if choice.where is not None:
        fulfilled = np.zeros_like(mask)
        fulfilled[rows_where(arrays.table, choice.where)] = True
        mask &= fulfilled
    if choice.asks_for_texts:
        has_text = np.zeros_like(mask)
        for rows in _rows_of_texts(arrays, choice, judged):
            has_text[rows] = True
        mask &= has_text
    return np.flatnonzero(mask)


def _rows_of_texts(arrays: TableArrays, choice: Choice, judged: Judged) -> list[NDArray[np.int32]]:
    """Rows of texts of which all is true that is asked of a text; an array for each source."""
    matching = arrays.matching_texts(choice.words) if choice.words is not None else None
    found = []
    for source, texts in arrays.texts(choice.without).items():
        if choice.source not in (None, source):
            continue
        fits = _scored_within(texts, choice)
        if choice.fate is not None:
            has_threshold = source != "human" and is_scored(arrays.table)
            fates = texts.fates(choice.threshold if has_threshold else None)
            fits &= fates == _CODES[choice.fate]
        if matching is not None:
            fits &= matching[source]
        if choice.verdict is not None:
            fits &= judged.fits(source, len(texts), choice.verdict)
        found.append(texts.rows[fits])
    return found


def _scored_within(texts: SourceTexts, choice: Choice) -> NDArray[np.bool_]:
    fits = np.ones(len(texts), dtype=bool)
    for scores, low, high in (
        (texts.itm, choice.itm_from, choice.itm_to),
        (texts.itc, choice.itc_from, choice.itc_to),
    ):
        # A comparison with NaN is False: what has no score is in no range.
        if low is not None:
            fits &= scores >= np.float64(low)
        if high is not None:
            fits &= scores <= np.float64(high)
    return fits


def _in_order(arrays: TableArrays, rows: NDArray[np.integer], choice: Choice) -> NDArray[np.int32]:
    numbers: NDArray[np.int32] = rows.astype(np.int32)
    if choice.sort == "row":
        return numbers[::-1] if choice.desc else numbers
    values = _sorted_by(arrays, choice.sort)[numbers]
    # Of equal ones that with the lower number comes first, in both directions.
    order = np.argsort(-values if choice.desc else values, kind="stable")
    has_value = ~np.isnan(values[order])
    in_order: NDArray[np.int32] = numbers[np.concatenate([order[has_value], order[~has_value]])]
    return in_order


def _sorted_by(arrays: TableArrays, sort: str) -> NDArray[np.floating]:
    """What each row is sorted by, NaN for nothing."""
    if sort == "id":
        return arrays.id_ranks().astype(np.float64)
    if sort == "size":
        pixels = arrays.pixels().astype(np.float64)
        return np.where(pixels > 0, pixels, np.nan)
    texts = arrays.texts()
    if sort == "texts":
        counts = sum(np.bincount(some.rows, minlength=len(arrays)) for some in texts.values())
        return np.asarray(counts, dtype=np.float32)
    which, whose, score = SCORE_ORDERS[sort]
    values = np.full(len(arrays), np.nan)
    for source in _GIVEN if whose == "given" else ("synthetic",):
        if source in texts:
            _reduce_rows(values, texts[source].rows, getattr(texts[source], score), which)
    return values


def _reduce_rows(
    values: NDArray[np.float64], rows: NDArray[np.int32], scores: NDArray[np.floating], which: str
) -> None:
    """Puts the best or worst score of each row that has texts into `values`."""
    if not len(rows):
        return
    starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    # fmax and fmin pass over NaN: a text that has no score is neither the best nor the worst.
    reduce = np.fmax if which == "best" else np.fmin
    values[rows[starts]] = reduce.reduceat(scores, starts)
