"""The ledger of a job: what became of each part, written by the driver alone.

A log in numbered files, each created once and never changed, so that it works on object storage
too and a second writer is found out. From time to time a snapshot takes the place of the log. All
that it needs is a `Store`: small files that appear whole or not at all.
"""

import gzip
import json
import os
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar
from urllib.parse import unquote, urlsplit

from openblip.runtime.atomic import force_to_disk, replace_file
from openblip.runtime.errors import OpenBlipError, StorageError
from openblip.table.storage import ObjectFolder, is_object_address

State = Literal["waiting", "leased", "done", "failed"]
STATES: tuple[State, ...] = ("waiting", "leased", "done", "failed")
_LOG, _SNAPSHOT = "ledger/log-", "ledger/snapshot-"
_SNAPSHOT_EVERY = 256
_ACTIVITY = "activity.json"


class LedgerTakenError(OpenBlipError):
    """Another driver has written to the ledger: this one must stop."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one part; its fields in their order are a line of the log."""

    part: int
    digest: str
    """Of the part; an entry of another digest is about rows that are no more."""
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
    """Its result, when done: of columns a file in the folder `data` of the table."""
    num_bytes: int = 0
    checksum: str = ""
    """SHA-256 of the result."""
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
    """Rows that were finished since then, those of unfinished parts included."""
    rows_done: int
    """Rows finished in all."""
    workers: int
    """Workers that were at work."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What workers have counted since the driver began, by name."""

    def stored(self) -> dict[str, Any]:
        """The values of the file: counts stand beside the others."""
        values = asdict(self)
        counts = values.pop("counts")
        return {**values, **counts}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From the values of the file."""
        values = dict(values)
        own = {f.name for f in fields(cls)} - {"counts"}
        counts = {name: count for name, count in values.items() if name not in own}
        return cls(**{name: values[name] for name in own}, counts=counts)


class Store(Protocol):
    """A folder of small files, safe to use from many threads, processes and machines.

    Names are relative, with `/` between their parts. What `write` and `create` have returned from
    survives a crash, and every reader sees it.
    """

    uri: str
    """Path or address of the folder."""

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none.

        Raises:
            StorageError: it is there and cannot be read.
        """
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file: others see the old content or the new one, never a part.

        Raises:
            StorageError: it cannot be written; the old content stays.
        """
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that must not exist; of several that try at once one gets True.

        Raises:
            StorageError: it cannot be written.
        """
        ...

    def names(self, prefix: str = "") -> list[str]:
        """Names of all files that begin with `prefix`, in sorted order; also in sub-folders.

        Raises:
            StorageError: the folder cannot be read.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file; none by this name is fine.

        Raises:
            StorageError: it is there and cannot be removed.
        """
        ...


class Ledger:
    """The entries of a job in memory, and in its store."""

    def __init__(self, store: Store, title: str) -> None:
        """Reads what the store has.

        Args:
            store: of the job.
            title: of the job's kind, as people are told.

        Raises:
            StorageError: it cannot be read.
        """
        self._store, self._title = store, title
        self._entries: dict[int, Entry] = {}
        # Entries since the last `flush`; the last of a part counts.
        self._dirty: dict[int, Entry] = {}
        self._last = 0
        self._since_snapshot = 0
        # What a write that did not return (Ctrl-C) may have left at the next number all the same.
        self._interrupted: bytes | None = None
        self._read()

    def find(self, part: int, digest: str) -> Entry | None:
        """What is recorded of a part with this digest."""
        found = self._entries.get(part)
        return found if found is not None and found.digest == digest else None

    def entries(self) -> Iterable[Entry]:
        """All that is recorded."""
        return self._entries.values()

    def put(self, entry: Entry) -> None:
        """Record an entry; `flush` makes it durable."""
        self._entries[entry.part] = self._dirty[entry.part] = entry

    def flush(self, activity: Activity | None = None) -> None:
        """Write what was recorded since the last time, and how the job is going.

        Raises:
            StorageError: it cannot be written.
            LedgerTakenError: another driver has written meanwhile.
        """
        if self._dirty:
            self._append(_encode(self._dirty.values()))
            self._dirty.clear()
            self._since_snapshot += 1
            if self._since_snapshot >= _SNAPSHOT_EVERY:
                self.compact()
        if activity is not None:
            self._store.write(_ACTIVITY, json.dumps(activity.stored()).encode())

    def _append(self, content: bytes) -> None:
        # The next number, not a free one: it is taken only if somebody else writes here, which must
        # not go on unseen, or by this driver's own interrupted write. No lock and no clock is
        # needed for that.
        interrupted, self._interrupted = self._interrupted, content
        while not self._store.create(name := _name(_LOG, self._last + 1), content):
            if interrupted is None or self._store.read(name) != interrupted:
                raise LedgerTakenError(
                    f"{self._store.uri}: another {self._title} job has written to this ledger; it "
                    "goes on, this one stops (what it finished is kept)"
                )
            interrupted = None
            self._last += 1
        self._last += 1
        self._interrupted = None

    def compact(self) -> None:
        """Put a snapshot in the place of the log so far.

        Raises:
            StorageError: it cannot be written.
        """
        # Written before anything is removed: a kill in between leaves too much, not too little.
        content = gzip.compress(_encode(self._entries.values()), compresslevel=1)
        self._store.write(_name(_SNAPSHOT, self._last), content)
        for prefix, keep in ((_LOG, self._last + 1), (_SNAPSHOT, self._last)):
            for name in self._store.names(prefix):
                if _number(name) < keep:
                    self._store.remove(name)
        self._since_snapshot = 0

    def counts(self) -> dict[State, int]:
        """Number of recorded parts in each state."""
        found = Counter(entry.state for entry in self._entries.values())
        return {state: found[state] for state in STATES}

    def activity(self) -> Activity | None:
        """How the job was going when its driver last wrote; None before that."""
        content = self._store.read(_ACTIVITY)
        if content is None:
            return None
        return decoded(self._store, _ACTIVITY, content, Activity.of)

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
        # Later entries of a part replace earlier ones.
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
                self._entries[entry.part] = entry
            self._last = _number(name)
        self._since_snapshot = len(logs)
        return True


