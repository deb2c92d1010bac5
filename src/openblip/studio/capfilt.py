"""The room CapFilt: what a threshold keeps of each source, and what stands on either side of it.

A threshold runs no model. The page gets counts for a thousand thresholds at once, so that it asks
nothing while a slider moves; examples are asked for when it rests.
"""

import shlex
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from openblip.capfilt.select import Spread
from openblip.studio.arrays import (
    SourceTexts,
    TableArrays,
    choosable_scores,
    frugally,
    is_scored,
    view_of,
)
from openblip.studio.collection import latest_choices, table_told, without_of
from openblip.studio.routes import Asked, Refused, Route, get
from openblip.studio.telling import models_of_scores, told_rows
from openblip.table.judging import REJECTIONS
from openblip.table.table import SPLITS
from openblip.table.views import CaptionView

if TYPE_CHECKING:
    from openblip.studio.app import Studio

STEPS = 1000
"""Counts are told for the thresholds 0, 0.001 and so on to 1."""
# Divided, as the page does it: sums of 0.001 would be other numbers.
_THRESHOLDS = np.arange(STEPS + 1) / STEPS
_MOST_DATA_SETS = 20
_ROWS_FOR_BASE = 100_000
_MOST_EXAMPLES = 60
_SCORED = ("web", "synthetic")


def routes(studio: "Studio") -> list[Route]:
    """`/api/capfilt`, and `/api/capfilt/examples` of texts around a threshold."""

    def summary(asked: Asked) -> dict[str, Any]:
        choices = latest_choices(studio)
        arrays = choices.arrays
        split, without = _split(asked, arrays), without_of(asked)
        score = _score(asked, arrays)
        told = {
            **table_told(arrays),
            "split": split,
            "splits": _rows_of_splits(arrays),
            "is_scored": is_scored(arrays.table, score),
            "score": score,
            "scores": choosable_scores(arrays.table),
            "judged_texts": choices.judged.latest().num_texts,
            "commands": _commands(arrays.table.uri, len(arrays.table), split, without, score),
        }
        if not told["is_scored"]:
            return told
        with frugally():
            counts = _counts(arrays, split, without, score)
        return {**told, **counts, "models": models_of_scores(arrays)}

    def examples(asked: Asked) -> dict[str, Any]:
        arrays = latest_choices(studio).arrays
        threshold = asked.number("threshold", 0.0, 1.0)
        source = asked.text("source")
        if source not in _SCORED:
            raise Refused(400, f"source is {source!r:.40}; it must be one of {', '.join(_SCORED)}")
        count = asked.whole("count", 1, _MOST_EXAMPLES, 12)
        split, without = _split(asked, arrays), without_of(asked)
        score = _score(asked, arrays)
        texts = arrays.texts(without, score).get(source)
        with frugally():
            found = {} if texts is None else _around(arrays, texts, split, threshold, count)
        view = view_of(arrays.table, threshold, split, without, score)
        return {
            **table_told(arrays),
            "threshold": threshold,
            "source": source,
            **{name: _cards(arrays, texts, some, source, view) for name, some in found.items()},
        }

    return [get("/api/capfilt", summary), get("/api/capfilt/examples", examples)]


def _split(asked: Asked, arrays: TableArrays) -> str:
    """The split that is asked for; by default that which is trained on, if it has a row."""
    split = asked.text("split", "")
    if split and split not in SPLITS:
        raise Refused(400, f"split is {split!r:.40}; it must be one of {', '.join(SPLITS)}")
    there = [name for name, count in _rows_of_splits(arrays).items() if count]
    return split or next(iter(there), SPLITS[0])


def _score(asked: Asked, arrays: TableArrays) -> str:
    """The score that is asked for; by default the one that decides in the table."""
    there = choosable_scores(arrays.table)
    score = asked.text("score", "") or (there or ["itm"])[0]
    if there and score not in there:
        raise Refused(400, f"score is {score!r:.40}; the table has {', '.join(there)}")
    return score


def _rows_of_splits(arrays: TableArrays) -> dict[str, int]:
    counts = np.bincount(arrays.splits(), minlength=len(SPLITS)).tolist()
    return dict(zip(SPLITS, counts, strict=False))


def _commands(
    uri: str, num_rows: int, split: str, without: tuple[str, ...], score: str
) -> dict[str, str]:
    """What makes this view, with `THRESHOLD` where the page puts it; and what makes scores."""
    place = shlex.quote(uri)
    # The batch of a larger one would be more than there is.
    recipe = "base" if num_rows >= _ROWS_FOR_BASE else "tiny"
    more = f" {{0}}score {score}" if score != "itm" else ""
    more += f" {{0}}without {' '.join(without)}" if without else ""
    asked = f" --score {score}"
    training = "" if split == "train" else f" --data.view.split {split}"
    export = "" if split == "train" else f" --split {split}"
    return {
        "training": f"openblip pretrain {recipe} {place} runs/filtered --data.view.sources human "
        f"web synthetic --data.view.itm THRESHOLD{training}{more.format('--data.view.')}",
        "export": f"openblip data export {place} filtered/ --sources human web synthetic "
        f"--itm THRESHOLD{export}{more.format('--')}",
        "report": f"openblip capfilt report {place} --threshold THRESHOLD{asked} -o capfilt.html",
        "scores": f"openblip capfilt run {place} --captioner CAPTIONER --filter FILTER",
    }


