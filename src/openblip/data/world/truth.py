"""What is known for certain about the rows of a world, and how well a filter finds the noise."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openblip.data.table import PairTable
from openblip.data.world.config import NOISE_KINDS
from openblip.data.world.scene import Scene, scene_from_dict
from openblip.errors import DataError


@dataclass(frozen=True)
class RowTruth:
    """What an image shows, and of which kind its web caption is."""

    scene: Scene
    noise: str | None
    """One of `NOISE_KINDS`; None for rows with human captions."""


def truth_of(meta: str | Mapping[str, Any]) -> RowTruth:
    """The truth about a row, from its `meta` (the column's JSON or what it holds).

    Raises:
        DataError: the row is not of an embedded world.
    """
    plain = json.loads(meta) if isinstance(meta, str) else meta
    try:
        return RowTruth(scene_from_dict(plain["scene"]), plain.get("noise"))
    except (KeyError, TypeError) as error:
        raise DataError(
            "this row carries no scene in its meta: the truth is known for tables made by "
            "`create_world` only"
        ) from error


def noise_kinds(table: PairTable) -> list[str]:
    """The kind of noise of every web row, in the order of the table's rows.

    Raises:
        DataError: a web row is not of an embedded world.
    """
    kinds: list[str] = []
    for batch in table.scan(columns=["origin", "meta"]):
        for row in batch.to_pylist():
            if row["origin"] == "web":
                kind = truth_of(row["meta"]).noise
                if kind not in NOISE_KINDS:
                    raise DataError(f"a web row of {table.uri} has the unknown noise {kind!r}")
                kinds.append(kind)
    return kinds


@dataclass(frozen=True)
class FilterQuality:
    """How well a filter tells one kind of noise from true captions."""

    precision: float
    """Of the rejected captions that are true or of this kind, the share of this kind; NaN
    where nothing was rejected."""
    recall: float
    """Share of the captions of this kind that were rejected; NaN where there are none."""
    total: int
    """Captions of this kind."""


def filter_quality(kinds: Sequence[str], rejected: ArrayLike) -> dict[str, FilterQuality]:
    """Precision and recall of rejecting each kind of noise, and of all noise ("noise").

    Args:
        kinds: true kind of each caption, as from `noise_kinds`.
        rejected: for each caption, whether the filter threw it out.
    """
    labels = np.asarray(kinds)
    out = np.asarray(rejected, dtype=np.bool_)
    if labels.shape != out.shape:
        raise ValueError(f"{labels.size} kinds but {out.size} decisions")
    is_true = labels == "true"
    quality = {kind: _quality(labels == kind, is_true, out) for kind in NOISE_KINDS[1:]}
    quality["noise"] = _quality(~is_true, is_true, out)
    return quality


def precision_at_recall(
    kinds: Sequence[str], scores: ArrayLike, kind: str, recall: float
) -> tuple[float, float]:
    """Best precision of rejecting `kind` at a recall of at least `recall`, and its threshold.

    Rejected is what scores at or below the threshold; precision is as in `FilterQuality`.

    Args:
        kinds: true kind of each caption.
        scores: the filter's match of each caption with its image; higher matches better.
        kind: one of the false kinds.
        recall: in (0, 1].

    Raises:
        ValueError: no caption is of that kind, or the recall is out of range.
    """
    labels = np.asarray(kinds)
    values = np.asarray(scores, dtype=np.float64)
    wanted = np.sort(values[labels == kind])
    if not wanted.size or not 0.0 < recall <= 1.0:
        raise ValueError(
            f"{wanted.size} captions are {kind!r}; recall must lie in (0, 1]: {recall}"
        )
    good = np.sort(values[labels == "true"])
    first = int(np.ceil(recall * wanted.size)) - 1
    thresholds = np.unique(wanted[first:])
    found = np.searchsorted(wanted, thresholds, side="right")
    lost = np.searchsorted(good, thresholds, side="right")
    precision = found / (found + lost)
    best = int(np.argmax(precision))
    return float(precision[best]), float(thresholds[best])


def _quality(
    is_kind: NDArray[np.bool_], is_true: NDArray[np.bool_], rejected: NDArray[np.bool_]
) -> FilterQuality:
    found = int((is_kind & rejected).sum())
    lost = int((is_true & rejected).sum())
    total = int(is_kind.sum())
    precision = found / (found + lost) if found + lost else float("nan")
    return FilterQuality(precision, found / total if total else float("nan"), total)
