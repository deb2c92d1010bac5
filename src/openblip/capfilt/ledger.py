"""The ledger of a CapFilt job: what became of each fragment, written by the driver alone.

A log in numbered files, each created once and never changed, so that it works on object storage
too and a second writer is found out. From time to time a snapshot takes the place of the log.
"""

import gzip
import json
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Literal

from openblip.capfilt.store import Store, decoded
from openblip.errors import OpenBlipError, StorageError

State = Literal["waiting", "leased", "done", "failed"]
STATES: tuple[State, ...] = ("waiting", "leased", "done", "failed")
_LOG, _SNAPSHOT = "ledger/log-", "ledger/snapshot-"
_SNAPSHOT_EVERY = 256
_ACTIVITY = "activity.json"


class LedgerTakenError(OpenBlipError):
    """Another driver has written to the ledger: this one must stop."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one fragment."""

    fragment: int
    digest: str
    """Of the rows; an entry of another digest is about rows that are no more."""
    num_rows: int
    state: State = "waiting"
    worker: str = ""
    """Who has it, or had it last, as host:pid."""
    until: float = 0.0
    """When the lease ends, in seconds since 1970; it is renewed while the worker reports."""
    attempts: int = 0
    """How often it was given out."""
    reason: str = ""
    """Why it failed, or why its last worker was lost."""
    file: str = ""
    """Its data file in the folder `data` of the table, when done."""
    num_bytes: int = 0
    checksum: str = ""
    """SHA-256 of the data file."""
    num_errors: int = 0
    """Rows without result."""


@dataclass(frozen=True)
class Activity:
    """How a job was going when its driver last wrote."""

    time: float
    """Seconds since 1970."""
    session_start: float
    """When the driver began."""
    session_rows: int
    """Rows that were finished since then, those of unfinished fragments included."""
    rows_done: int
    """Rows finished in all."""
    workers: int
    """Workers that were at work."""


class Ledger:
    """The entries of a job in memory, and in its store."""

    def __init__(self, store: Store) -> None:
        """Reads what the store has.

        Raises:
            StorageError: it cannot be read.
        """
        self._store = store
        self._entries: dict[int, Entry] = {}
        self._dirty: dict[int, Entry] = {}
        self._last = 0
        self._since_snapshot = 0
        self._read()

    def find(self, fragment: int, digest: str) -> Entry | None:
        """What is recorded of a fragment with these rows."""
        found = self._entries.get(fragment)
        return found if found is not None and found.digest == digest else None

    def entries(self) -> Iterable[Entry]:
        """All that is recorded."""
        return self._entries.values()

    def put(self, entry: Entry) -> None:
        """Record an entry; `flush` makes it durable."""
        self._entries[entry.fragment] = self._dirty[entry.fragment] = entry

    def flush(self, activity: Activity | None = None) -> None:
        """Write what was recorded since the last time, and how the job is going.

        Raises:
            StorageError: it cannot be written.
            LedgerTakenError: another driver has written meanwhile.
        """
        if self._dirty:
            number = self._last + 1
            if not self._store.create(_name(_LOG, number), _encode(self._dirty.values())):
                raise LedgerTakenError(
                    f"{self._store.uri}: another CapFilt job has written to this ledger; it goes "
                    "on, this one stops (what it finished is kept)"
                )
            self._last = number
            self._dirty.clear()
            self._since_snapshot += 1
            if self._since_snapshot >= _SNAPSHOT_EVERY:
                self.compact()
        if activity is not None:
            self._store.write(_ACTIVITY, json.dumps(asdict(activity)).encode())

    def compact(self) -> None:
        """Put a snapshot in the place of the log so far.

        Raises:
            StorageError: it cannot be written.
        """
        content = gzip.compress(_encode(self._entries.values()), compresslevel=1)
        self._store.write(_name(_SNAPSHOT, self._last), content)
        for prefix, keep in ((_LOG, self._last + 1), (_SNAPSHOT, self._last)):
            for name in self._store.names(prefix):
                if _number(name) < keep:
                    self._store.remove(name)
        self._since_snapshot = 0

    def counts(self) -> dict[State, int]:
        """Number of recorded fragments in each state."""
        found = Counter(entry.state for entry in self._entries.values())
        return {state: found[state] for state in STATES}

    def activity(self) -> Activity | None:
        """How the job was going when its driver last wrote; None before that."""
        content = self._store.read(_ACTIVITY)
        if content is None:
            return None
        return decoded(self._store, _ACTIVITY, content, lambda values: Activity(**values))

    def _read(self) -> None:
        snapshot, logs = self._files()
        # A driver that compacts meanwhile takes away what was listed: then list again.
        while not self._read_files(snapshot, logs):
            snapshot, logs = self._files()

    def _files(self) -> tuple[str | None, list[str]]:
        snapshots = self._store.names(_SNAPSHOT)
        snapshot = snapshots[-1] if snapshots else None
        after = _number(snapshot) if snapshot else 0
        return snapshot, [name for name in self._store.names(_LOG) if _number(name) > after]

    def _read_files(self, snapshot: str | None, logs: list[str]) -> bool:
        self._entries.clear()
        for name in [snapshot, *logs]:
            if name is None:
                continue
            content = self._store.read(name)
            if content is None:
                return False
            if name == snapshot:
                content = _unpacked(self._store, name, content)
            for line in content.splitlines():
                entry = decoded(self._store, name, line, lambda values: Entry(*values))
                self._entries[entry.fragment] = entry
            self._last = _number(name)
        self._since_snapshot = len(logs)
        return True


def released(entry: Entry, reason: str) -> Entry:
    """The entry of a fragment whose worker was lost."""
    return replace(entry, state="waiting", until=0.0, reason=reason)


def leased(entry: Entry, worker: str, seconds: float) -> Entry:
    """The entry of a fragment that is given to a worker."""
    return replace(
        entry,
        state="leased",
        worker=worker,
        until=time.time() + seconds,
        attempts=entry.attempts + 1,
    )


def _unpacked(store: Store, name: str, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise StorageError(
            f"{store.uri}/{name} is damaged ({error}): remove it, and its fragments are done again"
        ) from error


def _name(prefix: str, number: int) -> str:
    return f"{prefix}{number:012d}"


def _number(name: str) -> int:
    return int(name.rsplit("-", 1)[1])


def _encode(entries: Iterable[Entry]) -> bytes:
    fields = Entry.__slots__
    lines = [json.dumps([getattr(entry, name) for name in fields]) for entry in entries]
    return ("\n".join(lines) + "\n").encode()
