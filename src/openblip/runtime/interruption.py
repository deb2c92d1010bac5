"""Ctrl-C and SIGTERM: the step or batch in progress is finished before a job stops."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interruption:
    """A context in which the first SIGINT or SIGTERM is noted instead of obeyed.

    A second one acts at once, as it would outside of the context. Python takes signals in its
    main thread only: in another thread the context does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        """Whether a signal has come."""
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # At once, not at the end: a second signal shall end a job that hangs.
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
