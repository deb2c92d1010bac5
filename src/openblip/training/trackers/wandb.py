"""Weights & Biases. Its variables say where to: `WANDB_PROJECT`, `WANDB_MODE=offline`, ..."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.training.trackers import PROJECT


class WandbTracker:
    """A run of wandb; see `openblip.training.trackers.Tracker`."""

    def __init__(
        self, folder: Path, name: str, settings: Mapping[str, Any], run_id: str | None
    ) -> None:
        import wandb

        self.run_id = run_id or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.run_id,
            name=name,
            resume="allow",
            dir=folder,
            config=dict(settings),
            # The terminal belongs to the run.
            settings=wandb.Settings(console="off"),
        )
        # wandb's own step may not go back, as it does when a run is resumed.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after so many optimiser steps."""
        self._run.log({"step": step, **values})

    def alert(self, step: int, title: str, text: str) -> None:
        """An alert, which wandb may mail."""
        self._run.alert(title=f"{title} at step {step}", text=text, level="WARN")

    def finish(self, state: str, results: Mapping[str, float]) -> None:
        """The end, with the results as the run's summary."""
        self._run.summary.update({"state": state, **results})
        self._run.finish(exit_code=1 if state == "failed" else 0)
