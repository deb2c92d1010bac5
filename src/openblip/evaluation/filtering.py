"""How well the scores of a table's texts find noise whose kind is known.

A text is rejected where its score is not above the threshold. Known kinds stand in the metadata of
rows (`noise`: `true`, or what is wrong with the text), as in worlds and in noise that was planted
in real data.
"""

import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openblip.evaluation.results import UnitScores, unit_scores
from openblip.evaluation.settings import FilterSettings
from openblip.runtime.errors import DataError, OpenBlipWarning, RecipeError
from openblip.table.rows import read_meta
from openblip.table.scores import (
    PROBABILITIES,
    RIGHT,
    TEXT_COLUMNS,
    columns_of,
    flat_scores,
    named_score,
    score_column,
    stale_right,
)
from openblip.table.table import PairTable

NOISE_METRICS = ("precision", "recall", "true kept")
"""Of all noise; `true kept` is the share of true texts that are not rejected."""
NOISE_KINDS = ("other_image", "truncated", "boilerplate", "wrong_attribute", "wrong_object")
"""Kinds that comparisons know, each with its own recall and precision, `recall of KIND`."""
_TRUE = "true"


@dataclass(frozen=True)
class FilterResult:
    """What a threshold makes of texts whose kind of noise is known."""

    metrics: dict[str, float]
    """`NOISE_METRICS`, `recall of KIND` and `precision of KIND` (among rejected texts of that kind
    and true ones), per cent; of kinds that do not occur nothing."""
    units: dict[str, UnitScores] = field(repr=False)
    """The same, image by image."""
    num_texts: int
    """Texts whose kind is known."""


def evaluate_filter(
    table: PairTable,
    *,
    split: str = "train",
    score: str = FilterSettings.score,
    threshold: float = FilterSettings.threshold,
) -> FilterResult:
    """Precision and recall of the noise among the given web texts of a table that is judged.

    The scores are those that `capfilt run` and `capfilt fit` have written into the table, which has
    kinds of noise in its metadata (`noise`). A text to which a score does not apply is left out.
    Where nothing is rejected there is no precision: it is NaN. Other keywords are fields of
    `FilterSettings`.

    Raises:
        DataError: there is no such score, one that is no number, or no text whose kind of noise
            is known.
        RecipeError: the threshold is none.
    """
    settings = FilterSettings(score=named_score(table, score), threshold=threshold)
    if settings.score in PROBABILITIES and not 0 <= threshold <= 1:
        raise RecipeError(f"threshold is {threshold:g}; give a number from 0 to 1")
    if settings.score == RIGHT and (line := stale_right(table)):
        warnings.warn(line, OpenBlipWarning, stacklevel=2)
    values, kinds = _judged(table, split, settings.score)
    if not len(values):
        raise DataError(
            f"{table.uri}: no web text of the split {split!r} has a score and a known kind of "
            "noise (`noise` in its metadata)"
        )
    rejected, noisy = ~(values > settings.threshold), kinds != _TRUE
    units = {
        "precision": _share(noisy, among=rejected),
        "recall": _share(rejected, among=noisy),
        "true kept": _share(~rejected, among=~noisy),
    }
    for kind in sorted(set(kinds.tolist()) - {_TRUE}):
        of_kind = kinds == kind
        units[f"recall of {kind}"] = _share(rejected, among=of_kind)
        units[f"precision of {kind}"] = _share(of_kind, among=rejected & (of_kind | ~noisy))
    metrics = {name: found.estimate for name, found in units.items()}
    return FilterResult(metrics, units, len(values))


def _share(hits: NDArray[np.bool_], *, among: NDArray[np.bool_]) -> UnitScores:
    """The share of texts that are hits, per cent; others have no weight."""
    return unit_scores(100.0 * (hits & among), among.astype(np.float64))


def _judged(
    table: PairTable, split: str, score: str
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Scores of the web texts of known kind, and their kinds; texts without a score left out."""
    column = score_column(TEXT_COLUMNS["web"], score)
    if column not in table.columns:
        raise DataError(f"{table.uri} has no column {column}: let a filter judge it first")
    values: list[NDArray[np.float64]] = [np.zeros(0)]
    kinds: list[str] = []
    start = 0
    columns = ["id", "split", *columns_of(table, score)]
    for batch in table.scan(list(dict.fromkeys(["origin", "meta", *columns]))):
        rows = batch.select(["id", "split", "meta"]).to_pylist()
        told = [
            str(read_meta(row["id"], row["meta"]).get("noise") or "")
            if row["split"] == split
            else ""
            for row in rows
        ]
        found = flat_scores(batch, "web", start, table.uri, score)
        # Of an image with several texts the kind is that of the first.
        counted = [
            place
            for place, (row, text) in enumerate(
                zip((found.rows - start).tolist(), found.places.tolist(), strict=True)
            )
            if text == 0 and told[row]
        ]
        values.append(found.itm[counted])
        kinds += [told[row] for row in (found.rows - start)[counted].tolist()]
        start += batch.num_rows
    return np.concatenate(values), np.array(kinds, np.str_)
