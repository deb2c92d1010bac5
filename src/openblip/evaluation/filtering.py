"""How well the scores of a table's texts find noise whose kind is known.

A text is rejected where its score is not above the threshold. Known kinds stand in the metadata of
rows (`noise`: `true`, or what is wrong with the text), as in worlds and in noise that was planted
in real data.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openblip.evaluation.results import UnitScores, unit_scores
from openblip.evaluation.settings import FilterSettings
from openblip.runtime.errors import DataError
from openblip.table.rows import read_meta
from openblip.table.scores import TEXT_COLUMNS, score_column
from openblip.table.table import PairTable

NOISE_METRICS = ("precision", "recall", "true kept")
"""Of all noise; `true kept` is the share of true texts that are not rejected."""
NOISE_KINDS = ("other_image", "truncated", "boilerplate", "attribute", "object")
"""Kinds whose own recall is given too, as `recall of KIND`."""
_TRUE = "true"


@dataclass(frozen=True)
class FilterResult:
    """What a threshold makes of texts whose kind of noise is known."""

    metrics: dict[str, float]
    """`NOISE_METRICS` and `recall of KIND`, per cent; of kinds that do not occur nothing."""
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
    kinds of noise in its metadata. Other keywords are fields of `FilterSettings`.

    Raises:
        DataError: there is no such score, or no text whose kind of noise is known.
        RecipeError: the threshold is none.
    """
    settings = FilterSettings(score=score, threshold=threshold)
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
    for kind in NOISE_KINDS:
        if (kinds == kind).any():
            units[f"recall of {kind}"] = _share(rejected, among=kinds == kind)
    metrics = {name: found.estimate for name, found in units.items()}
    return FilterResult(metrics, units, len(values))


def _share(hits: NDArray[np.bool_], *, among: NDArray[np.bool_]) -> UnitScores:
    """The share of texts that are hits, per cent; others have no weight."""
    return unit_scores(100.0 * (hits & among), among.astype(np.float64))


def _judged(
    table: PairTable, split: str, score: str
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Scores of the web texts of known kind, and their kinds."""
    column = score_column(TEXT_COLUMNS["web"], score)
    if column not in table.columns:
        raise DataError(f"{table.uri} has no column {column}: let a filter judge it first")
    values: list[float] = []
    kinds: list[str] = []
    for batch in table.scan(["id", "origin", "split", "meta", column]):
        for row in batch.to_pylist():
            if row["origin"] != "web" or row["split"] != split or not row[column]:
                continue
            kind = read_meta(row["id"], row["meta"]).get("noise")
            if kind:
                # Of an image with several texts the kind is that of the first.
                values.append(row[column][0])
                kinds.append(str(kind))
    return np.array(values, np.float64), np.array(kinds, np.str_)
