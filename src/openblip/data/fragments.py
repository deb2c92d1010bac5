"""Fragments of a pair table: read one by one, and given columns by files written elsewhere.

A fragment is a run of rows that were written together; its files never change. Many processes can
each write the new columns of one fragment; a single commit makes all of them visible.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.data.rows import BASE_COLUMNS, listed
from openblip.data.staging import Staging
from openblip.data.storage import persist
from openblip.data.table import PairTable
from openblip.data.versions import (
    again_after_conflicts,
    change_version,
    commit_version,
    lance_library,
    reason,
)
from openblip.errors import DataError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa


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
        return persist(table.uri, lambda: opened.take(list(rows), columns=list(columns)))
    except (OSError, ValueError, RuntimeError) as error:
        names = listed(f"data/{file.path}" for file in opened.metadata.files)
        raise DataError(
            f"{table.uri}: fragment {fragment} ({names}) cannot be read: {reason(error)}; restore "
            "the file"
        ) from error


def encode_columns(table: PairTable, columns: "pa.Table") -> bytes:
    """The content of a file with new columns of one fragment of a table, in the order of its rows.

    Raises:
        StorageError: the folder for temporary files is full or cannot be written.
    """
    lance_library()
    from lance.file import LanceFileWriter

    version = table.dataset.data_storage_version
    try:
        with tempfile.TemporaryDirectory(prefix="openblip-") as folder:
            path = Path(folder) / "columns.lance"
            with LanceFileWriter(str(path), columns.schema, version=version) as writer:
                for batch in columns.combine_chunks().to_batches():
                    writer.write_batch(batch)
            return path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"the folder for temporary files, {tempfile.gettempdir()}, cannot be written "
            f"({reason(error)}): make room in it or name another one in TMPDIR, then run the same "
            "command to go on"
        ) from error


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
        replace: drop columns that stand under these names; else the files' fragments alone change,
            if the table has all of the columns.

    Raises:
        DataError: a column of the source would be replaced.
        ConflictError: other processes changed the table again and again.
        OSError: the version cannot be written.
    """
    if clash := sorted(set(schema.names) & set(BASE_COLUMNS)):
        raise DataError(f"{listed(clash)}: columns of the source cannot be written")
    existing = [name for name in schema.names if name in table.columns]
    if existing == schema.names and not replace:
        _replace_data(table.uri, files, existing)
        return PairTable.open(table.uri)
    again_after_conflicts(lambda: PairTable.open(table.uri).drop_leftovers())
    new = Staging(schema.names, existing)
    _change(
        table.uri,
        lambda dataset: dataset.add_columns(_renamed(schema, new.staged)),
        lambda names: names.issuperset(new.staged),
    )
    _replace_data(table.uri, files, new.staged)
    _change(table.uri, lambda dataset: dataset.alter_columns(*new.renames()), new.is_visible)
    if existing:
        _change(
            table.uri,
            lambda dataset: dataset.drop_columns(new.replaced),
            lambda names: names.isdisjoint(new.replaced),
        )
    return PairTable.open(table.uri)


def _change(uri: str, change: Callable[[Any], object], is_made: Callable[[set[str]], bool]) -> None:
    """Change the latest version; `is_made` is told the names of its columns."""

    def attempt() -> None:
        dataset = PairTable.open(uri).dataset
        change_version(
            dataset, uri, lambda: change(dataset), lambda: is_made(set(dataset.schema.names))
        )

    again_after_conflicts(attempt)


def _replace_data(uri: str, files: Mapping[int, ColumnFile], columns: Sequence[str]) -> None:
    """Give fragments files with the values of columns that stand in the table."""
    again_after_conflicts(lambda: _replace_in(PairTable.open(uri), files, columns))


def _replace_in(table: PairTable, files: Mapping[int, ColumnFile], columns: Sequence[str]) -> None:
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
    transaction = lance.Transaction(table.version, operation)
    commit_version(table.dataset, table.uri, transaction)


def _leaves(table: PairTable) -> dict[str, list[int]]:
    """Ids of the leaves of each column: what a file of format 2.1 or later stores."""
    return {field.name(): _leaf_ids(field) for field in table.dataset.lance_schema.fields()}


def _leaf_ids(field: Any) -> list[int]:
    children = field.children()
    return [n for child in children for n in _leaf_ids(child)] if children else [field.id()]


def _renamed(schema: "pa.Schema", names: Sequence[str]) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([f.with_name(name) for f, name in zip(schema, names, strict=True)])
