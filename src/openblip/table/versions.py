"""Versions of a Lance dataset: opened, and made in one step, also where an object store fails.

A request that was carried out may still be answered by an error. So nothing is committed again
before a look at whether it was.
"""

import json
import os
import random
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from openblip.runtime.documents import has_halves
from openblip.runtime.errors import DataError, UnwritableError, one_line
from openblip.table.storage import ObjectFolder, is_object_address, lance_options, persist

if TYPE_CHECKING:
    import pyarrow as pa

_T = TypeVar("_T")
# What is held in memory while rows are written, and becomes one data file. CapFilt hands out
# fragments, so that one with small images must not have too many rows either.
_FRAGMENT_BYTES = 128 << 20
_FRAGMENT_ROWS = 16384
_READ_ROWS = 512
_ABSENT = "was not found"
# Of a version's file: where its content begins, two numbers of the format, and a mark.
_MANIFEST_END = struct.Struct("<QHH4s")
_LENGTH = struct.Struct("<I")
# Lance has a class of its own for some conflicts; of the others only the text tells.
_CONFLICTS = ("commit conflict", "Incompatible transaction")
_MAX_CONFLICTS = 20
_KIND = re.compile(r"^LanceError\(\w+\): ")
_SHOWN_NAMES = 3


def reason(error: BaseException) -> str:
    """What Lance says, without the place in its own source."""
    return _KIND.sub("", one_line(error).split(", /", 1)[0])


def read(uri: str, action: Callable[[], _T]) -> _T:
    """What `action` reads of the table at an address.

    Raises:
        DataError: a file of the table is missing or damaged.
        StorageError: the object store cannot be reached.
    """
    try:
        return persist(uri, action)
    except BaseException as error:  # Lance's panics are no `Exception`
        is_panic = type(error).__name__ == "PanicException"
        if not is_panic and not isinstance(error, OSError | ValueError | RuntimeError):
            raise
        told = f"{uri}: a file of this table is missing or damaged ({reason(error)})"
        # Hidden ones are made by a command, as the index of a folder.
        is_hidden = any(part.startswith(".") and part.strip(".") for part in uri.split("/"))
        if is_hidden:
            raise DataError(f"{told}: remove it, and run again the command that made it") from error
        raise DataError(f"{told}: restore it from a copy, or import the table anew") from error


class ConflictError(DataError):
    """Another process changed the table at the same time; nothing of this change was made."""


def lance_library() -> Any:
    """Lance, told to keep its notices (such as "a dataset will be created") to itself."""
    os.environ.setdefault("LANCE_LOG", "error")
    import lance
    import lance.commit
    import lance.fragment

    return lance


def open_version(uri: str, version: int | None = None) -> Any:
    """The Lance dataset at an address; None if there is none, or no such version.

    Raises:
        DataError: there is one, and it cannot be read; or something else is there.
        StorageError: the object store cannot be reached.
    """
    _check_address(uri)
    lance, options = lance_library(), lance_options(uri)
    _check_manifests(uri)
    try:
        return persist(uri, lambda: lance.dataset(uri, version=version, storage_options=options))
    except (ValueError, OSError) as error:
        if _ABSENT in str(error):
            if version is None:
                _check_vacant(uri)
            return None
        raise DataError(
            f"the pair table at {uri} cannot be opened ({reason(error)}): check the path and its "
            "permissions, or restore the damaged file in its folder _versions"
        ) from error


def _check_address(uri: str) -> None:
    if not uri.strip():
        raise DataError("the name of the pair table is empty: give a path, such as pairs.lance")
    if "\0" in uri or has_halves(uri):
        raise DataError(f"the name of a pair table must be UTF-8. Got {uri!r}.")
    if not is_object_address(uri) and os.path.lexists(uri) and not Path(uri).is_dir():
        raise DataError(f"{uri} is a file, and a pair table is a folder: give another name")


def _check_vacant(uri: str) -> None:
    """Nothing, if a table could begin there: no other files, and none of a table that is damaged.

    Raises:
        DataError: there are.
    """
    names = _names_at(uri)
    if any(name.startswith("data/") for name in names):
        raise DataError(
            f"{uri} holds rows of a pair table, but no version of it: its folder _versions was "
            "lost, or its first version is not finished. Restore that folder, or remove all of it"
        )
    # Lance begins with these; hidden files are nobody's work.
    foreign = sorted(name for name in names if not name.startswith(("_", ".")))
    if foreign:
        shown = ", ".join(foreign[:_SHOWN_NAMES]) + (", ..." if foreign[_SHOWN_NAMES:] else "")
        raise DataError(
            f"{uri} is no pair table, and holds other things ({shown}): give a name that is not "
            "there yet"
        )


