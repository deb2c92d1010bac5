"""Locks of files: one process at a time; the lock of a process ends with it.

All locks are the kernel's (`flock`), and belong to an open file: whoever is killed has none, and
nothing needs to be cleaned up. A lock on an object store is another thing, see `jobs/lock.py`:
it asks whether its owner still lives.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openblip.runtime.errors import OpenBlipError


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file; False if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: nobody can hold one.
        return True
    return True


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """A context that one process at a time is in, for a file or folder that need not be there yet.

    Args:
        path: the lock is that of a hidden file beside it, which is removed at the end, as is the
            folder if it was made for the lock and nothing has come into it.
        what: is done with it, for the error.

    Raises:
        OpenBlipError: another process is in it.
        OSError: the folder of `path` cannot be written.
    """
    path = path.resolve()
    lock = _lock_of(path)
    with _folder_there(path.parent):
        while True:
            # A process that leaves removes a folder that it has made and that is empty.
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                opened = lock.open("a")
            except FileNotFoundError:
                continue
            with opened as file:
                if not try_lock(file.fileno()):
                    raise OpenBlipError(f"{path}: another process is {what} it at this moment")
                # Whoever had it has removed it since it was opened here: this is the lock of a
                # file without a name, and the next process would make, and get, another one.
                if not _is_still(lock, file.fileno()):
                    continue
                try:
                    yield
                finally:
                    # Before it is given up: later it might be that of the next process.
                    lock.unlink(missing_ok=True)
                return


@contextmanager
def _folder_there(folder: Path) -> Iterator[None]:
    """A context in which a folder is there; one that was made for it goes again if it is empty."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # something has come into it
            for each in made:
                each.rmdir()


def is_taken(path: Path) -> bool:
    """Whether a process is in `only_one` for a path at this moment."""
    lock = _lock_of(path.resolve())
    # It is there while it is held, or after a kill: what nobody holds is hardly ever asked for.
    if not lock.is_file():
        return False
    with suppress(OSError), lock.open("rb") as file:
        return not try_lock(file.fileno())
    return False


def lock_name(name: str) -> str:
    """The name of the file whose lock `only_one` takes for a file of this name."""
    return f".{name[:40]}.lock"


def _lock_of(path: Path) -> Path:
    return path.with_name(lock_name(path.name))


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """A context that one process at a time is in; the others wait.

    Args:
        path: the lock is that of this file, which stays.

    Raises:
        OSError: it cannot be written, or its file system has no locks.
    """
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def only_here(folder: Path, what: str) -> Iterator[None]:
    """A context that one process at a time is in, for a folder.

    Args:
        folder: made if it is absent; the lock is that of its file `.lock`.
        what: is done in it, for the error.

    Raises:
        OpenBlipError: another process is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        if not try_lock(file.fileno()):
            raise OpenBlipError(f"{folder}: another process is at work on this {what}")
        yield


def is_running(pid: int, start: str) -> bool:
    """Whether a process of this machine lives, and is the one that `process_start` told of."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return process_start(pid) == start


def process_start(pid: int) -> str:
    """When a process started, in the system's own units; empty where `/proc` is missing.

    It tells a process from a later one that has its number.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    # A zombie (Z) is dead, whoever has not yet asked for its exit code.
    return "" if fields[0] == "Z" else fields[19]
