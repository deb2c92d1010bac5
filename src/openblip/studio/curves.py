"""Curves of training runs: thinned while they are read, and which of them share an axis.

A chart is some hundred points wide, a run may have logged a hundred thousand lines. So a curve
keeps means of neighbouring values, and only what has changed since is told again.
"""

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MOST_POINTS = 400
"""Of one curve; it has half as many at least once it has been full."""
# These mean the same in every run. All other quantities depend on what is trained.
_COMMON = {"epoch", "lr", "temperature", "pairs_per_second", "utilisation", "loader_share"}
# Settings of the losses that change how fast they fall, not what they measure.
_NOT_THE_SCALE = {
    "momentum",
    "alpha_ramp_epochs",
    "min_temperature",
    "max_temperature",
    "negative_features",
    "negative_floor",
}
# Of a single loss these alone; of any other quantity all settings of the objectives.
_SCALE_OF = {
    "itc": ("queue_size", "alpha", "negatives", "id_targets"),
    "itm": ("negatives", "losses"),
    "lm": ("label_smoothing",),
    "mlm": ("mask_probability",),
}
_DIGITS = 5
_HASHED_BYTES = 1 << 24


class ThinnedCurve:
    """Means over neighbouring values of one quantity, at most `MOST_POINTS`; grows at its end.

    `change` is a number that the caller counts up from one reading to the next: a point remembers
    when it last changed, so that what came since a change can be told alone.
    """

    def __init__(self) -> None:
        self._per_point = 1
        self._steps, self._sums = array("q"), array("d")
        self._counts, self._changes = array("q"), array("q")
        self.num_odd = 0
        """Values that were left out: they are not finite."""

    def extend(self, steps: Sequence[int], values: Sequence[float], change: int) -> None:
        """Append values, which stand at later steps than all before, in their order."""
        finite = np.isfinite(values)
        places, numbers = np.asarray(steps)[finite], np.asarray(values, np.float64)[finite]
        self.num_odd += len(values) - len(numbers)
        while len(numbers):
            if not self._counts or self._counts[-1] == self._per_point:
                if len(self._steps) == MOST_POINTS:
                    self._halve(change)
                for part in (self._steps, self._sums, self._counts, self._changes):
                    part.append(0)
            # What is open takes one part; what has room behind it takes whole ones, all at once.
            room = self._per_point - self._counts[-1]
            self._steps[-1] = int(places[:room][-1])
            self._sums[-1] += float(numbers[:room].sum())
            self._counts[-1] += len(numbers[:room])
            self._changes[-1] = change
            places, numbers = places[room:], numbers[room:]
            whole = min(len(numbers) // self._per_point, MOST_POINTS - len(self._steps))
            taken = whole * self._per_point
            sums = numbers[:taken].reshape(whole, self._per_point).sum(axis=1)
            self._steps.extend(places[self._per_point - 1 : taken : self._per_point].tolist())
            self._sums.extend(sums.tolist())
            self._counts.extend([self._per_point] * whole)
            self._changes.extend([change] * whole)
            places, numbers = places[taken:], numbers[taken:]

    def since(self, change: int) -> tuple[int, list[int], list[float]]:
        """Place of the first point that has changed after `change`; steps and means from there on.

        Whoever has the points of that time cuts them at this place, and puts these behind.
        """
        # Points change at the end of the curve alone, or all at once: the numbers ascend.
        first = bisect_right(self._changes, change)
        means = (
            total / count
            for total, count in zip(self._sums[first:], self._counts[first:], strict=True)
        )
        return first, list(self._steps[first:]), [_short(mean) for mean in means]

    def _halve(self, change: int) -> None:
        self._per_point *= 2
        self._steps = self._steps[1::2]
        for name in ("_sums", "_counts"):
            own = getattr(self, name)
            pairs = zip(own[::2], own[1::2], strict=True)
            setattr(self, name, array(own.typecode, (a + b for a, b in pairs)))
        self._changes = array("q", [change]) * len(self._steps)


def loss_scale(quantity: str, settings: Mapping[str, Any], vocabulary: str) -> dict[str, str]:
    """What must be equal in two runs for their values of a quantity to share an axis.

    A loss of another objective, over other negatives or over another vocabulary is another
    quantity, whatever its name. Empty for what means the same in every run, such as `lr`.

    Args:
        quantity: as it is logged.
        settings: every field of the run's recipe, by its name with dots.
        vocabulary: what tells the run's tokenizer from others.
    """
    if quantity in _COMMON:
        return {}
    own = {
        name.removeprefix("objectives."): value
        for name, value in settings.items()
        if name.startswith("objectives.")
    }
    names = _SCALE_OF.get(quantity) or [name for name in own if name not in _NOT_THE_SCALE]
    scale = {"task": settings.get("task")} | {name: own[name] for name in names if name in own}
    if quantity not in ("itc", "itm"):
        scale["vocabulary"] = vocabulary
    # Without a queue the batch alone has the negatives: a larger one makes a harder task.
    has_contrast = quantity not in ("lm", "mlm", "itm") and _is_contrastive(settings)
    if has_contrast and not own.get("queue_size"):
        for name in ("batch_size", "accumulate"):
            scale[name] = settings.get(f"train.{name}")
    return {name: _plain(value) for name, value in scale.items()}


def _is_contrastive(settings: Mapping[str, Any]) -> bool:
    losses = settings.get("objectives.losses")
    return settings.get("task") == "clip" or (isinstance(losses, list | tuple) and "itc" in losses)


def vocabulary_of(run_dir: Path, settings: Mapping[str, Any]) -> str:
    """A few digits that tell the tokenizer of a run from others, wherever it came from."""
    digest = hashlib.sha256()
    folder = run_dir / "tokenizer"
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    for path in files:
        with path.open("rb") as file:
            digest.update(path.name.encode(errors="replace") + file.read(_HASHED_BYTES))
    if not files:
        names = ("tokenizer", "init_text", "init_from")
        digest.update(repr([settings.get(name) for name in names]).encode(errors="replace"))
    return digest.hexdigest()[:6]


def comparable(scales: Mapping[str, Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Groups of runs whose values share an axis: what tells a group from the others, and its runs.

    Args:
        scales: of each run what `loss_scale` says.
    """
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run, scale in scales.items():
        groups.setdefault(tuple(sorted(scale.items())), []).append(run)
    every = [dict(key) for key in groups]
    names = _telling(every)
    return [
        (", ".join(f"{name} {own[name]}" for name in names if name in own), runs)
        for own, runs in zip(every, groups.values(), strict=True)
    ]


def _telling(every: Sequence[Mapping[str, str]]) -> list[str]:
    """As few names as tell all descriptions apart, the task first: it implies much of the rest."""
    names = dict.fromkeys(name for each in every for name in sorted(each))
    told: list[str] = []
    classes = 1
    for name in sorted(names, key=lambda name: (name != "task", name)):
        found = {tuple(each.get(one) for one in (*told, name)) for each in every}
        if len(found) > classes:
            told.append(name)
            classes = len(found)
    return told


def _plain(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _short(value: float) -> float:
    """As many digits as a chart shows: half of the bytes on the way."""
    return float(f"{value:.{_DIGITS}g}")
