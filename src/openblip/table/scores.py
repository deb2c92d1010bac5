"""The filter's scores of a table's texts as flat arrays: a million rows in a second or two.

Position i of every array is one text, in the order of rows and of the texts in them. A threshold
is compared with these numbers exactly as a view compares it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openblip.runtime.errors import DataError
from openblip.table.columns import column_state
from openblip.table.rows import listed
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

    from openblip.table.views import CaptionView

SCORE_COLUMNS = ("captions_itm", "captions_itc", "synthetic_itm", "synthetic_itc")
TEXT_COLUMNS = {"web": "captions", "synthetic": "synthetic"}
"""Column of the texts of each source that a filter scores."""
RIGHT = "right"
"""The score of the calibrated probability that a text is right."""
AUTO_SCORE = "auto"
"""In the place of a name: `right` where a table has it, else `itm`."""
SCORES_KEY = "scores"
"""Entry of a table's metadata: the settings of its scores, and of how many rows they are."""
FIT_KEY = "fit"
"""Entry of a table's metadata: what the score `right` was made of."""
PROBABILITIES = ("itm", RIGHT)
"""Scores that are probabilities, from 0 to 1; another one may be any number."""
_DECIDING = ("itm", "itm_of", "score", "weights", "weight_temperature", "weight_floor")
# Of these a table has both kinds of both sources, or is not scored by a model of ours.
_CHECKED_WHOLE = ("itm",)


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


def further_columns(columns: Iterable[str]) -> list[str]:
    """Of some columns those of scores that are neither `itm` nor `itc`."""
    beginnings = tuple(score_column(texts, "") for texts in TEXT_COLUMNS.values())
    return [name for name in columns if name.startswith(beginnings)]


def further_scores(columns: Iterable[str]) -> tuple[str, ...]:
    """The scores that `further_columns` are of."""
    names = [name.partition("_score_")[2] for name in further_columns(columns)]
    return tuple(sorted(set(names)))


def scores_of(table: PairTable) -> tuple[str, ...]:
    """The scores that the given texts of a table have, and those of synthetic texts alone."""
    every = [
        score for texts in TEXT_COLUMNS.values() for score in scores_among(table.columns, texts)
    ]
    return tuple(dict.fromkeys(every))


def named_score(table: PairTable, score: str = AUTO_SCORE) -> str:
    """The score by its name; in the place of `auto` the one that decides in this table.

    That is the calibrated probability of all scores together, where every text that the first
    filter has scored has it; else the first filter's own. A view takes what is written in it:
    a recipe means the same after a later fit.
    """
    if score != AUTO_SCORE:
        return score
    return RIGHT if sources_with(table, RIGHT) and not lacks_right(table) else "itm"


def lacks_right(table: PairTable) -> bool:
    """Whether texts that the first filter has scored have no `right`, as those of later rows."""
    for texts in TEXT_COLUMNS.values():
        scored, fitted = score_column(texts, "itm"), score_column(texts, RIGHT)
        if scored in table.columns and (
            fitted not in table.columns or table.count_values(fitted) < table.count_values(scored)
        ):
            return True
    return False


def stale_right(table: PairTable) -> str | None:
    """A line about the score `right`, if it was fitted to other scores than the table has now."""
    fitted = column_state(table, FIT_KEY).get("settings", {}).get("scores")
    # A fit that was begun, or whose column another job has dropped, has no note.
    if fitted is None or not sources_with(table, RIGHT):
        return None
    if fitted == column_state(table, SCORES_KEY).get("settings"):
        return None
    return (
        f"{table.uri}: its scores were computed anew, with other settings, since the score "
        f"{RIGHT!r} was fitted to them: run `openblip capfilt fit {table.uri}` again"
    )


def sources_with(table: PairTable, score: str) -> list[str]:
    """The sources of whose texts a table has a score."""
    columns = {source: score_column(texts, score) for source, texts in TEXT_COLUMNS.items()}
    return [source for source, column in columns.items() if column in table.columns]


