"""What protocols have in common of their results: files, and scores image by image.

Scores are kept per independent unit, so that a metric can be given with an interval and compared.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openblip.metrics.bootstrap import Difference, Interval, bootstrap_interval, paired_bootstrap
from openblip.metrics.retrieval import RECALL_AT, image_ranks, text_ranks
from openblip.runtime.atomic import replace_file
from openblip.runtime.documents import encodable, json_text
from openblip.runtime.errors import RecipeError
from openblip.sources.delimited import guarded

_SUFFIXES = (".csv", ".json")


def check_results_path(path: Path) -> None:
    """Nothing, if `save_records` can write there: asked before the work begins.

    Raises:
        RecipeError: the name has another ending.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise RecipeError(f"results {path}: give a name that ends in {' or '.join(_SUFFIXES)}")


def save_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a row of a CSV file, or an object of a JSON list, for each record; whole or not at all.

    In CSV the fields of the first record are the header, the items of a list are joined by "; ",
    and a quote stands before what a spreadsheet would run.

    Args:
        path: ends in `.csv` or `.json`.
        records: with equal fields.

    Raises:
        RecipeError: the name has another ending.
        OSError: it cannot be written.
    """
    check_results_path(path)
    if path.suffix.lower() == ".json":
        save_json(path, records)
        return
    with (
        replace_file(path) as unfinished,
        unfinished.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(records[0] if records else ())
        writer.writerows([[_cell(value) for value in record.values()] for record in records])


def save_json(path: Path, value: object) -> None:
    """Write a value as JSON; whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replace_file(path) as unfinished:
        unfinished.write_text(json_text(value), encoding="utf-8")


def official_id(key: str) -> int | str:
    """An id as evaluation servers want it: one that is a number is written as a number."""
    return int(key) if key.isdecimal() else key


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = "; ".join(map(str, value))
    return guarded(encodable(value)) if isinstance(value, str) else value


@dataclass(frozen=True)
class UnitScores:
    """A metric that is a quotient of sums over units drawn independently: images, mostly.

    For IR@1 a unit is an image, its score the number of its captions that find it and its weight
    the number of its captions; the five captions of an image are not independent.
    """

    scores: NDArray[np.float64]
    """(units,), in per cent of the weight: 100 times the weight where all is right."""
    weights: NDArray[np.float64]
    """(units,), above 0 in sum."""

    @property
    def estimate(self) -> float:
        """The metric over all units."""
        return _quotient(self.rows)

    @property
    def rows(self) -> NDArray[np.float64]:
        """(units, 2): score and weight, to resample."""
        return np.stack([self.scores, self.weights], axis=1)

    def interval(self, *, num_samples: int = 1000, seed: int = 0) -> Interval:
        """The metric with its 95 % bootstrap interval over units."""
        return bootstrap_interval(self.rows, _quotient, num_samples=num_samples, seed=seed)

    def minus(self, other: "UnitScores", *, num_samples: int = 1000, seed: int = 0) -> Difference:
        """The difference to another system on the same units, by the paired bootstrap.

        Raises:
            DataError: if the units are others.
        """
        return paired_bootstrap(
            self.rows, other.rows, _quotient, num_samples=num_samples, seed=seed
        )


def unit_scores(scores: Any, weights: Any = None) -> UnitScores:
    """Scores of units in per cent, of equal weight unless `weights` says otherwise."""
    values = np.asarray(scores, np.float64)
    return UnitScores(
        values, np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    )


def summed_units(scores: ArrayLike, owner: ArrayLike, units: int) -> UnitScores:
    """Scores of parts, such as questions, summed over the units that they belong to.

    Args:
        scores: (parts,), in per cent.
        owner: (parts,), the unit of each.
        units: how many there are.
    """
    owners = np.asarray(owner)
    sums = np.bincount(owners, np.asarray(scores, np.float64), units).astype(np.float64)
    return UnitScores(sums, np.bincount(owners, minlength=units).astype(np.float64))


def retrieval_units(
    scores: ArrayLike, captions_of_image: Sequence[Sequence[int]], scores_t2i: ArrayLike
) -> dict[str, UnitScores]:
    """TR@k and IR@k image by image; arguments as of `openblip.metrics.retrieval`.

    A text that belongs to several images counts with the first of them.
    """
    of_text = text_ranks(scores, captions_of_image)
    of_image = image_ranks(scores_t2i, captions_of_image)
    owner = np.full(len(of_image.above), -1)
    # Backwards, so that the first image stays of those that share a text.
    for image, texts in reversed(list(enumerate(captions_of_image))):
        owner[list(texts)] = image
    images = len(captions_of_image)
    units = {}
    for k in RECALL_AT:
        units[f"TR@{k}"] = unit_scores(100 * of_text.hits(k))
        units[f"IR@{k}"] = summed_units(100 * of_image.hits(k), owner, images)
    return units


def _quotient(rows: NDArray[Any]) -> float:
    # A quotient of sums, no mean of quotients: images with more captions weigh more.
    scores, weights = rows.sum(axis=0)
    return float(scores / weights) if weights else float("nan")