def released(entry: Entry, reason: str) -> Entry:
    """The entry of a part whose worker was lost."""
    return replace(entry, state="waiting", until=0.0, reason=reason)


def leased(entry: Entry, worker: str, seconds: float) -> Entry:
    """The entry of a part that is given to a worker."""
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
    # Lists and not objects: a line for each of 100,000 parts, without names.
    fields = Entry.__slots__
    lines = [json.dumps([getattr(entry, name) for name in fields]) for entry in entries]
    return ("\n".join(lines) + "\n").encode()


_T = TypeVar("_T")


def decoded(store: Store, name: str, content: bytes, make: Callable[[Any], _T]) -> _T:
    """What `make` makes of the JSON value in a file of a job.

    Raises:
        StorageError: it is damaged.
    """
    try:
        return make(json.loads(content))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise StorageError(
            f"{store.uri}/{name} is damaged ({error}): remove it, and what it says of the job is "
            "found out again"
        ) from error


def open_store(uri: str) -> Store:
    """The store at a path, or a `file://`, `s3://` or `gs://` address; made when it is needed.

    Raises:
        StorageError: there is no store for such an address, or the extra for object stores,
            credentials or region are missing.
    """
    if is_object_address(uri):
        return ObjectFolder(uri)
    scheme = urlsplit(uri).scheme
    if scheme == "file":
        return LocalStore(unquote(urlsplit(uri).path))
    if "://" in uri:
        raise StorageError(f"{uri}: job files cannot be kept at {scheme}:// addresses")
    return LocalStore(uri)


class LocalStore:
    """A folder of a file system, local or shared."""

    def __init__(self, folder: str | Path) -> None:
        self.uri = str(folder)
        self._folder = Path(folder)

    def read(self, name: str) -> bytes | None:
        """See `Store.read`."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed("read", name, error) from error

    def write(self, name: str, content: bytes) -> None:
        """See `Store.write`."""
        try:
            with replace_file(self._folder / name) as unfinished:
                unfinished.write_bytes(content)
        except OSError as error:
            raise self._failed("written", name, error) from error

    def create(self, name: str, content: bytes) -> bool:
        """See `Store.create`."""
        path = self._folder / name
        # A hard link fails where the name exists, and shows the file with its whole content.
        whole = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                whole.write_bytes(content)
                force_to_disk(whole)
                path.hardlink_to(whole)
                # The name is content of the folder: else a crash of the machine may undo it.
                force_to_disk(path.parent)
            finally:
                whole.unlink(missing_ok=True)
        except FileExistsError:
            return False
        except OSError as error:
            raise self._failed("written", name, error) from error
        return True

    def names(self, prefix: str = "") -> list[str]:
        """See `Store.names`."""

        def failed(error: OSError) -> None:
            # What is missing holds no files; a folder that cannot be read is not empty.
            if not isinstance(error, FileNotFoundError):
                raise error

        found = []
        inside, _, start = prefix.rpartition("/")
        top = self._folder / inside
        try:
            for folder, folders, files in os.walk(top, onerror=failed):
                if Path(folder) == top:
                    folders[:] = [name for name in folders if name.startswith(start)]
                here = Path(folder).relative_to(self._folder)
                found += [(here / file).as_posix() for file in files if file[0] != "."]
        except OSError as error:
            raise self._failed("listed", prefix, error) from error
        return sorted(name for name in found if name.startswith(prefix))

    def remove(self, name: str) -> None:
        """See `Store.remove`; a sub-folder goes with its last file."""
        path = self._folder / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise self._failed("removed", name, error) from error
        if path.parent != self._folder:
            with suppress(OSError):  # it is gone, or there is more in it
                path.parent.rmdir()

    def _failed(self, what: str, name: str, error: OSError) -> StorageError:
        return StorageError(
            f"{self._folder / name} cannot be {what} ({error.strerror or error}): mend that, then "
            "run the same command to go on"
        )
