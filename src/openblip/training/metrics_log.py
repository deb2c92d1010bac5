"""A run's numbers: `metrics.jsonl`, one line per report, and the same for TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from openblip.atomic import replace_file

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class MetricsLog:
    """Appends to the metrics of a run directory; a context that closes its files.

    Lines behind `first_step` are removed: a run that was killed writes them once more when it
    is resumed.
    """

    def __init__(self, run_dir: Path, first_step: int = 0) -> None:
        # Imported here, and only here: it takes longer than the rest of the package.
        from tensorboardX import SummaryWriter

        path = run_dir / METRICS_FILE
        if path.exists():
            _keep_until(path, first_step)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(run_dir / TENSORBOARD_FOLDER),
            purge_step=first_step + 1,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line.

        Args:
            kind: "train" or "validation".
            step: optimiser steps done.
            values: numbers by name.
        """
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; one that a killed process left torn is left out."""
    path = run_dir / METRICS_FILE
    return _complete_lines(path) if path.exists() else []


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def _keep_until(path: Path, step: int) -> None:
    kept = [line for line in _complete_lines(path) if line["step"] <= step]
    with replace_file(path) as unfinished:
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
