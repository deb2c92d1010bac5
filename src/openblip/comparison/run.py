"""`compare`: from a comparison file to its tables, its stages carried out in several processes.

Each stage begins as soon as what it needs is finished. This module is also the program of those
processes: it reads a folder a line on standard input, and answers a line of JSON on standard output
when the stage is done or has failed. What a stage prints goes to the log in its folder. The end of
the input is the order to stop: it comes too when the parent dies, however it does.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO

from openblip.batches.image_states import STATES_FOLDER
from openblip.comparison.carry_out import carry_out
from openblip.comparison.findings import Findings
from openblip.comparison.spec import located, read_spec
from openblip.comparison.stages import LOG_FILE, Stage, closure, undone
from openblip.comparison.tables import write_reports
from openblip.runtime.errors import OpenBlipError, RecipeError
from openblip.runtime.locks import only_here
from openblip.runtime.progress import Progress, duration
from openblip.runtime.threads import wait_without_spinning

_STAGES_FOLDER, _STATES = "stages", "states"


class ComparisonError(OpenBlipError):
    """Stages of a comparison failed; names each with its log."""


@dataclass(frozen=True)
class Compared:
    """What a comparison came to."""

    findings: Findings
    text: str
    """The report as Markdown."""
    folder: Path
    """Where the report lies."""


def compare(path: Path, output: Path, *, jobs: int = 1, seeds: Sequence[int] = ()) -> Compared:
    """Carry out what is missing of a comparison, and write its report.

    Every stage is kept in a folder that its fingerprint names: an interrupted comparison goes on, a
    finished one is only read, and a changed file repeats what the change concerns.

    Args:
        path: the comparison file.
        output: gets `stages/` and the report.
        jobs: processes side by side.
        seeds: in the place of the file's: some of them first, or more.

    Raises:
        RecipeError: the file is wrong; names the line.
        ComparisonError: stages failed. What does not need them is done, and the report written.
    """
    if jobs < 1:
        raise RecipeError(f"jobs is {jobs}; give at least 1")
    root = output / _STAGES_FOLDER
    findings = read_comparison(path, output, seeds)
    with only_here(output, "comparison"):
        failed = carry_out_all(findings.evaluations, root, jobs)
        text = write_reports(findings, output)
    if failed:
        lines = "".join(f"\n  {name}: {why}" for name, why in failed.items())
        raise ComparisonError(f"{len(failed)} stages failed; the same command tries again:{lines}")
    return Compared(findings, text, output)


def read_comparison(path: Path, output: Path, seeds: Sequence[int] = ()) -> Findings:
    """The comparison of a file, or of other seeds than its own, as far as it is carried out.

    Raises:
        RecipeError: the file is wrong; names the line.
    """
    spec, lines = read_spec(path)
    if seeds:
        spec = replace(spec, seeds=tuple(seeds))
    findings = Findings(spec, output / _STAGES_FOLDER)
    try:
        # Recipes and checkpoints are looked at here, so that nothing runs before all is right.
        _ = findings.evaluations
    except RecipeError as error:
        raise located(error, path, lines) from error
    return findings


# How long a stage may take to write its checkpoint when it is told to stop.
_PATIENCE_SECONDS = 60.0


def carry_out_all(stages: Iterable[Stage], root: Path, jobs: int) -> dict[str, str]:
    """Carry out what is not finished of some stages and of what they need.

    A stage that fails does not stop those that do not need it.

    Args:
        stages: what is wanted.
        root: folder of the stages' folders.
        jobs: processes side by side; each computes with its share of the cores.

    Returns:
        for each stage that failed, by name, why, and where its log is.
    """
    every = closure(stages)
    missing = undone(every, root)
    if not missing:
        return {}
    run = _Run(every, missing, root)
    with Progress(
        "comparing", total=len(every), unit="stages", start=len(every) - len(missing)
    ) as progress:
        run.carry_out(progress, min(jobs, len(missing)))
    return run.failed


class _Run:
    def __init__(self, every: dict[str, Stage], missing: dict[str, Stage], root: Path) -> None:
        self._root = root
        self._waiting = missing
        self._unfinished = set(missing)
        self._weight = _dependents(every)
        self.failed: dict[str, str] = {}

    def carry_out(self, progress: Progress, jobs: int) -> None:
        with selectors.DefaultSelector() as selector:
            workers = _Workers(jobs, selector, self._root.parent / _STATES)
            try:
                while self._unfinished:
                    while (stage := self._next()) is not None and (worker := workers.idle()):
                        try:
                            worker.begin(stage, self._root)
                        except BrokenPipeError:
                            workers.drop(worker)
                            continue
                        progress.note(f"begin: {stage.kind} {stage.name}")
                        del self._waiting[stage.fingerprint]
                    if not workers.are_busy:
                        # What is left needs what has failed.
                        break
                    for worker in workers.that_answer():
                        # One that died without a stage, as for want of memory, has failed nothing.
                        if worker.stage is None or self._end(worker, progress):
                            workers.drop(worker)
            finally:
                workers.stop()

    def _next(self) -> Stage | None:
        """Of the stages that can begin, the one that most others wait for."""
        ready = [
            stage
            for stage in self._waiting.values()
            if not any(needed.fingerprint in self._unfinished for needed in stage.needs)
        ]
        return max(ready, key=lambda stage: self._weight[stage.fingerprint], default=None)

    def _end(self, worker: "_Worker", progress: Progress) -> bool:
        """Note how a worker's stage ended; whether the worker is gone."""
        stage, seconds = worker.stage, time.monotonic() - worker.began
        assert stage is not None
        answer = worker.answer()
        worker.stage = None
        error = worker.last_words() if answer is None else answer
        name = f"{stage.kind} {stage.name}"
        if error:
            log = stage.folder(self._root) / LOG_FILE
            self.failed[name] = f"{error} (log: {log})"
            progress.note(f"failed: {name}: {error} (log: {log})")
        else:
            self._unfinished.remove(stage.fingerprint)
            progress.note(f"done: {name}, {duration(seconds)}")
            for source, reasons in (stage.result(self._root) or {}).get("left_out", {}).items():
                told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
                progress.note(f"left out of {source}: {told} (log: {stage.folder(self._root)})")
            progress.update(1)
        return answer is None


