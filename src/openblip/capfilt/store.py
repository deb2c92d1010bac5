"""Where the files of a CapFilt job lie: small files that appear whole or not at all."""

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from openblip.atomic import force_to_disk, replace_file
from openblip.data.storage import ObjectFolder, is_object_address
from openblip.errors import StorageError

_T = TypeVar("_T")


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
