"""A page that shows runs side by side: curves, what differs between them, what happened."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.page import Curve, Page, curves
from openblip.training.metrics_log import read_metrics
from openblip.training.run_listing import RunSummary, different_settings, short_names

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
    for name, run in zip(names, runs, strict=True):
        page.note(f"{name}: {run.state}; {run.reason}.")
    page.section("Curves", f"Smoothed (exponential mean, {_SMOOTHING:g}) over the logged values.")
    page.legend(names)
    page.charts(
        _chart(quantity, names, lines) for quantity in _quantities(lines) if quantity != "epoch"
    )
    different = different_settings(runs)
    if different:
        page.section("Where their recipes differ")
        page.table(["field", *names], [[f, *map(str, v)] for f, v in different.items()])
    events = [
        [name, str(line["step"]), line["kind"], line["text"]]
        for name, own in zip(names, lines, strict=True)
        for line in own
        if line["kind"] in _EVENTS
    ]
    if events:
        page.section("What happened")
        page.table(["run", "step", "what", ""], events)
    return page.save(path)


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
