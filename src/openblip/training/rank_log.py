"""What each process of a run leaves behind: a log for people and a status for programs.

`logs/rank-N.log` is locked as long as its process lives, and `logs/rank-N.json` says how far it is
and how it ended. A status without an end whose log nobody holds is that of a process that was
killed: this is how a restarted run knows what happened, and `openblip runs` which one is running.
"""

import faulthandler
import json
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from openblip.runtime.atomic import replace_file
from openblip.runtime.documents import read_json
from openblip.runtime.errors import OpenBlipWarning, RecipeError, TrainingError
from openblip.runtime.locks import try_lock
from openblip.training.recipe_file import from_plain

if TYPE_CHECKING:
    from openblip.training.parallelism import Processes

LOG_FOLDER = "logs"
RankEnd = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class RankStatus:
    """How far a process is, or how it ended."""

    rank: int
    """Its number in the run."""
    state: RankEnd = "running"
    """`running` also stays where the process could say nothing more."""
    step: int = 0
    """Optimiser steps done when it last wrote."""
    total_steps: int = 0
    """Those of the whole run."""
    attempt: int = 0
    """How often `torchrun` had restarted the processes."""
    pid: int = 0
    """Its process on `host`."""
    host: str = ""
    """Name of its machine."""
    started: float = 0.0
    """When, in seconds since 1970."""
    updated: float = 0.0
    """When it last wrote."""
    error: str = ""
    """Why it failed."""


def open_rank_log(run_dir: Path, processes: "Processes") -> "RankLog":
    """The log of this process, which holds the run directory until it is closed.

    Args:
        run_dir: of the run; nothing but `logs/` is changed in it.
        processes: all come here together, before they write anything else.

    Raises:
        TrainingError: other processes train in this directory; all of these raise it.
    """
    # Asked before the first lock, which would make a process of before look alive.
    story = what_happened(run_dir, read_statuses(run_dir)) if processes.is_first else None
    processes.wait_for_all()
    log, refusal = None, None
    try:
        log = RankLog(run_dir, processes, story)
    except TrainingError as error:
        refusal = error
    refusals = [each for each in processes.gather_objects(refusal) if each is not None]
    if log is None or refusals:
        if log is not None:
            log.close()
        raise refusals[0]
    return log


class RankLog:
    """Log and status of this process; a context whose end is the end of the process's part.

    It holds the run directory from its making on. Until `begin` its status goes on telling of an
    earlier start, if there was one: a start that is refused changes nothing about the run.

    Args:
        run_dir: of the run.
        processes: this process among them.
        story: how an earlier start ended, for the log.

    Raises:
        TrainingError: another process trains in this directory as the same rank.
    """

    def __init__(self, run_dir: Path, processes: "Processes", story: str | None = None) -> None:
        self.path = log_path(run_dir, processes.rank)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.is_file():
            # A pipe would wait for a reader that never comes.
            raise TrainingError(f"{self.path} is no regular file: take it away, and start again")
        self._file = self.path.open("a", encoding="utf-8")
        is_free = try_lock(self._file.fileno())
        known = next((s for s in read_statuses(run_dir) if s.rank == processes.rank), None)
        if not is_free and known is not None and _is_alive(known):
            self.close()
            raise TrainingError(
                f"{run_dir} is being trained by process {known.pid} on {known.host}: stop it, "
                "or choose another run directory"
            )
        self._processes, self._story = processes, story
        now = time.time()
        self._status = known or RankStatus(rank=processes.rank, started=now, updated=now)
        self._speaks = known is None
        # Whom a further start will find here.
        self._write(pid=os.getpid(), host=socket.gethostname())

    def begin(self, step: int, total_steps: int) -> None:
        """Say that training begins; the first process also tells how an earlier start ended.

        Args:
            step: steps done before.
            total_steps: of the whole run.
        """
        self._speaks = True
        attempt, most = _restarts()
        if self._processes.is_first:
            for path in self.path.parent.glob("rank-*.json"):
                # An earlier start may have had more processes.
                if int(path.stem.removeprefix("rank-")) >= self._processes.world_size:
                    path.unlink()
        if self._story is not None:
            story = f"{self._story}. Going on from step {step}"
            if attempt:
                self.warn(f"restart {attempt} of {most}: {story}")
            else:
                self.note(story)
        pid, host = self._status.pid, self._status.host
        restarted = f", restart {attempt}" if attempt else ""
        self.note(f"process {pid} on {host} begins at step {step} of {total_steps}{restarted}")
        fresh = RankStatus(rank=self._processes.rank, pid=pid, host=host, started=time.time())
        self._status = fresh
        self._tell(step=step, total_steps=total_steps, attempt=attempt)

    def __enter__(self) -> Self:
        if _is_launched():
            # What a crash in compiled code leaves; the process ends with this context.
            faulthandler.enable(self._file)
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if error is not None and self._speaks:
            self._fail(error)
        if _is_launched():
            faulthandler.enable(sys.__stderr__ or 2)
        self.close()

    def close(self) -> None:
        """Let the run directory go."""
        self._file.close()

    def note(self, text: str) -> None:
        """Append to the log."""
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        # A process that is killed leaves its last line.
        self._file.flush()

    def warn(self, text: str) -> None:
        """Append to the log; on the first process also warn."""
        self.note(f"warning: {text}")
        if self._processes.is_first:
            warnings.warn(text, OpenBlipWarning, stacklevel=2)

    def beat(self, step: int) -> None:
        """Say how far this process is."""
        self._tell(step=step)

    def end(self, state: RankEnd, step: int) -> None:
        """Say that this process has done its part."""
        self.note(f"{state} at step {step}")
        self._tell(state=state, step=step)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.end("interrupted", self._status.step)
            return
        self.note("failed\n" + "".join(traceback.format_exception(error)).rstrip())
        self._tell(state="failed", error=f"{type(error).__name__}: {error}")

    def _tell(self, **changes: Any) -> None:
        self._write(updated=time.time(), **changes)

    def _write(self, **changes: Any) -> None:
        self._status = replace(self._status, **changes)
        with replace_file(self.path.with_suffix(".json"), durable=False) as unfinished:
            unfinished.write_text(json.dumps(asdict(self._status)), encoding="utf-8")