def _names_at(uri: str) -> list[str]:
    if is_object_address(uri):
        return ObjectFolder(uri).some_names()
    folder = Path(uri)
    if not folder.is_dir():
        return []
    names = {path.name for path in folder.iterdir()}
    inner = [f"data/{path.name}" for path in folder.glob("data/*")]
    has_rows = any(name.endswith(".lance") for name in inner)
    # What a first attempt left empty is nothing.
    return [*(names - {"data"} if has_rows or not inner else names), *(inner if has_rows else ())]


def _check_manifests(uri: str) -> None:
    """Check the end of the files that Lance opens first.

    It believes the place and the length that stand there, and where they are wrong a panic writes
    pages about it.

    Raises:
        DataError: the file of a version is cut off or damaged.
    """
    folder = Path(uri.removeprefix("file://")) / "_versions"
    if is_object_address(uri) or not folder.is_dir():
        return
    paths = sorted(folder.glob("*.manifest"))
    # The latest is the first by today's naming, and the last by that of old versions of Lance.
    for path in {*paths[:1], *paths[-1:]}:
        if path.exists() and not _is_whole_manifest(path):
            raise DataError(
                f"the pair table at {uri} cannot be opened (_versions/{path.name} is damaged): "
                "restore that file, or import the table anew"
            )


def _is_whole_manifest(path: Path) -> bool:
    if not path.is_file():  # a pipe would block
        return False
    with path.open("rb") as file:
        room = file.seek(0, os.SEEK_END) - _MANIFEST_END.size
        if room < _LENGTH.size:
            return False
        file.seek(room)
        place, _, _, mark = _MANIFEST_END.unpack(file.read())
        if mark != b"LANC" or place > room - _LENGTH.size:
            return False
        file.seek(place)
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        return bool(place + _LENGTH.size + length <= room)


def create_version(uri: str, operation: Any) -> Any:
    """The dataset whose first version an operation makes; None if there is one already.

    Raises:
        OSError, StorageError: it cannot be written.
    """
    lance, options = lance_library(), lance_options(uri)
    transaction = lance.Transaction(0, operation)

    def attempt() -> Any:
        # With retries Lance would put this version after the one of a faster process.
        return lance.LanceDataset.commit(uri, transaction, storage_options=options, max_retries=0)

    try:
        with _writing(uri):
            return persist(uri, attempt)
    except (OSError, ConflictError):
        if (dataset := open_version(uri)) is None:
            raise
    return dataset if _has_transaction(dataset, transaction.uuid, since=0) else None


def commit_version(dataset: Any, uri: str, transaction: Any) -> Any:
    """The dataset as a transaction leaves it, which other processes may have changed meanwhile.

    Raises:
        ConflictError: another process made a change that does not go with this one.
        OSError, StorageError: it cannot be written.
    """
    commit, version = lance_library().LanceDataset.commit, int(dataset.version)

    def change() -> None:
        nonlocal dataset
        dataset = commit(dataset, transaction)

    change_version(
        dataset, uri, change, lambda: _has_transaction(dataset, transaction.uuid, since=version)
    )
    return dataset


def append_version(
    dataset: Any, uri: str, fragments: Sequence[Any], notes: Mapping[str, str]
) -> Any:
    """The dataset with the rows of some fragments, if nobody has changed the rows meanwhile.

    To Lance appending is what two may do at once, whatever their rows are; merging is not.

    Args:
        dataset: its latest version.
        uri: its address.
        fragments: of `write_fragments`.
        notes: are kept with the change.

    Raises:
        ConflictError: another process has made rows or columns.
        OSError, StorageError: it cannot be written.
    """
    lance = lance_library()
    known = [fragment.metadata for fragment in dataset.get_fragments()]
    begin = 1 + max((fragment.id for fragment in known), default=-1)
    added = [replace(fragment, id=begin + place) for place, fragment in enumerate(fragments)]
    operation = lance.LanceOperation.Merge([*known, *added], dataset.lance_schema)
    transaction = lance.Transaction(
        int(dataset.version), operation, transaction_properties=dict(notes)
    )
    return commit_version(dataset, uri, transaction)


def change_version(
    dataset: Any,
    uri: str,
    change: Callable[[], object],
    is_made: Callable[[], bool] = lambda: False,
) -> None:
    """Makes a change that leads to a new version, again where an object store failed.

    Args:
        dataset: what is changed.
        uri: where it lies.
        change: changes it.
        is_made: whether it, at its latest version by then, has the change; the default suits what
            may be made twice.

    Raises:
        ConflictError: another process made a change that does not go with this one.
        OSError, StorageError: it cannot be written.
    """
    is_first = True

    def attempt() -> None:
        nonlocal is_first
        if not is_first:
            dataset.checkout_latest()
            if is_made():
                return
        is_first = False
        change()

    with _writing(uri):
        persist(uri, attempt)


