"""Files and folders that appear whole or not at all."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """A path to write to; the file takes the place of `path` when the block ends well.

    Args:
        path: where the file is to stand.
        durable: wait until it is on the disk, so that a power cut cannot undo it.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    try:
        yield unfinished
        if durable:
            force_to_disk(unfinished)
        unfinished.replace(path)
        if durable:
            force_to_disk(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write to; it takes the place of `path` when the block ends well.

    A folder that was there stays whole until then. Folders cannot be exchanged in one step: a
    process killed between the two renames leaves the old one beside, under a name with "replaced".

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        for file in unfinished.iterdir():
            force_to_disk(file)
        force_to_disk(unfinished)
        _take_place(unfinished, path)
        force_to_disk(path.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def force_to_disk(path: Path) -> None:
    """Wait until the contents of a file, or the names in a folder, are on the disk.

    Raises:
        OSError: if the disk is full or fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_place(folder: Path, path: Path) -> None:
    if not path.exists():
        folder.rename(path)
        return
    replaced = path.with_name(f".{path.name}.{os.getpid()}.replaced")
    path.rename(replaced)
    try:
        folder.rename(path)
    except OSError:
        replaced.rename(path)
        raise
    shutil.rmtree(replaced)


def _unfinished(path: Path) -> Path:
    """A name beside `path`, so that a rename does not cross file systems."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.unfinished")
