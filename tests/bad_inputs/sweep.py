"""Runs the cases, each in a forked process with a time limit, and says what is not as it must be.

From the root of the project: `python -m tests.bad_inputs.sweep --case 17` shows one case,
`--cases 2200` runs as many and exits with 1 if one of them fails; `--rooms` takes those of
`rooms.py`.
"""

import argparse
import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# Before torch is loaded: threads of OpenMP do not survive a fork, nor is the hub asked.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LANCE_LOG": "error"}

import torch

from openblip.cli import COMMANDS, main

# Of the processor, so that what else the machine does decides nothing; what hangs uses none of it.
SECONDS = 30
SECONDS_ON_THE_CLOCK = 240
_MEMORY = 12 << 30
_FORBIDDEN = {
    "a traceback": re.compile(r"Traceback \(most recent"),
    "an unforeseen error": re.compile(r": unexpected \w+: "),
    "a panic": re.compile(r"panicked at|RUST_BACKTRACE"),
    "colours": re.compile("\x1b"),
    "a path of Rust": re.compile(r"\.rs:\d|/\.cargo/"),
    "a warning with its line of code": re.compile(r"\.py:\d+: \w*Warning"),
}


def load_everything() -> None:
    """Imports what commands import, so that a case need not; opens nothing."""
    import importlib

    for module, _, _ in COMMANDS.values():
        importlib.import_module(f"openblip.cli.{module}")
    import lance  # noqa: F401
    import tensorboardX  # noqa: F401
    import tyro  # noqa: F401

    import openblip.capfilt.run
    import openblip.comparison.run
    import openblip.evaluation.vqa
    import openblip.index.build
    import openblip.index.search
    import openblip.inference.export
    import openblip.inference.many_images
    import openblip.plan.sizing
    import openblip.review.spreadsheet
    import openblip.sources.export
    import openblip.sources.importing
    import openblip.studio.server
    import openblip.training.run
    import openblip.training.watching  # noqa: F401

    torch.set_num_threads(1)


def in_a_fork(work: Callable[[], int], out: Path) -> int:
    """The id of a process that does the work, in `out`, with its output in files beside."""
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(out.with_name(f"{out.name}.{name}"), os.O_WRONLY | os.O_CREAT, 0o644)
            os.dup2(file, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(out)
        code = work()
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) and 0 <= code < 256 else 98)


def carry_out(number: int, seed: int, base: Path, out: Path, of_rooms: bool) -> int:
    """The exit code of a case; what else is known of it stands in a file beside `out`."""
    from .cases import make_case
    from .rooms import make_room_case

    case = (make_room_case if of_rooms else make_case)(number, seed, base, out)
    about = {"words": case.words, "must_fail": case.must_fail, "encoding": case.encoding}
    out.with_name(f"{out.name}.json").write_text(json.dumps(about))
    os.environ["COLUMNS"] = case.terminal_columns
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            os.fdopen(descriptor, "wb"), encoding=case.encoding, errors="strict", write_through=True
        )
        for descriptor in (1, 2)
    )
    try:
        return main(case.words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1 if stop.code else 0


def faults(status: int | None, out: Path, seconds: float) -> list[str]:
    """What is wrong with how a case ended after `seconds` of the processor; `status` is None if it
    had to be stopped."""
    try:
        about = json.loads(out.with_name(f"{out.name}.json").read_text())
    except OSError:
        return ["the case could not be made"]
    texts = {
        name: out.with_name(f"{out.name}.{name}").read_bytes().decode(about["encoding"], "replace")
        for name in ("stdout", "stderr")
    }
    found = [
        what
        for what, pattern in _FORBIDDEN.items()
        if any(pattern.search(text) for text in texts.values())
    ]
    if status is None:
        return [*found, f"it took over {SECONDS_ON_THE_CLOCK} s"]
    # To trace the graphs of the smallest model takes 20 s.
    most = 3 * SECONDS if about["words"][0] == "export" else SECONDS
    if seconds > most:
        found.append(f"it took {seconds:.0f} s of the processor")
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 1, 2):
        found.append(f"exit code {code}")
    if about["must_fail"] and code == 0:
        found.append("nothing was done, and the exit code is 0")
    if code in (1, 2) and not texts["stderr"].strip() and not texts["stdout"].strip():
        found.append("it failed without a word")
    if any(len(line) > 500 for line in texts["stderr"].splitlines()):
        found.append("a line of over 500 characters")
    if "--json" in about["words"] and code == 0 and not _is_json(texts["stdout"]):
        found.append("--json is no JSON")
    return found


def _is_json(text: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        for line in text.splitlines():
            json.loads(line, parse_constant=refuse)
    except ValueError:
        return False
    return True


def sweep(
    numbers: list[int], seed: int, folder: Path, jobs: int, of_rooms: bool
) -> dict[int, list[str]]:
    """The faults of each case that has some."""
    from .base import make_base

    base = folder / "base"
    load_everything()
    (folder / "made").mkdir(parents=True)
    # Lance must not be used in this process, which forks.
    made = in_a_fork(lambda: make_base(base) or 0, folder / "made")
    if os.waitpid(made, 0)[1]:
        raise SystemExit((folder / "made.stderr").read_text())
    found: dict[int, list[str]] = {}
    running: dict[int, tuple[int, float]] = {}
    waiting = list(reversed(numbers))
    while waiting or running:
        while waiting and len(running) < jobs:
            number = waiting.pop()
            out = folder / f"case{number}"
            out.mkdir()

            def work(number: int = number, out: Path = out) -> int:
                return carry_out(number, seed, base, out, of_rooms)

            running[in_a_fork(work, out)] = (number, time.monotonic())
        time.sleep(0.005)
        for process, (number, began) in list(running.items()):
            ended, status, used = os.wait4(process, os.WNOHANG)
            is_late = not ended and time.monotonic() - began > SECONDS_ON_THE_CLOCK
            if is_late:
                os.killpg(process, signal.SIGKILL)
                os.waitpid(process, 0)
            if ended or is_late:
                del running[process]
                out = folder / f"case{number}"
                seconds = used.ru_utime + used.ru_stime
                if wrong := faults(None if is_late else status, out, seconds):
                    found[number] = wrong
                    _tell(number, seed, wrong, out)
                shutil.rmtree(out, ignore_errors=True)
                for path in folder.glob(f"{out.name}.*"):
                    path.unlink()
    return found


def _tell(number: int, seed: int, wrong: list[str], out: Path) -> None:
    about = out.with_name(f"{out.name}.json")
    words = json.loads(about.read_text())["words"] if about.exists() else []
    errors = out.with_name(f"{out.name}.stderr").read_text("utf-8", "replace")
    print(f"case {number} of seed {seed}: {'; '.join(wrong)}\n  {str(words)[:600]}")
    print("  " + "\n  ".join(errors.splitlines()[-8:])[:1500], flush=True)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", action="store_true", help="the cases of rooms.py")
    parser.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0))))
    words = parser.parse_args()
    numbers = list(range(words.first, words.first + words.cases))
    if words.case is not None:
        numbers = [words.case]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="openblip-bad-inputs-") as folder:
        found = sweep(numbers, words.seed, Path(folder), words.jobs, words.rooms)
    seconds = time.monotonic() - began
    print(f"{len(numbers)} cases of seed {words.seed}, {len(found)} with faults, {seconds:.0f} s")
    rooms = " --rooms" if words.rooms else ""
    for number in sorted(found):
        print(f"  python -m tests.bad_inputs.sweep --seed {words.seed} --case {number}{rooms}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(_main())
