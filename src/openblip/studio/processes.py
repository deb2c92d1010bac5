"""Commands as processes of their own: started, stopped, and found again by a later server.

A job is a folder: what was started (`job.json`), what it says (`log.txt`), how far it is
(`progress.json`), and with which code it ended (`exit`). A server that ends takes no job with it.
Run as a module, this file carries out one command and leaves its code.
"""

import json
import os
import platform
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from openblip.runtime.atomic import replace_file
from openblip.runtime.errors import DataError, OpenBlipError, one_line
from openblip.runtime.locks import is_running, process_start
from openblip.runtime.progress import PROGRESS_FILE

JobState = Literal["running", "finished", "stopped", "failed", "killed"]
_RECORD, _LOG, _PROGRESS, _EXIT = "job.json", "log.txt", "progress.json", "exit"
_LOG_BYTES = 1 << 14
_STOPPED = 130
"""Exit code of a command that a signal has stopped in order."""


@dataclass(frozen=True, kw_only=True)
class StartedJob:
    """A command that was started, by this server or an earlier one."""

    id: str
    """Name of its folder."""
    kind: str
    """What is done, such as "caption"."""
    words: tuple[str, ...]
    """The command line behind `openblip`."""
    host: str
    """The machine of the process."""
    pid: int
    """The process, which leads a group of its own."""
    process_start: str
    """Tells the process from a later one with its number."""
    began: float
    """Seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """How far a job is, by its own account."""

    what: str
    """What it is doing, such as "captioning"."""
    done: int
    """Units that are done, those of earlier runs included."""
    total: int | None
    """Units that there are; None if nobody knows."""
    unit: str
    """What is counted, in the plural."""
    rate: float
    """Units per second of this run."""
    time: float
    """When it said so, in seconds since 1970."""

    @property
    def seconds_left(self) -> float | None:
        """None if nobody knows."""
        if self.total is None or self.rate <= 0:
            return None
        return max(self.total - self.done, 0) / self.rate


class JobFolder:
    """The jobs that were started for a table, in a folder beside it."""

    def __init__(self, folder: Path) -> None:
        """Reads and writes nothing yet."""
        self.path = folder

    def start(self, kind: str, words: Sequence[str]) -> StartedJob:
        """Start `openblip WORDS` as a process that outlives this one.

        Raises:
            OpenBlipError: the folder cannot be written, or no process be started.
        """
        job_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:6]}"
        folder = self.path / job_id
        try:
            folder.mkdir(parents=True)
            with (folder / _LOG).open("ab") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(folder / _EXIT), *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {PROGRESS_FILE: str(folder / _PROGRESS)},
                    # A signal to the job reaches its workers, and none to the server the job.
                    start_new_session=True,
                )
        except OSError as error:
            raise OpenBlipError(f"{folder}: no job can be started ({error})") from error
        # Somebody must wait for its end: else it stays in the system's table, as a zombie.
        threading.Thread(target=child.wait, name=f"job-{job_id}", daemon=True).start()
        job = StartedJob(
            id=job_id,
            kind=kind,
            words=tuple(words),
            host=platform.node(),
            pid=child.pid,
            process_start=process_start(child.pid),
            began=time.time(),
        )
        with replace_file(folder / _RECORD) as unfinished:
            unfinished.write_text(json.dumps(asdict(job)), encoding="utf-8")
        return job

    def stop(self, job_id: str) -> None:
        """Ask a job to stop, as Ctrl-C would: it finishes what it has begun. Twice: at once.

        Raises:
            DataError: there is no such job, or it has ended.
        """
        job = self.find(job_id)
        if self.state(job) != "running":
            raise DataError(f"job {job_id} has ended already")
        if job.host != platform.node():
            raise DataError(f"job {job_id} runs on {job.host}: stop it there")
        # The number may have been given to another process between the two: hence the group too.
        with suppress(ProcessLookupError):
            if os.getpgid(job.pid) == job.pid:
                os.killpg(job.pid, signal.SIGINT)

    def jobs(self) -> list[StartedJob]:
        """All that were started, the latest first; a damaged record is left out."""
        if not self.path.is_dir():
            return []
        names = sorted((path.name for path in self.path.iterdir()), reverse=True)
        return [job for name in names if (job := self._read(name)) is not None]

    def find(self, job_id: str) -> StartedJob:
        """A job by its id.

        Raises:
            DataError: there is none.
        """
        known = job_id in {path.name for path in self.path.iterdir()} if self.path.is_dir() else ()
        job = self._read(job_id) if known else None
        if job is None:
            raise DataError(f"there is no job {job_id!r}: reload the page")
        return job

    def state(self, job: StartedJob) -> JobState:
        """What a job is doing, or how it ended."""
        code = self._code(job)
        if code is None and job.host == platform.node():
            # Once more: it may have ended between the two.
            is_alive = is_running(job.pid, job.process_start)
            code = None if is_alive else self._code(job)
            if not is_alive and code is None:
                return "killed"
        if code is None:
            return "running"
        return "finished" if code == 0 else "stopped" if code == _STOPPED else "failed"

    def progress(self, job: StartedJob) -> JobProgress | None:
        """How far a job says it is; None before it has said anything."""
        try:
            values: dict[str, Any] = json.loads(self._file(job, _PROGRESS).read_bytes())
            return JobProgress(**values)
        except (OSError, ValueError, TypeError):
            return None

    def last_lines(self, job: StartedJob, count: int = 12) -> list[str]:
        """The end of what a job has said."""
        with suppress(OSError), self._file(job, _LOG).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _LOG_BYTES, 0))
            lines = file.read().decode("utf-8", "replace").splitlines()
            return [one_line(line) for line in lines if line.strip()][-count:]
        return []

    def _code(self, job: StartedJob) -> int | None:
        try:
            return int(self._file(job, _EXIT).read_text())
        except (OSError, ValueError):
            return None

    def _file(self, job: StartedJob, name: str) -> Path:
        return self.path / job.id / name

    def _read(self, name: str) -> StartedJob | None:
        try:
            values = json.loads((self.path / name / _RECORD).read_bytes())
            return StartedJob(**{**values, "id": name, "words": tuple(values["words"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _carry_out(exit_file: Path, words: list[str]) -> None:
    """Run a command in this process, and leave its code where a server finds it."""
    # A server that was started in the background ignores it, and so would this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["openblip", *words]
    code: int | str | None = 1
    try:
        runpy.run_module("openblip", run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        # Whoever asks twice shall not keep it from saying how it ended.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with replace_file(exit_file) as unfinished:
            unfinished.write_text(str(code if isinstance(code, int) else int(code is not None)))


if __name__ == "__main__":
    _carry_out(Path(sys.argv[1]), sys.argv[2:])