def score_words(score: str) -> str:
    """What a score is called where people read it."""
    return {"itm": "ITM", "itc": "ITC"}.get(score, f"score {score!r}")


def columns_of(table: PairTable, score: str) -> list[str]:
    """The columns of a table that have a score of its texts, and the cosines that go with it."""
    names = [
        score_column(texts, kind) for texts in TEXT_COLUMNS.values() for kind in (score, "itc")
    ]
    return [name for name in dict.fromkeys(names) if name in table.columns]


@dataclass(frozen=True, eq=False)
class FlatScores:
    """Scores of all texts of one source in rows that came from the web."""

    rows: NDArray[np.int64]
    """Row of the table."""
    places: NDArray[np.int64]
    """Which of the row's texts of this source."""
    itm: NDArray[np.float64]
    """The score that is compared with thresholds: the probability that text and image match,
    unless another one was asked for."""
    itc: NDArray[np.float32]
    """Cosine of text and image; NaN where the table has none."""

    def __len__(self) -> int:
        return len(self.rows)


def check_scored(table: PairTable, score: str = "itm") -> None:
    """Nothing, if a table has a score of the texts that it has.

    Raises:
        DataError: it has none; says what it has, and what makes one.
    """
    texts = [name for name in TEXT_COLUMNS.values() if name in table.columns]
    wanted = [score_column(name, score) for name in texts]
    if score in _CHECKED_WHOLE:
        wanted = [
            score_column(name, kind)
            for kind in ("itm", "itc")
            for name in ("captions", "synthetic")
        ]
    missing = [name for name in wanted if name not in table.columns]
    there = scores_of(table)
    # Some scores are of given texts alone, as is their agreement with synthetic ones.
    if not missing or (score not in _CHECKED_WHOLE and len(missing) < len(wanted)):
        return
    if there:
        raise DataError(
            f"{table.uri} has no column {missing[0]}; its scores are {listed(there)}: choose one "
            f"of them with --score, {_makes(table.uri, score)}"
        )
    raise DataError(
        f"{table.uri} has no column {missing[0]}: score it first with "
        f"`openblip capfilt run {table.uri} --captioner CAPTIONER --filter FILTER`"
    )


def _makes(uri: str, score: str) -> str:
    if score in ("itm", "itc"):
        return "or run `openblip capfilt run` with a --filter that matches (of BLIP)"
    if score == RIGHT:
        return f"or make it with `openblip capfilt fit {uri}`"
    return f"or make it with `openblip capfilt scores {uri}`"


