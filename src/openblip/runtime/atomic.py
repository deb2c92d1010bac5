"""Files and folders that appear whole or not at all, and whether they can be written at all."""

import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from openblip.runtime.errors import OpenBlipError, StorageError, UnwritableError

# Names of what is open already, and may be a file to which other things are written.
_OPEN = re.compile(r"/dev/stdout|/dev/stderr|(?:/dev|/proc/self)/fd/(\d+)")
# A name that is made longer must not become too long: at most 255 bytes.
_NAME_CHARACTERS = 40
_PART_BYTES = 1 << 16


def cache_folder() -> Path:
    """`$OPENBLIP_CACHE`, or else `~/.cache/openblip`: what can be made again at any time."""
    return Path(os.environ.get("OPENBLIP_CACHE") or "~/.cache/openblip").expanduser()


def agreed_text(path: Path, make: Callable[[], str]) -> str:
    """The text of a file that whoever came first has written; empty where none can be kept.

    Of several processes that find no file at once each makes a text, and all go on with one.

    Args:
        path: of the file; its folder is made.
        make: the text, if nobody has written one.
    """
    try:
        with suppress(FileNotFoundError):
            return path.read_text(encoding="utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make()
        unfinished = _unfinished(path)
        unfinished.write_text(made, encoding="utf-8")
        try:
            # Unlike a rename, a link takes no other file's place.
            os.link(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except FileExistsError:
        return agreed_text(path, make)
    except (OSError, ValueError, RuntimeError):
        return ""
    return made


@contextmanager
def replace_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """A path to write to; the file takes the place of `path` when the block ends well.

    A link stays, and what it leads to is replaced. A device or a pipe is never replaced: the
    content is written into it.

    Args:
        path: where the file is to stand.
        durable: wait until it is on the disk, so that a power cut cannot undo it.

    Raises:
        UnwritableError: the disk is full, or refuses; or a folder or the like is there.
    """
    if is_stream(path):
        with _into_stream(path) as unfinished:
            yield unfinished
        return
    path = _followed(path)
    unfinished = _unfinished(path)
    try:
        with _naming(path, unfinished):
            _check_kind(path, is_folder=False)
            path.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            # The content before the name: else a power cut leaves the name of an empty file.
            if durable:
                force_to_disk(unfinished)
            unfinished.replace(path)
            # A rename is a change of the folder.
            if durable:
                force_to_disk(path.parent)
    finally:
        with suppress(OSError):  # nothing is there, not even a folder
            unfinished.unlink()


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write to; it takes the place of `path` when the block ends well.

    A folder that was there stays whole until then. Folders cannot be exchanged in one step: a
    process killed between the two renames leaves the old one beside, under a name with "replaced".

    Raises:
        UnwritableError: the disk is full, or refuses; or a file is there.
    """
    unfinished = begin_folder(path)
    try:
        with _naming(path, unfinished):
            yield unfinished
        finish_folder(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def begin_folder(path: Path) -> Path:
    """An empty folder beside `path`, for `finish_folder` to put in its place.

    Raises:
        UnwritableError: it cannot be made, a file is there, or the process runs inside of it.
    """
    path = _followed(path)
    if Path.cwd().is_relative_to(path.resolve()):
        raise UnwritableError(
            f"{path}: the folder in which this runs cannot be replaced; give one inside of it"
        )
    unfinished = _unfinished(path)
    with _naming(path, unfinished):
        _check_kind(path, is_folder=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
    return unfinished


def finish_folder(unfinished: Path, path: Path) -> None:
    """Let a folder of `begin_folder` take the place of `path`, once its files are on the disk.

    Args:
        unfinished: whoever wrote a folder inside of it has seen to that folder's files.
        path: as for `replace_folder`.

    Raises:
        UnwritableError: the disk is full or fails.
    """
    path = _followed(path)
    with _naming(path, unfinished):
        for file in unfinished.iterdir():
            force_to_disk(file)
        force_to_disk(unfinished)
        _take_place(unfinished, path)
        force_to_disk(path.parent)


def check_output(path: Path, flag: str, *, is_folder: bool = False) -> None:
    """Nothing, if a file or folder can be written there: asked before the work that fills it.

    Args:
        path: where it is to stand; folders above it need not exist.
        flag: what the user gave the path by, for the error.
        is_folder: whether it is to be a folder.

    Raises:
        UnwritableError: names the flag.
    """
    try:
        _check_kind(path, is_folder)
        if not is_stream(path):
            with tempfile.TemporaryFile(dir=_nearest_folder(_followed(path))):
                pass
    except UnwritableError as error:
        raise UnwritableError(f"{flag} {error}") from error
    except OSError as error:
        raise UnwritableError(
            f"{flag} {path}: cannot be written ({error.strerror or error}): give another place"
        ) from error


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe or an open descriptor: written into, never replaced."""
    if _descriptor(path) is not None:
        return True
    mode = _mode(path)
    return mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def open_stream(path: Path) -> BinaryIO:
    """A device, a pipe or an open descriptor, to write behind what was written there; unbuffered.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = _descriptor(path)
    # A descriptor of its own would begin at the begin of a file, and write over the rest.
    opened = os.open(path, os.O_WRONLY) if descriptor is None else os.dup(descriptor)
    return cast(BinaryIO, os.fdopen(opened, "wb", buffering=0))


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


@contextmanager
def _into_stream(path: Path) -> Iterator[Path]:
    """A path to write to, whose content goes into a device or pipe when the block ends well."""
    _check_kind(path, is_folder=False)
    with tempfile.TemporaryDirectory() as folder, _naming(path, Path(folder)):
        unfinished = Path(folder, path.name)
        yield unfinished
        with open_stream(path) as stream, unfinished.open("rb") as content:
            while part := content.read(_PART_BYTES):
                while part:  # unbuffered streams may take less
                    part = part[stream.write(part) :]


@contextmanager
def _naming(path: Path, unfinished: Path) -> Iterator[None]:
    """Errors of the disk name what was to be written, which is not the file that refused."""
    try:
        yield
    except OpenBlipError as error:
        if str(unfinished) not in str(error):
            raise
        raise type(error)(str(error).replace(str(unfinished), str(path))) from error
    except (FileNotFoundError, BrokenPipeError):
        raise
    except OSError as error:
        is_own = error.filename is None or str(error.filename).startswith(str(unfinished))
        reason = os.strerror(error.errno) if error.errno and is_own else str(error)
        raise UnwritableError(f"{path}: cannot be written ({reason})") from error


def _check_kind(path: Path, is_folder: bool) -> None:
    """Nothing, if what is there, if anything, is something that may be replaced or written into.

    Raises:
        UnwritableError: it is not.
    """
    mode = _mode(path)
    if mode is None:
        return
    if stat.S_ISDIR(mode):
        reason = None if is_folder else "it is a folder; give the name of a file"
    elif is_folder:
        reason = "it is a file; give the name of a folder"
    elif stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        reason = "it is a socket or a disk"
    else:
        reason = None if os.access(path, os.W_OK) else "it is read-only"
    if reason is not None:
        raise UnwritableError(f"{path}: {reason}")


def _descriptor(path: Path) -> int | None:
    """The open descriptor that a path is another name of."""
    found = _OPEN.fullmatch(os.path.abspath(path))  # noqa: PTH100 - links are not followed
    if found is None:
        return None
    return int(found[1] or found[0].endswith("stderr") + 1)


def _mode(path: Path) -> int | None:
    """What is there, links followed; None for nothing."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return None


def _followed(path: Path) -> Path:
    return path.resolve() if path.is_symlink() else path


def _nearest_folder(path: Path) -> Path:
    """The folder in which a file, or the first folder above it that is missing, will be made."""
    return next(parent for parent in path.absolute().parents if os.path.lexists(parent))


def temporary_files_fail(reason: str) -> StorageError:
    """What to raise where a file in the folder for temporary files cannot be written."""
    return StorageError(
        f"the folder for temporary files, {tempfile.gettempdir()}, cannot be written "
        f"({reason}): make room in it or name another one in TMPDIR, "
        "then run the same command to go on"
    )


def _take_place(folder: Path, path: Path) -> None:
    if not path.exists():
        folder.rename(path)
        return
    # A folder that is not empty cannot be renamed over: hence two renames, and a way back.
    replaced = path.with_name(f".{path.name[:_NAME_CHARACTERS]}.{os.getpid()}.replaced")
    path.rename(replaced)
    try:
        folder.rename(path)
    except OSError:
        replaced.rename(path)
        raise
    shutil.rmtree(replaced)


def _unfinished(path: Path) -> Path:
    """A name beside `path`, so that a rename does not cross file systems."""
    name = path.name[:_NAME_CHARACTERS]
    return path.with_name(f".{name}.{os.getpid()}-{threading.get_ident()}.unfinished")
