"""Trackio, local or on a Space. Its variables: `TRACKIO_DIR`, `TRACKIO_SPACE_ID`, ..."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.training.trackers import PROJECT


class TrackioTracker:
    """A run of trackio; see `openblip.training.trackers.Tracker`."""

    def __init__(
        self, folder: Path, name: str, settings: Mapping[str, Any], run_id: str | None
    ) -> None:
        import trackio

        # Trackio finds a run by its name.
        self.run_id = run_id or f"{name}-{uuid.uuid4().hex[:6]}"
        self._level = trackio.AlertLevel.WARN
        self._last_step = 0
        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=self.run_id,
            resume="allow",
            config=dict(settings),
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after so many optimiser steps."""
        self._last_step = step
        self._run.log(dict(values), step=step)

    def alert(self, step: int, title: str, text: str) -> None:
        """An alert, which trackio may send on to a webhook."""
        self._run.alert(title=f"{title} at step {step}", text=text, level=self._level)

    def finish(self, state: str, results: Mapping[str, float]) -> None:
        """The end, with the results as metrics of the last step."""
        self._run.log(dict(results), step=self._last_step)
        self._run.finish()
