"""How far a long job is: a bar on a terminal, a plain line now and then elsewhere.

A program that starts a job names a file in `OPENBLIP_PROGRESS`, in which the job says it too.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from openblip.runtime.atomic import replace_file

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

Info = str | int | float
PROGRESS_FILE = "OPENBLIP_PROGRESS"
"""Environment variable: a file that always says how far the job is, as JSON."""
_FILE_SECONDS = 0.5


class Progress:
    """Shows count, rate, and (where the total is known) the time that is left, on stderr.

    Use as a context manager, and call `update` as work is done, from any thread::

        with Progress("importing", total=1000, unit="rows") as progress:
            for row in rows:
                progress.update(1, skipped=num_skipped)

    Attributes:
        num_done: units done so far, those of an earlier run included.
    """

    def __init__(
        self,
        description: str,
        total: int | None = None,
        unit: str = "rows",
        start: int = 0,
        enabled: bool = True,
        stream: TextIO | None = None,
        interval_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Shows nothing before the context is entered.

        Args:
            description: what is being done, such as "importing".
            total: units that there are; None if nobody knows.
            unit: what is counted, in the plural.
            start: units that an earlier run did; they do not count for the rate.
            enabled: False shows nothing at all.
            stream: where to write; None for stderr.
            interval_seconds: time between plain lines.
            clock: seconds from any origin, never going back.
        """
        self.num_done = start
        self._description, self._total, self._unit = description, total, unit
        self._start, self._enabled = start, enabled
        self._stream = stream if stream is not None else sys.stderr
        self._interval, self._clock = interval_seconds, clock
        # Threads that read and decode report too.
        self._lock = threading.Lock()
        self._info: dict[str, Info] = {}
        self._began = self._last_line = self._last_file = 0.0
        file = os.environ.get(PROGRESS_FILE) if enabled else None
        self._file = Path(file) if file else None
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        self._began = self._last_line = self._clock()
        self._write_file()
        if self._enabled and self._stream.isatty():
            self._bar = self._make_bar()
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._write_file()
            if self._bar is not None:
                self._bar.stop()
            elif self._enabled:
                self._write_line(is_last=True)

    def update(self, num_done: int = 1, **info: Info) -> None:
        """Counts `num_done` more units; `info` is shown beside them until it is replaced."""
        with self._lock:
            self.num_done += num_done
            # A source may have more than it said: then nobody knows the total.
            if self._total is not None and self.num_done > self._total:
                self._total = None
            self._info.update(info)
            if self._clock() - self._last_file >= _FILE_SECONDS:
                self._write_file()
            if self._bar is not None:
                self._bar.update(
                    self._bar.task_ids[0],
                    total=self._total,
                    completed=self.num_done,
                    text=self._text(),
                )
            elif self._enabled and self._clock() - self._last_line >= self._interval:
                self._write_line()

    def note(self, line: str) -> None:
        """Shows a line of its own, which stays."""
        with self._lock:
            if self._bar is not None:
                # No markup: a path or caption may have brackets.
                self._bar.console.print(line, markup=False, highlight=False)
            elif self._enabled:
                self._stream.write(line + "\n")
                self._stream.flush()

    def skip(self, num_done: int = 1) -> None:
        """Counts units that an earlier run did: they do not count for the rate."""
        # Two locks one after the other: `update` takes its own.
        with self._lock:
            self._start += num_done
        self.update(num_done)

    @property
    def rate(self) -> float:
        """Units per second since the context was entered."""
        seconds = self._clock() - self._began
        return (self.num_done - self._start) / seconds if seconds > 0 else 0.0

    def _text(self) -> str:
        # Of work that an earlier run did there is no rate.
        parts = [f"{self.rate:,.1f} {self._unit}/s"] if self.num_done > self._start else []
        return ", ".join(parts + [f"{name} {_shown(value)}" for name, value in self._info.items()])

    def _write_line(self, is_last: bool = False) -> None:
        self._last_line = self._clock()
        of_total = f" of {self._total:,}" if self._total is not None else ""
        parts = [f"{self.num_done:,}{of_total} {self._unit}", self._text()]
        line = f"{self._description}: {', '.join(filter(None, parts))}"
        if is_last:
            line += f", took {duration(self._last_line - self._began)}"
        elif self._total is not None and self.rate > 0:
            line += f", {duration((self._total - self.num_done) / self.rate)} left"
        self._stream.write(line + "\n")
        self._stream.flush()

    def _write_file(self) -> None:
        if self._file is None:
            return
        self._last_file = self._clock()
        told = {
            "what": self._description,
            "done": self.num_done,
            "total": self._total,
            "unit": self._unit,
            "rate": self.rate,
            "time": time.time(),
        }
        # Whoever reads it may have removed the folder; the job itself has nothing to do with it.
        with suppress(OSError), replace_file(self._file, durable=False) as unfinished:
            unfinished.write_text(json.dumps(told), encoding="utf-8")

    def _make_bar(self) -> "RichProgress":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[text]}"),
            console=Console(file=self._stream),
        )
        bar.add_task(self._description, total=self._total, completed=self._start, text="")
        return bar


def duration(seconds: float) -> str:
    """A time for people: `8.2 s`, `3 min 20 s`, `5 h 02 min`."""
    if seconds < 60:
        return f"{max(seconds, 0.0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _shown(value: Info) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
