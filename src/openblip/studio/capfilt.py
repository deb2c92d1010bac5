"""The room CapFilt: what a threshold keeps of each source, and what stands on either side of it.

A threshold runs no model. The page gets counts for a thousand thresholds at once, so that it asks
nothing while a slider moves; examples are asked for when it rests.
"""

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openblip.capfilt.select import Spread
from openblip.studio.arrays import SourceTexts, TableArrays, is_scored
from openblip.studio.routes import Asked, Refused, Route, get
from openblip.studio.telling import number_or_none, told_rows
from openblip.studio.arrays import view_of
from openblip.table.judging import REJECTIONS
from openblip.table.table import SPLITS

if TYPE_CHECKING:
    from openblip.studio.app import Studio

STEPS = 1000
"""Thresholds that counts are told for: 0, 0.001 and so on to 1."""
_THRESHOLDS = np.arange(STEPS + 1) / STEPS
_MOST_DATA_SETS = 20
_MOST_EXAMPLES = 60
_JUDGED = ("web", "synthetic")
EXAMPLES = ("below", "above", "rejected", "accepted")
"""Around the threshold, nearest first; and farthest from it, the most confident first."""


def routes(studio: "Studio") -> list[Route]:
    """`/api/capfilt`, `/api/capfilt/examples` and `/api/capfilt/counts`."""

    def summary(asked: Asked) -> dict[str, Any]:
        arrays = studio.latest_choices().arrays
        split = _split(asked, arrays)
        return {
            "mark": arrays.table.fingerprint[:16],
            "split": split,
            "splits": _rows_of_splits(arrays),
            **_summary(arrays, split, _without(asked)),
        }

    def examples(asked: Asked) -> dict[str, Any]:
        arrays = studio.latest_choices().arrays
        threshold = asked.number("threshold", 0.0, 1.0)
        source = asked.text("source")
        if source not in _JUDGED:
            raise Refused(400, f"source is {source!r}; it must be one of {', '.join(_JUDGED)}")
        count = asked.whole("count", 1, _MOST_EXAMPLES, 12)
        split, without = _split(asked, arrays), _without(asked)
        found = _examples(arrays, source, split, without, threshold, count)
        view = view_of(arrays.table, threshold, split, without)
        return {
            "mark": arrays.table.fingerprint[:16],
            "threshold": threshold,
            **{name: _cards(arrays, source, found[name], view) for name in EXAMPLES},
        }
    return []
