"""What a worker is given to do, what it reports, and the pieces it saves on the way."""

import io
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openblip.capfilt.store import Store
from openblip.data.fragments import ColumnFile

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Some batches of one fragment; the last unit of a fragment writes its data file."""

    fragment: int
    digest: str
    num_rows: int
    """Rows of the fragment."""
    version: int
    """Version of the table that has the fragment."""
    batches: tuple[int, ...]
    """What to compute; the fragment's other batches are saved pieces, or another unit's."""
    seals: bool
    """Whether the fragment's data file is written when the batches are done."""
    attempt: int = 1
    careful: bool = False
    """Decode in a process of its own and save every batch: somebody died on this unit before."""
    blamed: Mapping[int, str]
    """Batches that are not computed, since they killed worker after worker, with the reason."""
    failure: str = ""
    """Why the fragment cannot be read: the reason that each of its rows gets."""

    def column_file(self, fingerprint: str) -> str:
        """Name of the data file; another attempt never writes the same one."""
        return f"capfilt-{fingerprint}-{self.fragment:08d}-{self.digest}-{self.attempt}.lance"


@dataclass(frozen=True)
class FragmentResult:
    """The new columns of a fragment, in a file that no version of the table names yet."""

    file: ColumnFile
    checksum: str
    """SHA-256 of the file."""
    num_rows: int
    num_errors: int
    """Rows without result."""
    used_pieces: bool
    """Whether batches of the fragment were saved, and may go now."""


@dataclass(frozen=True)
class UnitDone:
    """A worker's last word on a unit; `result` is there if the unit seals its fragment."""

    result: FragmentResult | None


class Pieces:
    """Finished batches of fragments that are not finished, saved so that a kill loses seconds."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, unit: Unit, columns: "Mapping[int, pa.Table]") -> None:
        """Save batches; runs of consecutive ones share a file.

        Raises:
            StoreError: they cannot be written.
        """
        import pyarrow as pa

        for run in _runs(columns):
            table = pa.concat_tables([columns[batch] for batch in run])
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            name = f"{_folder(unit.fragment, unit.digest)}{run[0]:08d}-{run[-1]:08d}"
            self._store.write(name, sink.getvalue())

    def read(self, unit: Unit, batch_size: int) -> "dict[int, pa.Table]":
        """The saved batches of a unit's fragment.

        Raises:
            StoreError: they cannot be read.
        """
        import pyarrow as pa

        found = {}
        for name in self._store.names(_folder(unit.fragment, unit.digest)):
            if (content := self._store.read(name)) is None:
                continue
            table = pa.ipc.open_stream(content).read_all()
            first, last = _span(name)
            for batch in range(first, last + 1):
                found[batch] = table.slice((batch - first) * batch_size, batch_size)
        return found

    def finished(self, fragment: int, digest: str) -> set[int]:
        """Numbers of the saved batches of a fragment."""
        spans = [_span(name) for name in self._store.names(_folder(fragment, digest))]
        return {batch for first, last in spans for batch in range(first, last + 1)}

    def all_finished(self) -> dict[tuple[int, str], set[int]]:
        """Numbers of the saved batches, by fragment and digest; one listing."""
        found: dict[tuple[int, str], set[int]] = {}
        for name in self._store.names("pieces/"):
            fragment, digest = name.split("/")[1].split("-")
            first, last = _span(name)
            found.setdefault((int(fragment), digest), set()).update(range(first, last + 1))
        return found

    def remove(self, fragment: int, digest: str) -> None:
        """Delete the pieces of a fragment, once its data file is recorded."""
        for name in self._store.names(_folder(fragment, digest)):
            self._store.remove(name)


class SaveClock:
    """Says when what is finished should be saved."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether so much time has passed since the last save; if so, it starts again."""
        if time.monotonic() - self._saved < self._seconds:
            return False
        self._saved = time.monotonic()
        return True


def _folder(fragment: int, digest: str) -> str:
    return f"pieces/{fragment:08d}-{digest}/"


def _span(name: str) -> tuple[int, int]:
    first, last = name.rsplit("/", 1)[1].split("-")
    return int(first), int(last)


def _runs(batches: Iterable[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for batch in sorted(batches):
        if runs and runs[-1][-1] == batch - 1:
            runs[-1].append(batch)
        else:
            runs.append([batch])
    return runs
