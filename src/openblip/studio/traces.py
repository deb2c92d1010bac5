"""Work on a collection by what it leaves: also that of commands which no studio has started.

A CapFilt job has a ledger and a lock, an index its table and a lock, and captions have a file with
its settings beside it. Nothing is written here, and no model is loaded.
"""

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from openblip.capfilt.job import CAPFILT, job_status
from openblip.curation.marks import EMBEDDING_KEY
from openblip.index.noted import EMBEDDING, IndexState
from openblip.jobs.ledger import Ledger, Store, open_store
from openblip.jobs.lock import lock_owner
from openblip.jobs.run import LATEST
from openblip.runtime.errors import OpenBlipError, one_line
from openblip.runtime.locks import is_taken
from openblip.table.columns import column_state
from openblip.table.storage import is_object_address
from openblip.table.table import PairTable

_SETTINGS = ".settings.json"
_RATE_SECONDS = 60.0
_READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SeenWork:
    """A job as it can be seen from outside."""

    kind: str
    """"capfilt", "index" or "caption"."""
    place: str
    """What it works on, or the file that it writes."""
    is_running: bool
    """Whether a process is at it now."""
    done: int
    """Images that are finished."""
    total: int | None
    """Images that there are; None if it cannot be seen."""
    rate: float
    """Images per second; 0 if nobody knows."""
    note: str
    """What else there is to know, as a sentence."""
    pid: int = 0
    """The process, where that is known."""

    @property
    def seconds_left(self) -> float | None:
        """None if nobody knows."""
        if not self.is_running or self.total is None or self.rate <= 0:
            return None
        return max(self.total - self.done, 0) / self.rate


class Traces:
    """What is seen of the work on a table, and on the folder whose images it is of."""

    def __init__(self, table_uri: str, folder: Path | None) -> None:
        """Reads nothing yet.

        Args:
            table_uri: of the table.
            folder: where files with captions are looked for, besides beside a local table.
        """
        self._uri, self._folder = table_uri.rstrip("/"), folder
        self._lines: dict[Path, _LineCount] = {}
        self._rates: dict[str, _Rate] = {}

    def seen(self) -> list[SeenWork]:
        """All work that has left something, what runs first."""
        found = [self._capfilt(), self._index(), *self._captions()]
        return sorted((work for work in found if work is not None), key=lambda w: not w.is_running)

    def _capfilt(self) -> SeenWork | None:
        try:
            if open_store(CAPFILT.folder(self._uri)).read(LATEST) is None:
                return None
            status = job_status(self._uri)
        except OpenBlipError as error:
            return SeenWork(
                kind="capfilt",
                place=self._uri,
                is_running=False,
                done=0,
                total=None,
                rate=0.0,
                note=f"its state cannot be read: {one_line(error)}",
            )
        note = "finished" if status.is_finished else "stopped: the same settings go on"
        if status.is_running:
            note = f"process {status.owner}, {status.workers} workers"
        if status.failed:
            note += f"; failed: {one_line(status.failed[0])}"
        return SeenWork(
            kind="capfilt",
            place=self._uri,
            is_running=status.is_running,
            done=status.rows_done,
            total=sum(status.rows.values()),
            rate=status.rate if status.is_running else 0.0,
            note=note,
            pid=int(status.owner.rpartition(":")[2] or 0),
        )

    def _index(self) -> SeenWork | None:
        is_running = not is_object_address(self._uri) and is_taken(Path(self._uri))
        try:
            folder = open_store(EMBEDDING.folder(self._uri))
            is_running = is_running or lock_owner(folder) is not None
            table = PairTable.open_if_any(self._uri)
            state = None if table is None else IndexState.of(table)
            if table is None or (state is None and not is_running):
                return None
            is_folder = state is not None and state.folder is not None
            done, total = self._embedded(table, is_folder, folder if is_running else None)
        except OpenBlipError:
            return None  # the page of the collection says what is wrong with the table
        note = "" if is_running else "not embedded yet: an update does that" * (done < len(table))
        return SeenWork(
            kind="index",
            place=self._uri,
            is_running=is_running,
            done=done,
            total=total,
            rate=self._rate("index", done) if is_running else 0.0,
            note=note,
        )

    def _embedded(
        self, table: PairTable, is_folder: bool, jobs: Store | None
    ) -> tuple[int, int | None]:
        """Images that have an embedding, and how many there are, as far as can be seen.

        Args:
            table: in its latest version.
            is_folder: whether its rows appear together with their embeddings.
            jobs: the folder of the jobs that embed it, if one of them is running.
        """
        if is_folder:
            return len(table), None
        latest = jobs.read(LATEST) if jobs is not None else None
        if jobs is not None and latest is not None:
            store = open_store(f"{jobs.uri}/{latest.decode()}")
            if (activity := Ledger(store, EMBEDDING.title).activity()) is not None:
                return min(activity.rows_done, len(table)), len(table)
        has_column = EMBEDDING_KEY in table.columns
        known = int(column_state(table, EMBEDDING_KEY).get("rows", 0)) if has_column else 0
        return min(known, len(table)), len(table)

    def _captions(self) -> list[SeenWork]:
        places = [self._folder] if self._folder is not None else []
        if not is_object_address(self._uri):
            places.append(Path(self._uri).parent)
        settings = {path for place in places for path in place.glob(f"*{_SETTINGS}")}
        files = (path.with_name(path.name.removesuffix(_SETTINGS)) for path in sorted(settings))
        return [work for file in files if (work := self._captions_of(file)) is not None]

    def _captions_of(self, file: Path) -> SeenWork | None:
        # A list of COCO is begun in a file beside it, whose lines are its elements.
        partial = file.with_name(f"{file.name}.partial")
        written = partial if partial.is_file() else file
        if not written.is_file():
            return None
        count = self._lines.setdefault(written, _LineCount(written))
        lines = count.lines()
        done = max(lines - (file.suffix == ".csv") - 2 * (written.suffix == ".json"), 0)
        is_running = is_taken(file)
        return SeenWork(
            kind="caption",
            place=str(file),
            is_running=is_running,
            done=done,
            total=None,
            rate=self._rate(str(file), done) if is_running else 0.0,
            note="" if is_running else "nobody writes it now",
        )

    def _rate(self, what: str, done: int) -> float:
        return self._rates.setdefault(what, _Rate()).of(done)


class _LineCount:
    """Lines of a file that grows; what was counted is not read again."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._count, self._inode = path, 0, 0, 0

    def lines(self) -> int:
        try:
            with self._path.open("rb") as file:
                status = self._path.stat()
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._offset = self._count = 0
                self._inode = status.st_ino
                file.seek(self._offset)
                while part := file.read(_READ_BYTES):
                    self._count += part.count(b"\n")
                    self._offset += len(part)
        except OSError:
            return self._count
        return self._count


class _Rate:
    """Units per second over the last minute, from counts that somebody looks at now and then."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, done: int) -> float:
        now = time.monotonic()
        # A count that went back is that of another job.
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        while now - self._seen[0][0] > _RATE_SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        first_time, first = self._seen[0]
        return (done - first) / (now - first_time) if now > first_time else 0.0
