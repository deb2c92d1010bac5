"""MLflow. Its variables say where to: `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, ..."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.training.trackers import PROJECT

# What a server takes in one request, and as the value of a parameter.
_MOST_PARAMS, _LONGEST_PARAM = 100, 500
_STATES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MlflowTracker:
    """A run of MLflow; see `openblip.training.trackers.Tracker`."""

    def __init__(
        self, folder: Path, name: str, settings: Mapping[str, Any], run_id: str | None
    ) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        if run_id is not None:
            self.run_id = run_id
            self._client.update_run(run_id, status="RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        self.run_id = self._client.create_run(number, run_name=name).info.run_id
        params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in settings.items()]
        for at in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self.run_id, params=params[at : at + _MOST_PARAMS])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after so many optimiser steps."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def alert(self, step: int, title: str, text: str) -> None:
        """A tag of the run: MLflow has no alerts."""
        self._client.set_tag(self.run_id, f"{title} at step {step}", text)

    def finish(self, state: str, results: Mapping[str, float]) -> None:
        """The end, with the results as metrics without a step."""
        self.log(0, results)
        self._client.set_terminated(self.run_id, _STATES[state])