def log_path(run_dir: Path, rank: int) -> Path:
    """The log of a process."""
    return run_dir / LOG_FOLDER / f"rank-{rank}.log"


def read_statuses(run_dir: Path) -> list[RankStatus]:
    """What the processes of the latest start said last, by rank."""
    known = {f.name for f in fields(RankStatus)}
    found = []
    for path in (run_dir / LOG_FOLDER).glob("rank-*.json"):
        values = read_json(path, TrainingError)
        if not isinstance(values, dict):
            raise TrainingError(f"{path}: no JSON object; remove the file, which is damaged")
        try:
            own = {name: value for name, value in values.items() if name in known}
            found.append(from_plain(RankStatus, own, ""))
        except RecipeError as error:
            raise TrainingError(f"{path}: {error}; remove the file, which is damaged") from error
    # `torchrun` restarts all: a file of an attempt before is of a rank that has not begun again.
    latest = max((status.attempt for status in found), default=0)
    return sorted((s for s in found if s.attempt == latest), key=lambda status: status.rank)


def is_held(run_dir: Path, rank: int) -> bool:
    """Whether a living process holds the log of this rank."""
    path = log_path(run_dir, rank)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return not try_lock(file.fileno())


def what_happened(run_dir: Path, statuses: Sequence[RankStatus]) -> str | None:
    """How an earlier start of the run ended before its time; None if it did not.

    A killed process is named before those that failed, which lost their connection to it.
    """
    killed = [s for s in statuses if s.state == "running" and not is_held(run_dir, s.rank)]
    if killed:
        ranks = ", ".join(str(status.rank) for status in killed)
        logs = ", ".join(str(log_path(run_dir, status.rank)) for status in killed)
        step = max(status.step for status in killed)
        return (
            f"rank {ranks} died after step {step} without a word (as by signal 9: killed, or out "
            f"of memory), see {logs}"
        )
    failed = [status for status in statuses if status.state == "failed"]
    if failed:
        # The earliest: the others fail because they have lost it.
        first = min(failed, key=lambda status: status.updated)
        return (
            f"rank {first.rank} failed after step {first.step} ({_first_line(first.error)}), see "
            f"{log_path(run_dir, first.rank)}"
        )
    return None


def _restarts() -> tuple[int, int]:
    """How often `torchrun` has restarted the processes, and how often it may."""
    names = ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS")
    count, most = (int(os.environ.get(name, "0")) for name in names)
    return count, most


def _is_alive(status: RankStatus) -> bool:
    """Whether a process lives, as far as can be told from here.

    One that does not can have left a child behind that keeps its lock.
    """
    if status.host != socket.gethostname():
        return True
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0]
