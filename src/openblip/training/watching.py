"""What run directories tell without being opened for training: state, position, latest numbers.

A page shows runs side by side: curves, what differs between them, what happened.
"""

import json
import re
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, Literal

from openblip.runtime.charts import Curve, curves
from openblip.runtime.errors import TrainingError
from openblip.runtime.page import Page
from openblip.training.metrics_log import read_metrics
from openblip.training.rank_log import RankStatus, is_held, log_path, read_statuses, what_happened
from openblip.training.recipe_file import RECIPE_FILE, read_settings

RunCondition = Literal["running", "finished", "interrupted", "failed", "unknown"]
# As in `checkpoints.folder`, which is not imported: that loads torch.
_WEIGHTS = Path("checkpoints", "last", "model.safetensors")
# A process on another machine that has written within this time is taken for living.
_SIGN_OF_LIFE_SECONDS = 600.0
_FOUND_DEPTH = 3
# As the library safetensors allows.
_MOST_HEADER = 100_000_000
# What JSON of another shape leads to.
_OTHER_JSON = (LookupError, TypeError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run directory as a row."""

    path: Path
    """The directory."""
    state: RunCondition
    """What the run is doing, or how it ended."""
    reason: str
    """How that is known."""
    task: str
    """What is trained."""
    data: str
    """The table."""
    num_parameters: int | None
    """Weights of the student; None before the first checkpoint."""
    step: int
    """Optimiser steps done."""
    total_steps: int | None
    """Those of the whole run; None where it is known to nobody any more."""
    train: Mapping[str, float]
    """The latest line of training: losses, `pairs_per_second`, `utilisation`, ..."""
    validation: Mapping[str, float]
    """The latest validation."""
    rewinds: int
    """How often it went back to a checkpoint by itself."""
    alarms: int
    """How often its loss jumped."""
    updated: float
    """When it last wrote, in seconds since 1970."""
    settings: Mapping[str, Any]
    """Every field of its recipe by name."""

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {**vars(self), "path": str(self.path)}


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run directories that folders are or hold, in the order of their names.

    Raises:
        TrainingError: a folder does not exist, or holds none.
    """
    found: list[Path] = []
    for folder in folders:
        runs = [folder] if _is_run(folder) else []
        for depth in range(1, _FOUND_DEPTH + 1):
            pattern = "/".join(["*"] * depth + [RECIPE_FILE])
            runs += [path.parent for path in folder.glob(pattern)]
        if not runs:
            what = "holds no run directory" if folder.is_dir() else "is no folder"
            raise TrainingError(
                f"{folder} {what} (with a {RECIPE_FILE}): name what `openblip pretrain` or "
                "`openblip finetune` wrote to, or a folder of such"
            )
        found += sorted(runs)
    return list(dict.fromkeys(found))


@dataclass
class RunTotals:
    """What the lines of a run's metrics come to."""

    step: int = 0
    """The highest."""
    train: Mapping[str, float] = field(default_factory=dict)
    """The latest line of training."""
    validation: Mapping[str, float] = field(default_factory=dict)
    """The latest validation."""
    rewinds: int = 0
    """How often the run went back."""
    alarms: int = 0
    """How often its loss jumped."""

    def add(self, line: Mapping[str, Any]) -> None:
        """Count one more line."""
        kind = line["kind"]
        self.step = max(self.step, int(line["step"]))
        self.rewinds += kind == "rewind"
        self.alarms += kind == "alarm"
        if kind in ("train", "validation"):
            values = {name: value for name, value in line.items() if name not in ("kind", "step")}
            setattr(self, kind, values)


def summarise(
    run_dir: Path, now: float | None = None, totals: RunTotals | None = None
) -> RunSummary:
    """What a run directory tells; reads only, also while the run is going on.

    Args:
        run_dir: of the run.
        now: seconds since 1970; None for the clock.
        totals: of its metrics, where they have been read; None reads them.

    Raises:
        RecipeError: its recipe cannot be read.
    """
    settings = read_settings(run_dir / RECIPE_FILE)
    if totals is None:
        totals = RunTotals()
        for line in read_metrics(run_dir):
            totals.add(line)
    statuses = read_statuses(run_dir)
    first = statuses[0] if statuses else None
    step = max([totals.step, *(status.step for status in statuses)])
    # A start that has not begun to train does not know yet.
    total = (first.total_steps if first is not None else 0) or settings["train.steps"]
    state, reason = _state(run_dir, statuses, step, total, time.time() if now is None else now)
    return RunSummary(
        path=run_dir,
        state=state,
        reason=reason,
        task=settings["task"],
        data=settings["data.table"],
        num_parameters=_num_parameters(run_dir / _WEIGHTS),
        step=step,
        total_steps=total,
        train=totals.train,
        validation=totals.validation,
        rewinds=totals.rewinds,
        alarms=totals.alarms,
        updated=max([s.updated for s in statuses], default=_modified(run_dir)),
        settings=settings,
    )


def different_settings(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """The fields in which recipes differ, each with the value of every run."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: each for name, each in values.items() if any(v != each[0] for v in each)}


def short_names(runs: Sequence[RunSummary]) -> list[str]:
    """Names that tell runs apart: their paths without the folders that all share."""
    parts = [run.path.resolve().parts for run in runs]
    shared = 0
    if len(runs) > 1:
        while all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
            shared += 1
    return ["/".join(p[shared:]) if len(runs) > 1 else p[-1] for p in parts]


def _state(
    run_dir: Path, statuses: Sequence[RankStatus], step: int, total: int | None, now: float
) -> tuple[RunCondition, str]:
    if not statuses:
        if total is not None and step == total:
            return "finished", "its last step is logged"
        return "unknown", "it left no status"
    first = statuses[0]
    held = [status.rank for status in statuses if is_held(run_dir, status.rank)]
    if held:
        return "running", f"process {first.pid} on {first.host} holds {log_path(run_dir, held[0])}"
    ended = {status.state for status in statuses}
    age = now - max(status.updated for status in statuses)
    if ended == {"running"} and first.host != socket.gethostname() and age < _SIGN_OF_LIFE_SECONDS:
        return "running", f"process {first.pid} on {first.host} wrote {age:.0f} s ago"
    if (story := what_happened(run_dir, statuses)) is not None:
        return "failed", story
    if ended == {"finished"}:
        return "finished", "it said so when it ended"
    return "interrupted", f"it was asked to stop after step {first.step}; the same command goes on"


def _num_parameters(weights: Path) -> int | None:
    """Numbers in a safetensors file, by its header alone."""
    # To open a pipe would wait for a writer.
    if not weights.is_file():
        return None
    try:
        with weights.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(min(size, _MOST_HEADER)))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        return sum(int(prod(shape)) for shape in shapes)
    except (OSError, struct.error, ValueError, RecursionError, *_OTHER_JSON):
        return None


def _is_run(folder: Path) -> bool:
    return (folder / RECIPE_FILE).exists()


def _modified(run_dir: Path) -> float:
    return max(path.stat().st_mtime for path in (run_dir, *run_dir.iterdir()))


# Weight of the past in the smoothed curves.
_SMOOTHING = 0.8
_EVENTS = ("rewind", "alarm")
_TITLES = {
    "loss": "loss (dots: validation)",
    "lr": "learning rate",
    "grad_norm": "norm of the gradient",
    "pairs_per_second": "pairs per second",
    "utilisation": "utilisation",
    "loader_share": "share of time spent waiting for data",
}
_EXACT = {"temperature", "lr"}


def write_runs_page(
    runs: Sequence[RunSummary], rows: tuple[Sequence[str], Sequence[Sequence[str]]], path: Path
) -> Path:
    """Write the page as one self-contained HTML file.

    Args:
        runs: at least one.
        rows: header and cells of the table of runs.
        path: of the page.
    """
    names = short_names(runs)
    lines = [read_metrics(run.path) for run in runs]
    page = Page("Training runs", ", ".join(str(run.path) for run in runs))
    page.table(*rows)
    said: dict[str, list[str]] = {}
    for name, run in zip(names, runs, strict=True):
        said.setdefault(f"{run.state}; {run.reason}", []).append(name)
    for what, own in said.items():
        page.note(f"{', '.join(own)}: {what}.")
    page.section("Curves", f"Smoothed (exponential mean, {_SMOOTHING:g}) over the logged values.")
    page.legend(names)
    page.charts(
        _chart(quantity, names, lines) for quantity in _quantities(lines) if quantity != "epoch"
    )
    different = different_settings(runs)
    if different:
        page.section("Where their recipes differ")
        page.table(["field", *names], [[f, *map(str, v)] for f, v in different.items()])
    events = [row for name, own in zip(names, lines, strict=True) for row in event_rows(name, own)]
    if events:
        page.section("What happened")
        page.table(["run", "steps", "times", "what", ""], events)
    return page.save(path)


_NUMBER = re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?")


def event_rows(name: str, lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each thing that happened in a run; what happened again and again has one row.

    Events that follow each other, and differ in their numbers alone, are the same thing; the first
    is told.
    """
    events = [line for line in lines if line["kind"] in _EVENTS]
    rows = []
    for (kind, _), group in groupby(events, _alike):
        own = list(group)
        first, last = own[0]["step"], own[-1]["step"]
        steps = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        rows.append([name, steps, f"{len(own):,}", kind, own[0]["text"]])
    return rows


def _alike(event: Mapping[str, Any]) -> tuple[str, str]:
    return event["kind"], _NUMBER.sub("#", event["text"])


def _quantities(lines: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Everything that is logged of training, the loss first."""
    logged = {n: None for own in lines for line in own if line["kind"] == "train" for n in line}
    return ["loss", *(name for name in logged if name not in ("loss", "kind", "step"))]


def _chart(
    quantity: str, names: Sequence[str], lines: Sequence[Sequence[Mapping[str, Any]]]
) -> str:
    drawn = [
        Curve(
            name=name,
            points=_values(own, "train", quantity),
            dots=_values(own, "validation", quantity),
        )
        for name, own in zip(names, lines, strict=True)
    ]
    smoothing = 0.0 if quantity in _EXACT else _SMOOTHING
    return curves(_TITLES.get(quantity, quantity), drawn, smoothing)


def _values(
    lines: Sequence[Mapping[str, Any]], kind: str, quantity: str
) -> list[tuple[float, float]]:
    chosen = (line for line in lines if line["kind"] == kind and quantity in line)
    return [(line["step"], line[quantity]) for line in chosen]
