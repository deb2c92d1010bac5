"""The room of training runs: what runs are doing, their curves, and where they differ.

Files are read as they grow, a bounded part at each request, so that a hundred long runs show their
first curves at once; what a page has already is not sent again.
"""

import hashlib
import json
import math
import threading
import time
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from openblip.runtime.errors import OpenBlipError, TrainingError, one_line
from openblip.studio.routes import Refused, Route, get
from openblip.training.metrics_log import MetricsTail
from openblip.training.recipe_file import RECIPE_FILE
from openblip.training.watching import (
    RunSummary,
    RunTotals,
    different_settings,
    find_runs,
    summarise,
)

if TYPE_CHECKING:
    from openblip.studio.app import Studio

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


_LINES_AT_ONCE = 5_000
_READING_SECONDS = 0.5
_LOOKING_SECONDS = 1.0
_FINDING_SECONDS = 5.0
_EVENTS = ("rewind", "alarm")
_MOST_EVENTS = 200
_KINDS = ("train", "validation")
_FIRST = "loss"


@dataclass
class _WatchedRun:
    """A run as far as it has been read."""

    name: str
    path: Path
    totals: RunTotals = field(default_factory=RunTotals)
    curves: dict[tuple[str, str], ThinnedCurve] = field(default_factory=dict)
    """By quantity and kind."""
    events: list[dict[str, Any]] = field(default_factory=list)
    is_read: bool = False
    """Whether the end of its file was reached."""
    summary: RunSummary | None = None
    damage: str | None = None
    """Why it cannot be read, in a line."""
    vocabulary: str = ""
    begun_anew: int = 0
    """The change at which its file began from the start once more."""
    signature: tuple[object, ...] = ()
    tail: MetricsTail = field(init=False)

    def __post_init__(self) -> None:
        self.tail = MetricsTail(self.path)

    def look(self, change: int) -> bool:
        """Read on; whether the run has another summary than before."""
        before = (self.summary, self.damage)
        try:
            self._read(change)
            signature = self._signature()
            # A lock is given up without a file being written.
            is_settled = self.summary is not None and self.summary.state != "running"
            is_new = signature != self.signature or not is_settled
            if self.summary is None or (self.is_read and is_new):
                self.summary = summarise(self.path, totals=self.totals)
                self.vocabulary = vocabulary_of(self.path, self.summary.settings)
                self.signature = signature
            self.damage = None
        except (OpenBlipError, OSError) as error:
            self.summary, self.damage, self.is_read = None, one_line(error), True
        return (self.summary, self.damage) != before

    def _read(self, change: int) -> None:
        is_anew, lines = self.tail.read(_LINES_AT_ONCE)
        if is_anew:
            self.totals, self.curves, self.events = RunTotals(), {}, []
            self.begun_anew = change
        values: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
        for line in lines:
            kind, step = line["kind"], line["step"]
            self.totals.add(line)
            if kind in _KINDS:
                for name, value in line.items():
                    if name not in ("step", "kind"):
                        own = values.setdefault((name, kind), ([], []))
                        own[0].append(step)
                        own[1].append(value)
            elif kind in _EVENTS:
                self.events.append({"step": step, "what": kind, "text": str(line.get("text", ""))})
        # A quantity at once: of a long run there are a million values.
        for key, (steps, own_values) in values.items():
            self.curves.setdefault(key, ThinnedCurve()).extend(steps, own_values, change)
        self.is_read = len(lines) < _LINES_AT_ONCE

    def _signature(self) -> tuple[object, ...]:
        """Changes when a file does that a summary is made of."""
        logs = sorted((self.path / "logs").glob("rank-*.json"))
        weights = self.path / "checkpoints" / "last" / "model.safetensors"
        found: list[object] = [self.totals.step, self.totals.rewinds, self.totals.alarms]
        for path in (self.path / RECIPE_FILE, weights, *logs):
            with suppress(OSError):
                status = path.stat()
                found.append((str(path), status.st_mtime_ns, status.st_size))
        return tuple(found)

    def row(self) -> dict[str, Any]:
        """What the page's list shows."""
        if self.summary is None:
            return {"name": self.name, "damage": self.damage or "it has not been read yet"}
        run = self.summary
        told = ("state", "reason", "task", "data", "step", "total_steps", "num_parameters")
        return {
            "name": self.name,
            **{name: getattr(run, name) for name in told},
            "loss": _finite(run.train.get("loss")),
            "validation": _finite(run.validation.get("loss")),
            "pairs_per_second": _finite(run.train.get("pairs_per_second")),
            "utilisation": _finite(run.train.get("utilisation")),
            "seconds_left": _seconds_left(run),
            "rewinds": run.rewinds,
            "alarms": run.alarms,
            "num_odd": self.tail.num_odd,
            "updated": run.updated,
        }