class _Worker:
    """A process of `openblip.comparison.run`, idle if it has no stage."""

    def __init__(self, jobs: int, states: Path) -> None:
        # Else each would compute on all cores, and take them from the others.
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "openblip.comparison.run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                "OMP_NUM_THREADS": threads,
                # Of frozen image encoders: computed once for all models, seeds and tables.
                STATES_FOLDER: str(states),
                **os.environ,
                **wait_without_spinning(),
            },
            # Ctrl-C shall reach the parent alone, which tells its workers.
            start_new_session=True,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self.answers = self._process.stdin, self._process.stdout
        self.stage: Stage | None = None
        self.began = 0.0

    def begin(self, stage: Stage, root: Path) -> None:
        """Let it carry out a stage.

        Raises:
            BrokenPipeError: its process ended while it was idle.
        """
        self._orders.write(f"{stage.write_order(root)}\n")
        self._orders.flush()
        self.stage, self.began = stage, time.monotonic()

    def answer(self) -> str | None:
        """What went wrong with its stage, empty if nothing did; None if the process has ended."""
        line = self.answers.readline()
        return (json.loads(line)["error"] or "") if line else None

    def last_words(self) -> str:
        self.wait()
        return f"its process ended with exit code {self._process.returncode}"

    def tell_to_stop(self) -> None:
        # What it was told last may still be under way to a process that has ended.
        with suppress(BrokenPipeError):
            self._orders.close()

    def wait(self) -> None:
        self.tell_to_stop()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.answers.close()


class _Workers:
    """Processes, at most `jobs` of them; one is started when it is wanted."""

    def __init__(self, jobs: int, selector: selectors.BaseSelector, states: Path) -> None:
        self._jobs, self._selector, self._states = jobs, selector, states
        self._all: list[_Worker] = []

    @property
    def are_busy(self) -> bool:
        """Whether any has a stage."""
        return any(worker.stage for worker in self._all)

    def idle(self) -> _Worker | None:
        """One without a stage; None if all there may be have one."""
        for worker in self._all:
            if worker.stage is None:
                return worker
        if len(self._all) == self._jobs:
            return None
        worker = _Worker(self._jobs, self._states)
        self._all.append(worker)
        self._selector.register(worker.answers, selectors.EVENT_READ, worker)
        return worker

    def that_answer(self) -> list[_Worker]:
        """Those that have ended their stage or themselves; waits for one."""
        return [key.data for key, _ in self._selector.select()]

    def drop(self, worker: _Worker) -> None:
        """Forget one whose process has ended."""
        self._selector.unregister(worker.answers)
        self._all.remove(worker)
        worker.wait()

    def stop(self) -> None:
        """End all."""
        # All are told first, so that they write their checkpoints at the same time.
        for worker in self._all:
            worker.tell_to_stop()
        for worker in self._all:
            worker.wait()


def _dependents(every: dict[str, Stage]) -> dict[str, int]:
    """How many stages need each one, directly or not."""
    needed = dict.fromkeys(every, 0)
    for stage in every.values():
        for key in closure(stage.needs):
            needed[key] += 1
    return needed


def serve() -> None:
    """Carry out stages until the input ends."""
    # Kept aside before a stage's log takes the place of standard output.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    orders: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin, orders), daemon=True).start()
    try:
        while (order := orders.get()) is not None:
            error = _attempt(Path(order))
            answers.write(json.dumps({"error": error}) + "\n")
            answers.flush()
    except KeyboardInterrupt:
        pass


def _listen(stream: TextIO, orders: "SimpleQueue[str | None]") -> None:
    for line in stream:
        orders.put(line.strip())
    orders.put(None)
    # A stage that is under way is interrupted: a training writes its checkpoint first.
    os.kill(os.getpid(), signal.SIGINT)


def _attempt(folder: Path) -> str | None:
    """Why a stage failed; None if it is done."""
    with _logged(folder / LOG_FILE):
        try:
            carry_out(folder)
        except (OpenBlipError, OSError) as error:
            traceback.print_exc()
            return str(error)
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _logged(log: Path) -> Iterator[None]:
    """Everything that is printed goes to the end of a file, also from other languages."""
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as stream:
        # By descriptor, since libraries in C++ and Rust do not print through Python.
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, before in zip((1, 2), saved, strict=True):
                os.dup2(before, number)
                os.close(before)


if __name__ == "__main__":
    serve()
