"""Fragments of a pair table: read one by one, and given columns by files written elsewhere.

A fragment is a run of rows that were written together; its files never change. Many processes can
each write the new columns of one fragment; a single commit makes all of them visible.
"""

import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.data.rows import BASE_COLUMNS, listed
from openblip.data.table import REPLACED, STAGED, PairTable, lance_library
from openblip.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_CONFLICTS = 20


@dataclass(frozen=True, slots=True)
class Fragment:
    """A run of rows of a table, and whether it has certain columns."""

    number: int
    """Lance's id of the fragment."""
    num_rows: int
    digest: str
    """16 hexadecimal digits; they change when the rows do, not when columns are added."""
    files: tuple[str, ...]
    """Names of the files with its columns, in the folder `data` of the table."""
    filled: bool
    """Whether it has values (nulls included) in all columns that were asked for."""


@dataclass(frozen=True, slots=True)
class ColumnFile:
    """A file in the folder `data` of a table, written by `encode_columns`."""

    name: str
    num_bytes: int


def list_fragments(table: PairTable, columns: Sequence[str]) -> list[Fragment]:
    """The fragments of a table in the order of its rows; reads no row.

    Args:
        table: any version of a table.
        columns: which columns `filled` is about.

    Raises:
        DataError: rows have been deleted from the table.
    """
    fields = _leaves(table)
    base = {number for name in BASE_COLUMNS for number in fields.get(name, ())}
    live = {number for name in table.columns for number in fields[name]}
    wanted = {number for name in columns for number in fields.get(name, ())}
    known = set(columns) <= set(fields)
    found = []
    for fragment in table.dataset.get_fragments():
        metadata = fragment.metadata
        if metadata.num_deletions:
            raise DataError(
                f"{table.uri}: rows were deleted from fragment {metadata.id}: compact the table "
                "first (`lance.dataset(...).optimize.compact_files()`)"
            )
        digest = hashlib.sha256(f"{metadata.id} {metadata.physical_rows}".encode())
        covered: set[int] = set()
        for file in metadata.files:
            covered.update(file.fields)
            if not base.isdisjoint(file.fields):
                digest.update(f"\n{file.path}".encode())
        found.append(
            Fragment(
                number=metadata.id,
                num_rows=metadata.physical_rows,
                digest=digest.hexdigest()[:16],
                files=tuple(str(f.path) for f in metadata.files if not live.isdisjoint(f.fields)),
                filled=known and wanted <= covered,
            )
        )
    return found


def read_rows(table: PairTable, fragment: int, rows: range, columns: Sequence[str]) -> "pa.Table":
    """Rows of a fragment, counted from its first.

    Raises:
        DataError: a file of the fragment is missing or damaged, or there is no such fragment.
    """
    opened = table.dataset.get_fragment(fragment)
    if opened is None:
        raise DataError(f"{table.uri} has no fragment {fragment}: was the table compacted?")
    try:
        return opened.take(list(rows), columns=list(columns))
    except (OSError, ValueError, RuntimeError) as error:
        names = listed(f"data/{file.path}" for file in opened.metadata.files)
        reason = str(error).split(", /", 1)[0]
        raise DataError(
            f"{table.uri}: fragment {fragment} ({names}) cannot be read: {reason}; restore the file"
        ) from error


def encode_columns(table: PairTable, columns: "pa.Table") -> bytes:
    """The content of a file with new columns of one fragment of a table, in the order of its rows.

    Raises:
        OSError: the folder for temporary files is full.
    """
    lance_library()
    from lance.file import LanceFileWriter

    with tempfile.TemporaryDirectory(prefix="openblip-") as folder:
        path = Path(folder) / "columns.lance"
        version = table.dataset.data_storage_version
        with LanceFileWriter(str(path), columns.schema, version=version) as writer:
            for batch in columns.combine_chunks().to_batches():
                writer.write_batch(batch)
        return path.read_bytes()


def attach_columns(
    table: PairTable,
    files: Mapping[int, ColumnFile],
    schema: "pa.Schema",
    *,
    replace: bool,
) -> PairTable:
    """The table with the columns of `schema` in all fragments that have a file.

    Readers see all of the change or none of it. Rows that another process appends meanwhile are
    kept; they have nulls in these columns.

    Args:
        table: its latest version.
        files: by fragment number, files written with this schema.
        schema: names and types of the columns, all nullable.
        replace: drop columns that stand under these names; else the files' fragments alone change.

    Raises:
        DataError: a column of the source would be replaced.
        OSError: the version cannot be written.
    """
    if clash := sorted(set(schema.names) & set(BASE_COLUMNS)):
        raise DataError(f"{listed(clash)}: columns of the source cannot be written")
    # Columns of both suffixes can only be leftovers of a process that was killed.
    _change(table.uri, PairTable.drop_leftovers)
    existing = [name for name in schema.names if name in table.columns]
    staged = existing if existing and not replace else [f"{n}{STAGED}" for n in schema.names]
    if staged != existing:
        _change(table.uri, lambda latest: latest.dataset.add_columns(_renamed(schema, staged)))
    _replace_data(PairTable.open(table.uri), files, staged)
    if staged != existing:
        pairs = zip(staged, schema.names, strict=True)
        names = [{"path": name, "name": f"{name}{REPLACED}"} for name in existing]
        names += [{"path": path, "name": name} for path, name in pairs]
        _change(table.uri, lambda latest: latest.dataset.alter_columns(*names))
        _change(table.uri, PairTable.drop_leftovers)
    return PairTable.open(table.uri)


def _change(uri: str, change: Callable[[PairTable], object]) -> None:
    """Change the latest version; again if another process has made a new one meanwhile."""
    lance_library()
    from lance.commit import CommitConflictError

    for attempt in range(_MAX_CONFLICTS):
        try:
            change(PairTable.open(uri))
            return
        except CommitConflictError:
            if attempt == _MAX_CONFLICTS - 1:
                raise
            time.sleep(random.random())


def _replace_data(
    table: PairTable, files: Mapping[int, ColumnFile], columns: Sequence[str]
) -> None:
    lance = lance_library()
    from lance.fragment import DataFile

    leaves = _leaves(table)
    fields = [number for name in columns for number in leaves[name]]
    major, minor = (int(part) for part in table.dataset.data_storage_version.split("."))
    groups = [
        lance.LanceOperation.DataReplacementGroup(
            number,
            DataFile(file.name, fields, list(range(len(fields))), major, minor, file.num_bytes),
        )
        for number, file in files.items()
    ]
    operation = lance.LanceOperation.DataReplacement(groups)
    lance.LanceDataset.commit(table.dataset, operation, read_version=table.dataset.version)


def _leaves(table: PairTable) -> dict[str, list[int]]:
    """Ids of the leaves of each column: what a file of format 2.1 or later stores."""
    return {field.name(): _leaf_ids(field) for field in table.dataset.lance_schema.fields()}


def _leaf_ids(field: Any) -> list[int]:
    children = field.children()
    return [n for child in children for n in _leaf_ids(child)] if children else [field.id()]


def _renamed(schema: "pa.Schema", names: Sequence[str]) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([f.with_name(name) for f, name in zip(schema, names, strict=True)])