class Runs:
    """The runs below a folder, read on whenever somebody asks; safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs: dict[Path, _WatchedRun] = {}
        self._problem: str | None = None
        self._change = 0
        # Of another server the numbers of changes mean nothing.
        self._epoch = uuid4().hex[:8]
        self._changed_rows: dict[str, int] = {}
        self._lock = threading.Lock()
        self._found = self._looked = 0.0

    def rows(self, after: str) -> dict[str, Any]:
        """The runs that have changed since a change, and which there are in all."""
        with self._lock:
            self._look()
            since = self._since(after)
            runs = list(self._runs.values())
            changed = [run.row() for run in runs if self._changed_rows[run.name] > since]
            return {
                "after": f"{self._epoch}.{self._change}",
                "folder": str(self._folder),
                "problem": self._problem,
                "names": [run.name for run in runs],
                "rows": changed,
                "reading": sum(not run.is_read for run in runs),
            }

    def about(self) -> dict[str, Any]:
        """What changes seldom: quantities and which runs share an axis, differences, events."""
        with self._lock:
            self._look()
            runs = [run for run in self._runs.values() if run.summary is not None]
            summaries = [run.summary for run in runs if run.summary is not None]
            events = [{"run": run.name, **event} for run in runs for event in run.events]
            return {
                "names": [run.name for run in runs],
                "quantities": [self._axes(name, runs) for name in _quantities(runs)],
                "different": {
                    name: [_told(value) for value in values]
                    for name, values in different_settings(summaries).items()
                },
                "events": events[-_MOST_EVENTS:],
                "events_left_out": max(len(events) - _MOST_EVENTS, 0),
            }

    def curves(self, quantity: str, after: str) -> dict[str, Any]:
        """The points of a quantity that have come or changed since a change, run by run.

        Of each kind, "train" and "validation": from which point on, the steps, the values. Points
        of before count no more where a run is said to be `anew`.
        """
        with self._lock:
            self._look()
            since = self._since(after)
            found: dict[str, dict[str, object]] = {}
            for run in self._runs.values():
                if run.begun_anew > since:
                    found[run.name] = {"anew": True}
                for kind in _KINDS:
                    curve = run.curves.get((quantity, kind))
                    told = curve.since(since) if curve is not None else (0, [], [])
                    if told[1]:
                        found.setdefault(run.name, {})[kind] = told
            return {"after": f"{self._epoch}.{self._change}", "curves": found}

    def _since(self, after: str) -> int:
        epoch, _, change = after.partition(".")
        # Before the first change: a page that knows nothing, or another server, is told everything.
        return int(change) if epoch == self._epoch and change.isdecimal() else -1

    def _look(self) -> None:
        """Read what has come, for half a second at most; the rest waits for the next request."""
        now = time.monotonic()
        is_behind = any(not run.is_read for run in self._runs.values())
        if now - self._looked < _LOOKING_SECONDS and not is_behind and self._found:
            return
        if now - self._found >= _FINDING_SECONDS or not self._found:
            self._find()
            self._found = time.monotonic()
        self._change += 1
        began = time.monotonic()
        # Those that have not been read come first, so that each is seen before one is finished.
        for run in sorted(self._runs.values(), key=lambda run: (run.is_read, run.totals.step)):
            if run.look(self._change):
                self._changed_rows[run.name] = self._change
            if time.monotonic() - began > _READING_SECONDS:
                break
        self._looked = time.monotonic()

    def _find(self) -> None:
        try:
            paths = find_runs([self._folder])
            self._problem = None
        except TrainingError as error:
            paths, self._problem = [], one_line(error)
        known, self._runs = self._runs, {}
        for path in paths:
            self._runs[path] = known.get(path) or _WatchedRun(self._name(path), path)
            if path not in known:
                # As of the reading that follows, which counts up.
                self._changed_rows[self._runs[path].name] = self._change + 1

    def _name(self, path: Path) -> str:
        """Where a run is in the folder, which stays its name whatever other runs come."""
        name = path.relative_to(self._folder).as_posix()
        return self._folder.resolve().name if name == "." else name

    def _axes(self, quantity: str, runs: list[_WatchedRun]) -> dict[str, Any]:
        scales = {
            run.name: loss_scale(quantity, run.summary.settings, run.vocabulary)
            for run in runs
            if run.summary is not None and (quantity, "train") in run.curves
        }
        axes = [{"label": label, "runs": names} for label, names in comparable(scales)]
        return {"name": quantity, "axes": axes}


def _quantities(runs: list[_WatchedRun]) -> list[str]:
    """Everything that is logged of training, the loss first; the epoch is no curve."""
    logged = dict.fromkeys(name for run in runs for name, kind in run.curves if kind == "train")
    return [_FIRST, *(name for name in logged if name not in (_FIRST, "epoch"))] if logged else []


def _seconds_left(run: RunSummary) -> float | None:
    rate, batch = run.train.get("pairs_per_second"), run.settings.get("train.batch_size")
    if run.state != "running" or not run.total_steps or not rate or not batch:
        return None
    return max(run.total_steps - run.step, 0) * float(batch) / rate


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _told(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 200 else text[:199] + "…"


def routes(studio: "Studio") -> list[Route]:
    """`/api/runs` the list, `/api/runs/about` what changes seldom, `/api/runs/curves` points."""
    watched = None if studio.runs is None else Runs(studio.runs)

    def need() -> Runs:
        if watched is None:
            raise Refused(
                409, "no folder of runs was named: start the studio with one (--runs runs/)"
            )
        return watched

    return [
        get("/api/runs", lambda asked: need().rows(asked.text("after", ""))),
        get("/api/runs/about", lambda asked: need().about()),
        get(
            "/api/runs/curves",
            lambda asked: need().curves(asked.text("quantity"), asked.text("after", "")),
        ),
    ]
