"""`openblip runs`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from openblip.cli.output import check_outputs, complain, print_json, print_table
from openblip.runtime.errors import OpenBlipError

if TYPE_CHECKING:
    from openblip.training.watching import RunSummary

_HEADER = ("run", "state", "task", "weights", "step", "loss", "validation", "pairs/s", "util.")


def runs(
    folders: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),),
    *,
    page: Path | None = None,
    json: bool = False,
) -> int:
    """List and compare training runs: state, position, losses, and where their recipes differ.

    Reads only, also while a run is going on. A run that cannot be read is told of on standard
    error, the others are listed, and the exit code is 1. Example:
    openblip runs runs/ --page runs.html

    Args:
        folders: run directories, or folders that hold them.
        page: also write a page with their curves.
        json: print one line of JSON for each run instead of tables.
    """
    check_outputs({"--page": page})
    found, damaged = _summaries(folders)
    for error in damaged:
        complain("openblip runs", error)
    if not found:
        return 1
    if json:
        for run in found:
            print_json(run.to_json())
    else:
        _print(found)
    if page is not None:
        from openblip.training.watching import write_runs_page

        written = write_runs_page(found, (_HEADER, _rows(found)), page)
        if not json:
            print(f"\npage: {written}")
    return 1 if damaged else 0


def _summaries(folders: Sequence[Path]) -> "tuple[list[RunSummary], list[OpenBlipError]]":
    """The runs that can be read, and why others cannot."""
    from openblip.training.watching import find_runs, summarise

    found: dict[Path, RunSummary] = {}
    damaged: list[OpenBlipError] = []
    for folder in folders:
        try:
            paths = find_runs([folder])
        except OpenBlipError as error:
            damaged.append(error)
            continue
        for path in paths:
            try:
                found.setdefault(path, summarise(path))
            except OpenBlipError as error:
                damaged.append(error)
    return list(found.values()), damaged


def _print(found: Sequence["RunSummary"]) -> None:
    from openblip.training.watching import different_settings, short_names

    names = short_names(found)
    print_table(_HEADER, _rows(found))
    print()
    for name, run in zip(names, found, strict=True):
        extra = [f"{run.rewinds} rewinds"] * bool(run.rewinds) + [f"{run.alarms} alarms"] * bool(
            run.alarms
        )
        print("; ".join([f"{name} is {run.state}: {run.reason}", *extra]))
    different = different_settings(found)
    if different:
        print()
        print_table(
            ("where recipes differ", *names),
            [[field, *map(str, values)] for field, values in different.items()],
        )


def _rows(found: Sequence["RunSummary"]) -> list[list[str]]:
    from openblip.training.watching import short_names

    return [
        [
            name,
            run.state,
            run.task,
            _count(run.num_parameters),
            f"{run.step}/{run.total_steps or '?'}",
            _number(run.train.get("loss")),
            _number(run.validation.get("loss")),
            _number(run.train.get("pairs_per_second")),
            f"{run.train['utilisation']:.0%}" if "utilisation" in run.train else "-",
        ]
        for name, run in zip(short_names(found), found, strict=True)
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.1f} M"