@dataclass(frozen=True, eq=False)
class _InSplit:
    """The texts of one source in the rows of a split."""

    source: str
    texts: SourceTexts
    own: NDArray[np.int64]
    """Positions of all of them."""
    scored: NDArray[np.int64]
    """Positions of those that a threshold alone decides about; of people's texts none."""
    score: str
    """Which one the threshold is compared with."""

    @classmethod
    def of(cls, source: str, texts: SourceTexts, inside: NDArray[np.bool_], score: str) -> Self:
        own = np.flatnonzero(inside[texts.rows])
        scored = own[texts.reasons[own] == 0] if source in _SCORED else own[:0]
        return cls(source, texts, own, scored, score)

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """How many of the thresholds each scored text is above; in float64, as views compare."""
        itm = self.texts.itm[self.scored].astype(np.float64)
        return np.searchsorted(_THRESHOLDS, itm, side="left")

    def told(self) -> dict[str, Any]:
        """Its texts, why some do not count whatever the threshold is, and the scores of the others.

        `histogram[n]` are the texts that are above n thresholds, and so stay at the first n.
        """
        counts = np.bincount(self.texts.reasons[self.own], minlength=len(REJECTIONS) + 1)
        reasons = dict(zip(REJECTIONS, counts.tolist()[1:], strict=True))
        told = {
            "source": self.source,
            "texts": len(self.own),
            "rejected": {reason.value: number for reason, number in reasons.items() if number},
        }
        if self.source not in _SCORED:
            return told
        itm = self.texts.itm[self.scored].astype(np.float64)
        ends = (float(itm.min()), float(itm.max()), float(itm.std())) if itm.size else (0.0,) * 3
        spread = Spread(self.source, len(itm), *ends, self.score)
        return {
            **told,
            "histogram": np.bincount(self.steps, minlength=STEPS + 2).tolist(),
            "spread": str(spread),
            "is_narrow": spread.is_narrow,
            "lowest": spread.lowest,
            "highest": spread.highest,
        }


def _counts(
    arrays: TableArrays, split: str, without: tuple[str, ...], score: str
) -> dict[str, Any]:
    inside = arrays.splits() == SPLITS.index(split)
    texts = arrays.texts(without, score)
    parts = [_InSplit.of(source, some, inside, score) for source, some in texts.items()]
    return {
        "steps": STEPS,
        "sources": [part.told() for part in parts],
        "data_sets": _data_sets(arrays, parts),
    }


def _data_sets(arrays: TableArrays, parts: list[_InSplit]) -> dict[str, Any]:
    """The largest data sets with their texts by source; nothing where there is but one."""
    names, codes = arrays.data_sets()
    of_source = {part.source: codes[part.texts.rows] for part in parts}
    totals = {
        part.source: np.bincount(of_source[part.source][part.own], minlength=len(names))
        for part in parts
    }
    order = np.argsort(-np.sum(list(totals.values()), axis=0), kind="stable").tolist()
    order = [place for place in order if any(total[place] for total in totals.values())]
    if len(order) < 2:
        return {"shown": [], "num_more": 0}
    largest = order[:_MOST_DATA_SETS]
    shown: list[dict[str, Any]] = [{"name": names[place], "sources": {}} for place in largest]
    # -1 for a data set that is not shown.
    slots = np.full(len(names), -1)
    slots[largest] = np.arange(len(largest))
    for part in parts:
        width = STEPS + 2
        slot = slots[of_source[part.source][part.scored]]
        # One number for a data set and a step, so that both are counted at once.
        both = (slot * width + part.steps)[slot >= 0]
        steps = np.bincount(both, minlength=len(largest) * width).reshape(-1, width)
        for told, place, row in zip(shown, largest, steps.tolist(), strict=True):
            if number := int(totals[part.source][place]):
                told["sources"][part.source] = {"texts": number, "histogram": row}
    return {"shown": shown, "num_more": len(order) - len(largest)}


def _around(
    arrays: TableArrays, texts: SourceTexts, split: str, threshold: float, count: int
) -> dict[str, NDArray[np.int64]]:
    """Positions of texts on both sides of a threshold, nearest first; and of the surest ones."""
    inside = arrays.splits()[texts.rows] == SPLITS.index(split)
    able = np.flatnonzero(inside & (texts.reasons == 0))
    scores = texts.itm[able].astype(np.float64)
    kept, left = able[scores > threshold], able[~(scores > threshold)]
    return {
        "below": _first(texts, left, count, largest=True),
        "above": _first(texts, kept, count, largest=False),
        "rejected": _first(texts, left, count, largest=False),
        "accepted": _first(texts, kept, count, largest=True),
    }


def _first(
    texts: SourceTexts, positions: NDArray[np.int64], count: int, largest: bool
) -> NDArray[np.int64]:
    """The texts with the largest or smallest scores, in their order; of equal ones the first."""
    scores = texts.itm[positions]
    scores = -scores if largest else scores
    if len(scores) > count:
        # A part is sorted, not a million; all that are equal to the last one stay in.
        last = np.partition(scores, count - 1)[count - 1]
        near = scores <= last
        positions, scores = positions[near], scores[near]
    found: NDArray[np.int64] = positions[np.argsort(scores, kind="stable")[:count]]
    return found


def _cards(
    arrays: TableArrays,
    texts: SourceTexts | None,
    positions: NDArray[np.int64],
    source: str,
    view: CaptionView,
) -> list[dict[str, Any]]:
    """Rows with the one text that is an example, and the row's others."""
    if texts is None or not len(positions):
        return []
    cards = told_rows(arrays, texts.rows[positions], view)
    for card, place in zip(cards, texts.places(positions).tolist(), strict=True):
        own = [t for t in card["texts"] if t["source"] == source and t["place"] == place]
        card["text"] = own[0]
        card["others"] = [text for text in card.pop("texts") if text is not own[0]]
    return cards