@contextmanager
def _writing(uri: str) -> Iterator[None]:
    """Errors of Lance, which name a place in its source, name the table."""
    try:
        yield
    except OSError as error:
        if any(text in str(error) for text in _CONFLICTS):
            raise ConflictError(
                f"{uri} was changed by another process at the same time: run the same command again"
            ) from error
        raise UnwritableError(f"{uri}: cannot be written ({reason(error)})") from error


def again_after_conflicts(change: Callable[[], None]) -> None:
    """Changes the latest version; again if another process has made a new one meanwhile.

    Args:
        change: opens the latest version and changes it.

    Raises:
        ConflictError: others were faster again and again.
    """
    for attempt in range(_MAX_CONFLICTS):
        try:
            return change()
        except ConflictError:
            if attempt == _MAX_CONFLICTS - 1:
                raise
            time.sleep(random.random())
    return None


def _has_transaction(dataset: Any, uuid: str, since: int) -> bool:
    """Whether a transaction is among those that made the versions after `since`."""
    recent = dataset.get_transactions(int(dataset.version) - since)
    return any(transaction and transaction.uuid == uuid for transaction in recent)


def write_fragments(
    place: Any, uri: str, batches: "Iterable[pa.RecordBatch]"
) -> tuple[list[Any], int]:
    """Writes data files that no version names yet; their fragments, and the number of rows.

    Args:
        place: the dataset; its address where there is none yet.
        uri: its address.
        batches: taken as they are needed.
    """
    with FragmentWriter(place, uri) as writer:
        for batch in batches:
            writer.add(batch)
    return writer.fragments, writer.num_rows


class FragmentWriter:
    """A context in which rows are written to data files that no version names yet.

    Lance gets finished Arrow tables, never a Python iterator: it would pull that from threads of
    its own, which go on when Ctrl-C interrupts this one.

    Attributes:
        fragments: what was written; all of it when the context is left.
        num_rows: that were added.
    """

    def __init__(self, place: Any, uri: str) -> None:
        """Writes nothing yet; for the arguments see `write_fragments`."""
        self._place, self._uri, self._options = place, uri, lance_options(uri)
        self.fragments: list[Any] = []
        self.num_rows = 0
        self._held: list[pa.RecordBatch] = []
        self._held_rows = self._held_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_whole = False
        try:
            if kind is None:
                self._flush()
                is_whole = True
        finally:
            if not is_whole:
                remove_fragments(self._uri, self.fragments)

    def add(self, batch: "pa.RecordBatch") -> None:
        """Takes rows, which follow those that were added before."""
        self._held.append(batch)
        self.num_rows += batch.num_rows
        self._held_rows += batch.num_rows
        self._held_bytes += batch.nbytes
        if self._held_bytes >= _FRAGMENT_BYTES or self._held_rows >= _FRAGMENT_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._held:
            return
        place, options = self._place, self._options
        write, rows = lance_library().fragment.write_fragments, pa.Table.from_batches(self._held)
        with _writing(self._uri):
            written = persist(self._uri, lambda: write(rows, place, storage_options=options))
        self.fragments.extend(written)
        self._held.clear()
        self._held_rows = self._held_bytes = 0


def remove_fragments(uri: str, fragments: Sequence[Any]) -> None:
    """Removes files that no version will name; in an object store they stay, as unseen."""
    if not is_object_address(uri):
        for file in (file for fragment in fragments for file in fragment.files):
            Path(uri, "data", file.path).unlink(missing_ok=True)


def fragments_to_json(fragments: Sequence[Any]) -> str:
    """What `FragmentWriter` wrote, as another process can be told of it."""
    return json.dumps([fragment.to_json() for fragment in fragments])


def fragments_from_json(text: str) -> list[Any]:
    """The fragments that `fragments_to_json` tells of."""
    from_json = lance_library().fragment.FragmentMetadata.from_json
    return [from_json(json.dumps(values)) for values in json.loads(text)]


def written_rows(uri: str, fragments: Sequence[Any]) -> "Iterator[pa.RecordBatch]":
    """The rows of fragments that no version names yet, in order.

    Raises:
        DataError: a file of theirs is missing or damaged.
    """
    lance_library()
    from lance.file import LanceFileReader

    for path in (f"{uri}/data/{file.path}" for fragment in fragments for file in fragment.files):

        def batches(path: str = path) -> "list[pa.RecordBatch]":
            # A file is as large as may be held in memory while rows are written.
            reader = LanceFileReader(path, lance_options(uri))
            return list(reader.read_all(batch_size=_READ_ROWS).to_batches())

        yield from read(uri, batches)
