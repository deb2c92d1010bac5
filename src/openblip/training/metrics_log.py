"""A run's numbers: `metrics.jsonl`, a line a report, and the same for TensorBoard and others."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

from openblip.runtime.atomic import replace_file
from openblip.runtime.documents import read_text
from openblip.runtime.errors import OpenBlipWarning, TrainingError, install_extra
from openblip.training.trackers import TrackerThread

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
# Lines of this kind stay when the run goes back behind them: they tell that it did.
_HISTORY = "rewind"
_NUMBERS_ALONE = ("train", "validation")


class MetricsLog:
    """Appends to the metrics of a run directory; a context that closes its files.

    TensorBoard's files are written where tensorboardX is installed, see `without_tensorboard`.

    Lines behind `first_step` are removed: a run that was killed writes them once more when it
    is resumed.

    Args:
        run_dir: of the run.
        first_step: optimiser steps done.
        trackers: get the same numbers.
    """

    def __init__(
        self, run_dir: Path, first_step: int = 0, trackers: Sequence[TrackerThread] = ()
    ) -> None:
        self._run_dir, self._trackers = run_dir, trackers
        self._open(first_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def go_back(self, step: int) -> None:
        """Remove the lines behind `step`, but for those that tell of going back."""
        self._close()
        self._open(step)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line.

        Args:
            kind: "train" or "validation".
            step: optimiser steps done.
            values: numbers by name.
        """
        self._write_line({"step": step, "kind": kind, **values})
        named = {f"{kind}/{name}": value for name, value in values.items()}
        if self._board is not None:
            for name, value in named.items():
                self._board.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log(step, named)

    def event(self, kind: str, step: int, values: Mapping[str, Any], text: str) -> None:
        """Append a line about something that happened, of which trackers make an alert.

        Args:
            kind: "alarm" or "rewind".
            step: optimiser steps done.
            values: what JSON can hold.
            text: the same for a person.
        """
        self._write_line({"step": step, "kind": kind, **values, "text": text})
        self._tell_board(kind, step, text)
        for tracker in self._trackers:
            tracker.alert(step, kind, text)

    def note(self, step: int, text: str) -> None:
        """Append a line for a person, which nobody need be alerted to."""
        self._write_line({"step": step, "kind": "note", "text": text})
        self._tell_board("note", step, text)

    def _write_line(self, line: Mapping[str, Any]) -> None:
        # Written at once: a process that is killed loses no line that it has reported.
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _tell_board(self, kind: str, step: int, text: str) -> None:
        if self._board is not None:
            self._board.add_text(kind, text, step)

    def _open(self, first_step: int) -> None:
        path = self._run_dir / METRICS_FILE
        if path.exists():
            _keep_until(path, first_step)
        self._file = path.open("a", encoding="utf-8")
        self._board = _board(self._run_dir / TENSORBOARD_FOLDER, first_step + 1)

    def _close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def without_tensorboard() -> str | None:
    """What a run says where it cannot write TensorBoard's files; None where it can."""
    if find_spec("tensorboardX") is not None:
        return None
    return f"no files for TensorBoard: for them {install_extra('tensorboard')}"


def _board(folder: Path, purge_step: int) -> Any | None:
    if without_tensorboard() is not None:
        return None
    # Imported here, and only here: it takes longer than the rest of the package.
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; one that a killed process left torn is left out.

    So are others that are no lines of metrics, which `OpenBlipWarning` tells of.
    """
    path = run_dir / METRICS_FILE
    return _complete_lines(path) if path.exists() else []


class MetricsTail:
    """The lines of a run's `metrics.jsonl` as they come, each read once.

    Lines that are no lines of metrics are left out and counted in `num_odd`.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_FILE
        self._inode, self._offset, self._last = 0, 0, b""
        self.num_odd = 0

    def read(self, most: int) -> tuple[bool, list[dict[str, Any]]]:
        """Whether what was read before counts no more, and at most so many lines that came since.

        A run that goes back, or is resumed, writes its file anew: then all lines come again.
        """
        # To open a pipe would wait for a writer.
        if not self._path.is_file():
            gone = self._offset > 0
            self._inode, self._offset, self._last = 0, 0, b""
            return gone, []
        with self._path.open("rb") as file:
            is_anew = self._offset > 0 and not self._goes_on(file)
            if is_anew:
                self._offset, self._last, self.num_odd = 0, b"", 0
            self._inode = os.fstat(file.fileno()).st_ino
            file.seek(self._offset)
            return is_anew, list(self._lines(islice(file, most)))

    def _goes_on(self, file: BinaryIO) -> bool:
        # An inode is given out again: the line that was read last must stand there still.
        if os.fstat(file.fileno()).st_ino != self._inode:
            return False
        file.seek(self._offset - len(self._last))
        return file.read(len(self._last)) == self._last

    def _lines(self, contents: Iterator[bytes]) -> Iterator[dict[str, Any]]:
        for content in contents:
            if not content.endswith(b"\n"):
                return  # it is being written, or a killed process left it torn
            self._offset += len(content)
            self._last = content
            if not content.strip():
                continue
            line = _line(content)
            if line is None:
                self.num_odd += 1
            else:
                yield line


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    lines, odd = [], []
    texts = read_text(path, TrainingError).split("\n")
    for number, text in enumerate(texts, 1):
        if text.strip():
            line = _line(text)
            if line is not None:
                lines.append(line)
            elif number < len(texts):  # else it has no end: a killed process left it torn
                odd.append(number)
    if odd:
        warnings.warn(
            f"{path}: line {odd[0]} is no line of metrics ({len(odd)} in all); left out",
            OpenBlipWarning,
            stacklevel=2,
        )
    return lines


def _line(text: str | bytes) -> dict[str, Any] | None:
    """A line of metrics: an object with a step, a kind, and numbers; None if it is none."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return None
    step = line.get("step")
    if type(step) is not int or not 0 <= step < 1 << 63:
        return None
    if line["kind"] in _NUMBERS_ALONE:
        kinds = {type(value) for name, value in line.items() if name != "kind"}
        return line if kinds <= {int, float} else None
    return line


def _keep_until(path: Path, step: int) -> None:
    lines = _complete_lines(path)
    kept = [n for n in lines if n["step"] <= step or (step > 0 and n["kind"] == _HISTORY)]
    with replace_file(path) as unfinished:
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
