"""Experiment trackers: services that keep and draw the numbers of many runs.

One small interface, an adapter a file, each importing its library when a run asks for it. A tracker
works in a thread of its own: whatever it does, training goes on.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from openblip.atomic import replace_file
from openblip.errors import RecipeError, install_extra
from openblip.training.config import TrackerName

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
            from openblip.training.trackers.wandb import WandbTracker

            return WandbTracker
        case "mlflow":
            from openblip.training.trackers.mlflow import MlflowTracker

            return MlflowTracker
        case "trackio":
            from openblip.training.trackers.trackio import TrackioTracker

            return TrackioTracker
