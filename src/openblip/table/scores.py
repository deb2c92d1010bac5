"""The filter's scores of a table's texts as flat arrays: a million rows in a second or two.

Position i of every array is one text, in the order of rows and of the texts in them. A threshold
is compared with these numbers exactly as a view compares it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openblip.runtime.errors import DataError
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

SCORE_COLUMNS = ("captions_itm", "captions_itc", "synthetic_itm", "synthetic_itc")
TEXT_COLUMNS = {"web": "captions", "synthetic": "synthetic"}
"""Column of the texts of each source that a filter scores."""
_REMEDY = "run `openblip capfilt run` on the table again"


def score_column(column: str, score: str) -> str:
    """Column with a score of the texts of a column: a list of float32 beside each list of texts.

    Args:
        column: of the texts, a value of `TEXT_COLUMNS`.
        score: `itm` and `itc` of the filter, or the name of any other score.
    """
    return f"{column}_{score}" if score in ("itm", "itc") else f"{column}_score_{score}"


def scores_among(columns: Iterable[str], column: str) -> list[str]:
    """Which scores the texts of a column have, those of the first filter first.

    Args:
        columns: all that a table has.
        column: of the texts, a value of `TEXT_COLUMNS`.
    """
    prefix, there = score_column(column, ""), set(columns)
    others = sorted(name.removeprefix(prefix) for name in there if name.startswith(prefix))
    return [score for score in ("itm", "itc") if score_column(column, score) in there] + others


@dataclass(frozen=True, eq=False)
class FlatScores:
    """Scores of all texts of one source in rows that came from the web."""

    rows: NDArray[np.int64]
    """Row of the table."""
    places: NDArray[np.int64]
    """Which of the row's texts of this source."""
    itm: NDArray[np.float64]
    """Probability that text and image match."""
    itc: NDArray[np.float32]
    """Cosine of text and image."""

    def __len__(self) -> int:
        return len(self.rows)


def check_scored(table: PairTable) -> None:
    """Nothing, if a filter has scored the table.

    Raises:
        DataError: none has.
    """
    if missing := [c for c in SCORE_COLUMNS if c not in table.columns]:
        raise DataError(
            f"{table.uri} has no column {missing[0]}: score it first with "
            f"`openblip capfilt run {table.uri} --captioner ... --filter ...`"
        )


def flat_scores(batch: "pa.RecordBatch", source: str, start: int, uri: str) -> FlatScores:
    """The scores of one source's texts in some rows; a row without scores (an error) has none.

    Args:
        batch: rows with `origin` and the score columns.
        source: "web" or "synthetic".
        start: number of the first row.
        uri: of the table, for errors.

    Raises:
        DataError: a row has more scores of one kind than of the other, or one that is no score.
    """
    import pyarrow as pa

    column = TEXT_COLUMNS[source]
    is_web = np.asarray(batch["origin"].to_numpy(zero_copy_only=False) == "web")
    numbers = start + np.flatnonzero(is_web)
    itm, itc = (
        batch[score_column(column, kind)].filter(pa.array(is_web)) for kind in ("itm", "itc")
    )
    lengths, others = _lengths(itm), _lengths(itc)
    if wrong := np.flatnonzero(lengths != others).tolist():
        place = wrong[0]
        raise DataError(
            f"row {numbers[place]} of {uri}: {lengths[place]} values in {column}_itm but "
            f"{others[place]} in {column}_itc: {_REMEDY}"
        )
    rows = np.repeat(numbers, lengths)
    matches, cosines = (
        np.asarray(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.float64)
        for lists in (itm, itc)
    )
    # A comparison with NaN, which nulls become, is False.
    is_score = (matches >= 0) & (matches <= 1) & np.isfinite(cosines)
    if wrong := np.flatnonzero(~is_score).tolist():
        place = wrong[0]
        found = [lists.flatten()[place].as_py() for lists in (itm, itc)]
        raise DataError(
            f"row {rows[place]} of {uri}: a text in {column} has the scores {found[0]} and "
            f"{found[1]}, which are no probability and cosine: {_REMEDY}"
        )
    first = np.cumsum(lengths) - lengths
    places = np.arange(len(rows)) - np.repeat(first, lengths)
    return FlatScores(rows, places, matches, cosines.astype(np.float32))


def join_scores(parts: Sequence[FlatScores]) -> FlatScores:
    """The scores of several batches of one source, one after the other."""
    empty = FlatScores(
        np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.float32)
    )
    parts = [empty, *parts]
    return FlatScores(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.places for part in parts]),
        np.concatenate([part.itm for part in parts]),
        np.concatenate([part.itc for part in parts]),
    )


def threshold_above(itm: NDArray[np.float64], rejected: int, more: int = 0) -> float:
    """The shortest number that rejects the lowest scores, and those that are equal to them.

    Args:
        itm: ascending.
        rejected: how many of them.
        more: so many others may be rejected too, for a shorter number.
    """
    if not rejected:
        return 0.0
    highest = float(itm[rejected - 1])
    next_one = int(np.searchsorted(itm, highest, side="right"))
    if next_one == len(itm):
        return highest
    above = float(itm[min(next_one + more, len(itm) - 1)])
    for digits in range(1, 17):
        number = round(highest + (above - highest) / 2, digits)
        if highest <= number < above:
            return number
    return highest


def _lengths(column: "pa.Array") -> NDArray[np.int64]:
    lengths = column.value_lengths().fill_null(0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)
