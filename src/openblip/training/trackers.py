"""Experiment trackers: services that keep and draw the numbers of many runs.

One small interface, an adapter a file, each importing its library when a run asks for it. A tracker
works in a thread of its own: whatever it does, training goes on.

MLflow. Its variables say where to: `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, ...

Trackio, local or on a Space. Its variables: `TRACKIO_DIR`, `TRACKIO_SPACE_ID`, ...

Weights & Biases. Its variables say where to: `WANDB_PROJECT`, `WANDB_MODE=offline`, ...
"""

import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from openblip.runtime.atomic import replace_file
from openblip.runtime.errors import RecipeError, install_extra
from openblip.training.recipe import TrackerName

TRACKER_FOLDER = "trackers"
# Where the runs of all directories are found in a tracker, unless its own variable says otherwise.
PROJECT = "openblip"
# How long the end of a run waits for a tracker that is slow.
_PATIENCE_SECONDS = 30.0
# Reports that may wait for a tracker; later ones are dropped.
_MOST_WAITING = 10_000


class Tracker(Protocol):
    """What a run tells a service. Every method may raise: the caller copes."""

    run_id: str
    """By which the service finds the run again."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after so many optimiser steps."""

    def alert(self, step: int, title: str, text: str) -> None:
        """Something that a person should look at."""

    def finish(self, state: str, results: Mapping[str, float]) -> None:
        """The end: "finished", "interrupted" or "failed", and what came out."""


# Makes a tracker, given: a folder for local files, the run's name, its settings, and the id of the
# run that is continued, if there is one.
OpenTracker = Callable[[Path, str, Mapping[str, Any], str | None], Tracker]


class TrackerThread:
    """A tracker that can neither stop nor delay a run.

    Args:
        name: of the tracker.
        run_dir: its `trackers/` has the tracker's files and the id of its run.
        settings: of the run, by name.
        warn: told, in the thread that logs, why there is no tracker any more; once.
        open_tracker: makes it, in the thread.
    """

    def __init__(
        self,
        name: str,
        run_dir: Path,
        settings: Mapping[str, Any],
        warn: Callable[[str], None],
        open_tracker: OpenTracker,
    ) -> None:
        self._name, self._warn = name, warn
        self._folder = run_dir / TRACKER_FOLDER
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_MOST_WAITING)
        self._error: str | None = None
        self._is_told = False

        def open_() -> Tracker:
            id_file = self._folder / f"{name}.id"
            known = id_file.read_text(encoding="utf-8") if id_file.exists() else None
            self._folder.mkdir(exist_ok=True)
            tracker = open_tracker(self._folder, run_dir.resolve().name, settings, known)
            with replace_file(id_file) as unfinished:
                unfinished.write_text(tracker.run_id, encoding="utf-8")
            return tracker

        self._thread = threading.Thread(target=self._serve, args=(open_,), daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after so many optimiser steps."""
        kept = dict(values)
        self._send(lambda tracker: tracker.log(step, kept))

    def alert(self, step: int, title: str, text: str) -> None:
        """Something that a person should look at."""
        self._send(lambda tracker: tracker.alert(step, title, text))

    def finish(self, state: str, results: Mapping[str, float]) -> None:
        """The end of the run; waits for the tracker, but not for long."""
        self._send(lambda tracker: tracker.finish(state, results))
        self._send(None)
        self._thread.join(_PATIENCE_SECONDS)
        if self._thread.is_alive():
            self._error = f"it has not taken all values within {_PATIENCE_SECONDS:.0f} s"
        self._tell()

    def _send(self, call: Callable[[Tracker], None] | None) -> None:
        self._tell()
        if self._error is None:
            try:
                self._calls.put_nowait(call)
            except queue.Full:
                self._error = f"{_MOST_WAITING} reports wait for it"

    def _tell(self) -> None:
        if self._error is not None and not self._is_told:
            self._is_told = True
            self._warn(f"tracker {self._name} is given up, training goes on: {self._error}")

    def _serve(self, open_tracker: Callable[[], Tracker]) -> None:
        try:
            tracker = open_tracker()
            while (call := self._calls.get()) is not None:
                call(tracker)
        except BaseException as error:  # some libraries raise SystemExit
            first_line = str(error).strip().split("\n")[0]
            self._error = f"{type(error).__name__}: {first_line}"


@dataclass(kw_only=True)
class Trackers:
    """The trackers of a run, and what they are told at its end."""

    threads: Sequence[TrackerThread]
    """One for each."""
    state: str = "failed"
    """How the run ended."""
    results: Mapping[str, float] = field(default_factory=dict)
    """What came out of it, by name."""


@contextmanager
def open_trackers(
    names: Sequence[TrackerName],
    run_dir: Path,
    settings: Mapping[str, Any],
    warn: Callable[[str], None],
) -> Iterator[Trackers]:
    """The trackers of a run, which are told its end when the context ends.

    Raises:
        RecipeError: a tracker's library is not installed.
    """
    openers = {name: _opener(name) for name in names}
    threads = [TrackerThread(n, run_dir, settings, warn, opener) for n, opener in openers.items()]
    trackers = Trackers(threads=threads)
    try:
        yield trackers
    finally:
        for thread in threads:
            thread.finish(trackers.state, trackers.results)


def _opener(name: TrackerName) -> OpenTracker:
    if find_spec(name) is None:
        raise RecipeError(
            f"train.trackers has {name!r}, which is not installed: "
            f"leave it out, or {install_extra(name)}"
        )
    match name:
        case "wandb":
            return WandbTracker
        case "mlflow":
            return MlflowTracker
        case "trackio":
            return TrackioTracker


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
