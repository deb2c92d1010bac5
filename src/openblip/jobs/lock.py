"""One job at a time on a table: a lock that its owner keeps alive, and that outlives no owner.

Each owner has a generation, a number in the name of a file that is created once. Whoever creates
the next one owns the lock; an owner that finds a higher number has lost it.
"""

import json
import os
import platform
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Self

from openblip.jobs.ledger import Store, decoded
from openblip.jobs.units import Kind
from openblip.runtime.errors import OpenBlipError, StorageError
from openblip.runtime.locks import is_running, process_start

HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
"""An owner of another machine that has not been heard of for so long is taken for dead."""
_PREFIX = "lock-"
# Locks of this process, by the moment they were made: it may outlive a job that could not say that
# it ended, as a notebook does.
_HELD: set[float] = set()


class JobLockedError(OpenBlipError):
    """Another job works on the table, or has taken over from this one."""


@dataclass(frozen=True)
class Owner:
    """Who has the lock."""

    host: str
    pid: int
    process_start: str
    """Tells the process from a later one with its number; empty where the system does not say."""
    since: float
    """Seconds since 1970."""
    heartbeat: float
    """When the owner last wrote, in seconds since 1970."""
    released: bool = False

    def is_alive(self) -> bool:
        """Whether the owner still works, as far as can be told from here."""
        if self.released:
            return False
        if (self.host, self.pid) == (platform.node(), os.getpid()):
            return self.since in _HELD
        if self.host == platform.node():
            return is_running(self.pid, self.process_start)
        return time.time() - self.heartbeat < EXPIRY_SECONDS


class JobLock:
    """Context in which no other job works on the table; `check` raises if that has changed."""

    def __init__(self, store: Store, kind: Kind) -> None:
        """A lock in the folder of all jobs of a kind on a table; the context takes it."""
        self._store, self._kind = store, kind
        now = time.time()
        self._owner = Owner(platform.node(), os.getpid(), process_start(os.getpid()), now, now)
        self._generation = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"{kind.name}-lock", daemon=True)
        self._lost = False

    def __enter__(self) -> Self:
        """Takes the lock.

        Raises:
            JobLockedError: another job has it; says who, since when, and what can be done.
        """
        while True:
            generation, owner = _latest(self._store)
            if owner is not None and owner.is_alive():
                raise JobLockedError(_refusal(self._store, self._kind, generation, owner))
            self._generation = generation + 1
            if self._store.create(_name(self._generation), _encode(self._owner)):
                break
        _HELD.add(self._owner.since)
        self._thread.start()
        # The locks of earlier owners may stay, should they be out of reach just now: the context
        # that this leads to is the only one that gives the lock back.
        with suppress(StorageError):
            for number in _generations(self._store):
                if number < self._generation:
                    self._store.remove(_name(number))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        _HELD.discard(self._owner.since)
        # Where it cannot be said that the job has ended, the end of the process says so.
        with suppress(StorageError):
            if not self._lost:
                self._write(replace(self._owner, released=True))

    def check(self) -> None:
        """Raises `JobLockedError` if another job has taken over."""
        if self._lost:
            raise JobLockedError(
                f"{self._store.uri}: this job was not heard of for {EXPIRY_SECONDS:.0f} s, and "
                "another has taken over its table; this one stops (what it finished is kept)"
            )

    def verify(self) -> None:
        """As `check`, after looking."""
        self._lost = self._lost or max(_generations(self._store), default=0) > self._generation
        self.check()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self.verify()
                self._write(replace(self._owner, heartbeat=time.time()))
            except JobLockedError:
                return
            except StorageError:  # full or away for a moment: the next beat may succeed
                continue

    def _write(self, owner: Owner) -> None:
        self._store.write(_name(self._generation), _encode(owner))


def lock_owner(store: Store) -> Owner | None:
    """Who works on the table; None if nobody does."""
    _, owner = _latest(store)
    return owner if owner is not None and owner.is_alive() else None


def _latest(store: Store) -> tuple[int, Owner | None]:
    generation = max(_generations(store), default=0)
    name = _name(generation)
    content = store.read(name) if generation else None
    if content is None:
        return generation, None
    return generation, decoded(store, name, content, lambda values: Owner(**values))


def _generations(store: Store) -> list[int]:
    return [int(name.removeprefix(_PREFIX)) for name in store.names(_PREFIX)]


def _refusal(store: Store, kind: Kind, generation: int, owner: Owner) -> str:
    since = datetime.fromtimestamp(owner.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    shown = f" (`{kind.status}` shows how far it is)" if kind.status else ""
    return (
        f"another {kind.title} job works on this table: process {owner.pid} on {owner.host}, since "
        f"{since}; wait for it{shown}, or stop it. If it is gone for good, remove "
        f"{store.uri}/{_name(generation)}"
    )


def _name(generation: int) -> str:
    return f"{_PREFIX}{generation:08d}"


def _encode(owner: Owner) -> bytes:
    return json.dumps(asdict(owner)).encode()
