"""A process that carries out stages one after the other, as its parent names them.

It reads a folder a line on standard input, and answers a line of JSON on standard output when the
stage is done or has failed. What a stage prints goes to the log in its folder. The end of the
input is the order to stop: it comes too when the parent dies, however it does.
"""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO

from openblip.comparison.carry_out import carry_out
from openblip.comparison.stages import LOG_FILE
from openblip.errors import OpenBlipError


def serve() -> None:
    """Carry out stages until the input ends."""
    # Ctrl-C on a terminal reaches the whole group: the parent says what is to happen.
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