def flat_scores(
    batch: "pa.RecordBatch", source: str, start: int, uri: str, score: str = "itm"
) -> FlatScores:
    """The scores of one source's texts in some rows; a row without scores (an error) has none.

    Nor has a text that a score does not apply to: one besides `itm`, `itc` and `right` that is NaN.

    Args:
        batch: rows with `origin` and the score's column; the cosines are told if theirs is there.
        source: "web" or "synthetic".
        start: number of the first row.
        uri: of the table, for errors.
        score: which one is compared with thresholds.

    Raises:
        DataError: a row has more scores of one kind than of the other, or one that is no score.
    """
    import pyarrow as pa

    column = TEXT_COLUMNS[source]
    is_web = np.asarray(batch["origin"].to_numpy(zero_copy_only=False) == "web")
    numbers = start + np.flatnonzero(is_web)
    name, beside = score_column(column, score), score_column(column, "itc")
    told = [kind for kind in (name, beside) if kind in batch.schema.names]
    lists = {kind: batch[kind].filter(pa.array(is_web)) for kind in told}
    lengths = _lengths(lists[name]) if name in lists else np.zeros(len(numbers), np.int64)
    if name in lists and beside in lists:
        others = _lengths(lists[beside])
        if wrong := np.flatnonzero(lengths != others).tolist():
            place = wrong[0]
            raise DataError(
                f"row {numbers[place]} of {uri}: {lengths[place]} values in {name} but "
                f"{others[place]} in {beside}: {_remedy(score)}"
            )
    rows = np.repeat(numbers, lengths)
    values = _flat(lists[name]) if name in lists else np.zeros(0)
    cosines = _flat(lists[beside]) if set(lists) == {name, beside} else np.full(len(rows), np.nan)
    if score == "itc":
        cosines = values
    # A comparison with NaN, which nulls become, is False.
    is_score = np.isfinite(values)
    # Some scores do not apply to every text, as agreement where there is no other text.
    applies = np.isfinite(values) | (score in ("itc", *PROBABILITIES))
    is_score |= np.isnan(values) & ~applies
    if score in _CHECKED_WHOLE:
        is_score = (values >= 0) & (values <= 1) & np.isfinite(cosines)
    if wrong := np.flatnonzero(~is_score).tolist():
        place = wrong[0]
        found = [lists[kind].flatten()[place].as_py() for kind in told]
        kinds = "scores {} and {}, which are no probability and cosine"
        kinds = kinds if score in _CHECKED_WHOLE else f"{name} {{}}, which is no number"
        raise DataError(
            f"row {rows[place]} of {uri}: a text in {column} has the {kinds.format(*found)}: "
            f"{_remedy(score)}"
        )
    # Position of each row's first text: what is left of a text's own position is its place.
    first = np.cumsum(lengths) - lengths
    places = np.arange(len(rows)) - np.repeat(first, lengths)
    told_cosines = cosines[applies].astype(np.float32)
    return FlatScores(rows[applies], places[applies], values[applies], told_cosines)


def _remedy(score: str) -> str:
    """What makes a score of all texts anew."""
    made_by = {"itm": "run", "itc": "run", RIGHT: "fit"}.get(score, "scores")
    return f"run `openblip capfilt {made_by}` on the table again"


def _flat(lists: "pa.Array") -> NDArray[np.float64]:
    # As `judge` has them, so that a score is above the same thresholds here as in a view.
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.float64)


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

    What rejects none of scores from 0 on may lie below 0, which is no threshold of a probability.

    Args:
        itm: ascending.
        rejected: how many of them.
        more: so many others may be rejected too, for a shorter number.
    """
    if not rejected:
        return _threshold_below(float(itm[0]) if len(itm) else 1.0)
    highest = float(itm[rejected - 1])
    next_one = int(np.searchsorted(itm, highest, side="right"))
    # Nothing lies above: whatever is shorter would keep some, or is no threshold of these scores.
    if next_one == len(itm):
        return highest
    above = float(itm[min(next_one + more, len(itm) - 1)])
    for digits in range(1, 17):
        number = round(highest + (above - highest) / 2, digits) + 0.0  # of -0.0 it makes 0.0
        if highest <= number < above:
            return number
    return highest


def _threshold_below(lowest: float) -> float:
    """A short number that rejects no score: 0 where that will do."""
    # To one digit; where such steps are lost in rounding, the next number.
    number = 0.0 if lowest > 0 else math.ceil(10 * lowest - 1) / 10
    return number if number < lowest else math.nextafter(lowest, -math.inf)


def _lengths(column: "pa.Array") -> NDArray[np.int64]:
    lengths = column.value_lengths().fill_null(0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)


def scores_without_effect(view: "CaptionView") -> tuple[tuple[str, ...], str]:
    """Fields of a view that would have scores decide about its texts where none does, and why.

    As `refuse_without_effect` takes them. A view itself may have them: one of human texts is asked
    for its texts at any threshold, and one without a threshold shows the scores of a filter.
    """
    if set(view.sources) <= {"human", "reviewed"}:
        return _DECIDING, (
            f"with the sources {', '.join(view.sources)}, whose texts count whatever their scores: "
            "add web or synthetic"
        )
    if view.itm is None and not view.itm_of and not view.needs_scores:
        return ("score",), "without a threshold: give itm or itm_of (or weights calibrated) too"
    return (), ""
