"""Checkpoints: folders that appear whole or not at all, and what is in them.

A checkpoint is a model folder (see `openblip.interop.folder`) with a `training_state.pt` beside
the weights, so that it can be loaded as a model and continued as a run.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from openblip.atomic import force_to_disk, replace_folder
from openblip.data.tokenizer import TextTokenizer
from openblip.errors import CheckpointError
from openblip.interop.folder import read_folder, save_folder
from openblip.tasks.protocol import AnyTask

STATE_FILE = "training_state.pt"
_STUDENT = "student."


@dataclass(kw_only=True)
class RunState:
    """Where a run stands, besides weights, queues and the optimiser's moments."""

    step: int = 0
    """Optimiser steps done."""
    seconds: float = 0.0
    """Time spent in the loop, over all starts of the run."""
    best_loss: float = float("inf")
    """The lowest loss that a checkpoint was judged by, nats."""
    best_step: int | None = None
    """Steps of the checkpoint that had it."""
    window_loss: float = 0.0
    """Sum of the training losses since the last regular checkpoint."""
    window_steps: int = 0
    """How many steps that sum is over."""
    terms: dict[str, float] = field(default_factory=dict)
    """Losses of the latest log line, by name."""
    data_fingerprint: str = ""
    """Digest of the rows that the run draws from."""

    @property
    def window_mean(self) -> float:
        """Mean training loss since the last regular checkpoint."""
        return self.window_loss / max(self.window_steps, 1)


class CheckpointStore:
    """The folder of a run's checkpoints: `step-*`, and the links `last` and `best` to two of them.

    A checkpoint that bears its name is complete, whenever the process was killed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def latest(self) -> Path | None:
        """The checkpoint with the most steps; None if there is none."""
        return max(self.folder.glob("step-*"), default=None)

    def point(self, last: int, best: int | None) -> None:
        """Let the links name the checkpoints after so many steps, and remove all others."""
        self._link("last", step_name(last))
        if best is not None and (self.folder / step_name(best)).exists():
            self._link("best", step_name(best))
        kept = {(self.folder / link).resolve().name for link in ("last", "best")}
        # Names with a dot are what a killed process left unfinished.
        for path in (*self.folder.glob("step-*"), *self.folder.glob(".*")):
            if path.is_symlink():
                path.unlink()
            elif path.name not in kept:
                shutil.rmtree(path)

    def _link(self, link: str, target: str) -> None:
        fresh = self.folder / f".{link}.unfinished"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target, target_is_directory=True)
        fresh.replace(self.folder / link)
        force_to_disk(self.folder)


def step_name(step: int) -> str:
    """Name of the checkpoint after `step` steps; names sort as the steps do."""
    return f"step-{step:08d}"


def write_checkpoint(
    folder: Path,
    task: AnyTask,
    tokenizer: TextTokenizer,
    max_tokens: int,
    optimiser: torch.optim.Optimizer,
    state: RunState,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write the student as a model folder, and all else that a run needs to go on.

    Args:
        folder: appears whole, in place of one that may exist.
        task: its student and its teacher, queues and whatever else its state has.
        tokenizer: goes into the model folder.
        max_tokens: longest text, likewise.
        optimiser: its moments.
        state: where the run stands.
        notes: contents of further files by name.
    """
    rest = {k: v for k, v in task.state_dict().items() if not k.startswith(_STUDENT)}
    values = {"task": rest, "optimiser": optimiser.state_dict(), "run": asdict(state)}
    with replace_folder(folder) as unfinished:
        save_folder(unfinished, task.student, tokenizer, task.kind, max_tokens)
        torch.save(values, unfinished / STATE_FILE)
        for name, text in (notes or {}).items():
            (unfinished / name).write_text(text, encoding="utf-8")


def read_checkpoint(folder: Path, task: AnyTask, optimiser: torch.optim.Optimizer) -> RunState:
    """Put a checkpoint's weights, queues and moments into `task` and `optimiser`.

    Returns:
        where the run stood.

    Raises:
        CheckpointError: if a file is missing or damaged, or is of another model.
    """
    student = read_folder(folder).model.state_dict()
    values = _read_state(folder / STATE_FILE)
    try:
        task.load_state_dict(
            {**values["task"], **{f"{_STUDENT}{k}": v for k, v in student.items()}}
        )
        optimiser.load_state_dict(values["optimiser"])
        return RunState(**values["run"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: does not belong to this recipe ({_first_line(error)}); remove that folder "
            f"to go on from an earlier checkpoint, or choose another run directory"
        ) from error


def _read_state(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{path}: cannot be read ({_first_line(error)}); remove {path.parent} to go on from "
            f"an earlier checkpoint"
        ) from error
    return values


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
