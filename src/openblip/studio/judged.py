"""What people have said of a table's texts, beside the arrays of the texts."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from openblip.studio.arrays import TableArrays
from openblip.table.agreement import current_verdicts
from openblip.table.reviews import ReviewLog, ReviewRecord, Verdict

JUDGED: tuple[str, ...] = ("any", "none", *get_args(Verdict))
"""What people may have said of a text: something, nothing, or a certain verdict."""


@dataclass(frozen=True, eq=False)
class Judged:
    """The texts of a table that have verdicts."""

    state: tuple[str, ...] = ()
    """Keys of the verdicts: what was chosen by others has to be chosen anew."""
    positions: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """By source: the judged texts as positions in `TableArrays.texts`; one for each verdict."""
    verdicts: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """By source: which verdict, as its place in `JUDGED`."""
    num_stale: int = 0
    """Verdicts on texts that do not stand any more where they were judged."""

    @property
    def num_texts(self) -> int:
        """Texts that have a verdict which is not stale."""
        return sum(len(np.unique(positions)) for positions in self.positions.values())

    def fits(self, source: str, count: int, verdict: str) -> NDArray[np.bool_]:
        """Which of a source's `count` texts have a verdict that is one of `JUDGED`."""
        fits = np.zeros(count, dtype=bool)
        if source in self.positions:
            of_all = verdict in ("any", "none")
            is_it = self.verdicts[source] == JUDGED.index(verdict)
            fits[self.positions[source][is_it | of_all]] = True
        return ~fits if verdict == "none" else fits


class JudgedTexts:
    """The log beside a table, followed while it grows; safe to use from threads."""

    def __init__(self, arrays: TableArrays) -> None:
        self._arrays = arrays
        self._log = ReviewLog.of(arrays.table.uri)
        self._lock = threading.Lock()
        self._latest = Judged()

    def latest(self) -> Judged:
        """What has been said by now; the texts are looked up only when that has changed.

        Raises:
            DataError, StorageError: the log is damaged, or cannot be reached.
        """
        standing = self._log.standing()
        state = tuple(record.key for record in standing)
        with self._lock:
            if state != self._latest.state:
                self._latest = _looked_up(self._arrays, standing, state)
            return self._latest

    def of_row(self, row_id: str, texts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The verdicts on a row that hold, the latest first.

        Args:
            row_id: of the row.
            texts: its texts as they are now, with `source`, `place` and `text`.
        """
        now = {(text["source"], text["place"]): text["text"] for text in texts}
        names = ("source", "place", "text", "edited", "verdict", "reviewer", "time", "itm")
        told = []
        for record in reversed(self._log.standing()):
            if record.row == row_id:
                values = {name: value for name, value in asdict(record).items() if name in names}
                is_stale = now.get((record.source, record.place)) != record.text
                told.append({**values, "is_stale": is_stale})
        return told


def _looked_up(arrays: TableArrays, standing: list[ReviewRecord], state: tuple[str, ...]) -> Judged:
    current = current_verdicts(arrays.table, standing)
    numbers = arrays.rows_of_ids({record.row for record in current})
    found: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for record in current:
        assert record.verdict is not None  # of a record that stands
        verdict = JUDGED.index(record.verdict)
        found[record.source].append((numbers[record.row], record.place, verdict))
    positions, verdicts = {}, {}
    for source, entries in found.items():
        rows, places, codes = np.array(entries, dtype=np.int64).T
        # A row's texts stand one after the other: the position of the first, and the place behind
        # it.
        positions[source] = np.searchsorted(arrays.texts()[source].rows, rows) + places
        verdicts[source] = codes.astype(np.uint8)
    return Judged(state, positions, verdicts, len(standing) - len(current))
