"""Columns that take long to compute: kept part by part, resumed, extended as a table grows.

A fragment is a run of rows that were written together; its files never change. Many processes can
each write the new columns of one fragment (`encode_columns`), for a table on any store; a single
commit (`attach_columns`) makes all of them visible. One process alone computes columns of all rows
by `compute_columns`. Both change the table by the same stages (`Staging`).

Which crash leaves what:

| killed | readers see | left behind | the next call |
| --- | --- | --- | --- |
| while values are computed | old columns | parts, files no version names | goes on with the rest |
| while columns are staged | old columns | those, and hidden columns | stages them anew |
| after the renaming | new columns | parts, hidden old columns | makes the change again, notes it |

What the table's metadata note of columns is withdrawn before columns of other settings take their
place, so that no crash leaves a note beside columns that it is not about.

What is hidden is dropped by the first change that comes an hour later.
No file of rows is touched by any of it, so that no crash costs a row.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from openblip.runtime.atomic import replace_file, temporary_files_fail
from openblip.runtime.errors import DataError
from openblip.runtime.progress import Progress
from openblip.runtime.threads import ordered_map
from openblip.table.rows import BASE_COLUMNS, listed
from openblip.table.storage import persist
from openblip.table.table import PairTable, Staging
from openblip.table.versions import (
    again_after_conflicts,
    commit_version,
    lance_library,
    reason,
)

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
        # A file of new columns has a value for every row that was written, deleted ones included,
        # and whoever computes sees only the others.
        if metadata.num_deletions:
            raise DataError(
                f"{table.uri}: rows were deleted from fragment {metadata.id}: compact the table "
                "first (`lance.dataset(...).optimize.compact_files()`)"
            )
        # Lance never changes a file and never uses a name twice: names stand for content, unread.
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
    # Lance writes to a path; what goes into a store is bytes, written whole and with a checksum.
    try:
        with tempfile.TemporaryDirectory(prefix="openblip-") as folder:
            path = Path(folder) / "columns.lance"
            with LanceFileWriter(str(path), columns.schema, version=version) as writer:
                for batch in columns.combine_chunks().to_batches():
                    writer.write_batch(batch)
            return path.read_bytes()
    except OSError as error:
        raise temporary_files_fail(reason(error)) from error


def columns_schema(content: bytes) -> "pa.Schema":
    """Names and Arrow types of the columns in a file of `encode_columns`, given its content."""
    lance_library()
    from lance.file import LanceFileReader

    with tempfile.TemporaryDirectory(prefix="openblip-") as folder:
        path = Path(folder) / "columns.lance"
        path.write_bytes(content)
        found: pa.Schema = LanceFileReader(str(path)).metadata().schema
    return found


def attach_columns(
    table: PairTable,
    files: Mapping[int, ColumnFile],
    schema: "pa.Schema",
    *,
    replace: bool,
    dropped: Sequence[str] = (),
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
        dropped: other columns of the table, which go in the same step as those that are replaced.

    Raises:
        DataError: a column of the source would be replaced.
        ConflictError: other processes changed the table again and again.
        OSError: the version cannot be written.
    """
    if clash := sorted(set(schema.names) & set(BASE_COLUMNS)):
        raise DataError(f"{listed(clash)}: columns of the source cannot be written")
    existing = [name for name in schema.names if name in table.columns]
    # Filling nulls of columns that stand is one step, which readers see whole or not at all.
    if existing == schema.names and not replace:
        _replace_data(table.uri, files, existing)
        return PairTable.open(table.uri)
    again_after_conflicts(lambda: PairTable.open(table.uri).drop_leftovers())
    # Each step is one of the latest version: whoever appends rows meanwhile is no obstacle, since
    # no file here is about rows that this job has not seen.
    Staging(schema.names, [*existing, *dropped]).carry_out(
        lambda action, is_made: again_after_conflicts(
            lambda: PairTable.open(table.uri).change(action, is_made)
        ),
        lambda dataset, names: dataset.add_columns(_renamed(schema, names)),
        lambda names: _replace_data(table.uri, files, names),
    )
    return PairTable.open(table.uri)


def _replace_data(uri: str, files: Mapping[int, ColumnFile], columns: Sequence[str]) -> None:
    """Give fragments files with the values of columns that stand in the table."""
    # A column without a file is one of nulls, as it was made.
    if files:
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
    # Said of the version that was looked at: it conflicts if its fields or fragments have changed.
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


# Minutes of work for a model, seconds for a hash: what a kill costs.
_PART_ROWS = 1024


def compute_columns(
    table: PairTable,
    key: str,
    settings: Mapping[str, Any],
    compute: "Callable[[range], pa.Table]",
    *,
    num_threads: int = 1,
    show_progress: bool = True,
    beside: Mapping[str, str] | None = None,
) -> int:
    """Number of rows that were computed; the columns are in the table afterwards.

    Rows that an earlier call with the same settings did are not done again, also when the table
    has grown since. Finished parts are files in `work_folder` until the columns are written: a
    call that was stopped goes on with the parts that are missing.

    Args:
        table: gets the columns.
        key: the entry of the table's metadata that remembers `settings` and the number of rows.
        settings: what decides the values, besides the row; JSON values.
        compute: the new columns of some rows; called from `num_threads` threads.
        num_threads: at least 1.
        show_progress: on stderr.
        beside: other entries of the metadata about these columns, which come and go with `key`.

    Raises:
        OSError: a part cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    state = column_state(table, key)
    known = state["rows"] if state.get("settings") == dict(settings) else 0
    if known == len(table):
        return 0
    parts = list(_parts(table, key, settings, known))
    missing = [(rows, path) for rows, path in parts if not path.exists()]
    computed = sum(len(rows) for rows, _ in missing)

    def work(part: tuple[range, Path]) -> int:
        rows, path = part
        # A part is there whole or not at all, so that it is done if it is there.
        with replace_file(path) as unfinished:
            parquet.write_table(compute(rows), unfinished)
        return len(rows)

    start = len(table) - computed
    with Progress(key, len(table), "images", start=start, enabled=show_progress) as progress:
        for count in ordered_map(work, missing, num_threads, num_threads * 2):
            progress.update(count)
    # Memory maps: the columns of 100 million rows need not fit into memory twice.
    columns = pa.concat_tables([parquet.read_table(path, memory_map=True) for _, path in parts])
    # Rows that were appended since have nulls in columns that stand, so these are written anew.
    if known:
        before = pa.Table.from_batches(table.scan(columns.column_names))
        columns = pa.concat_tables([before.slice(0, known).cast(columns.schema), columns])
    # Where columns of other settings stand: a kill right after they are replaced would leave their
    # note, and whoever asks for those settings again would get these columns for them.
    if not known and (stale := {key, *(beside or ())} & table.metadata.keys()):
        table.update_metadata(dict.fromkeys(stale))
    table.add_columns(columns, overwrite=True)
    # After the columns: a kill between the two adds them again, from the parts, which are still
    # there. The other way round the note would speak of columns that are not.
    note = json.dumps({"settings": dict(settings), "rows": len(table)})
    table.update_metadata({key: note, **(beside or {})})
    for _, path in parts:
        path.unlink()
    with suppress(OSError):  # another job keeps its parts there
        work_folder(table).rmdir()
    return computed


def column_state(table: PairTable, key: str) -> dict[str, Any]:
    """What the metadata remembers under a key; empty if nothing.

    Raises:
        DataError: it is no JSON object.
    """
    try:
        state = json.loads(table.metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise DataError(
            f"{table.uri}: its metadata under {key!r} is no JSON object: another program has "
            "written it; remove the entry (`PairTable.update_metadata`)"
        )
    return state


def work_folder(table: PairTable) -> Path:
    """Where unfinished work lies: beside a local table, else in the working directory."""
    place = table.uri.rstrip("/")
    if urlsplit(place).scheme not in ("", "file"):
        place = place.rsplit("/", 1)[-1]
    return Path(f"{place.removeprefix('file://')}.curation")


def _parts(
    table: PairTable, key: str, settings: Mapping[str, Any], start: int
) -> Iterator[tuple[range, Path]]:
    """The rows and the file of each part; its name is a function of all that decides it."""
    folder = work_folder(table)
    about = json.dumps([key, settings], sort_keys=True)
    files = _files_by_row(table)
    for batch in table.scan(["id"], batch_size=_PART_ROWS, start=start):
        rows = range(start, start + batch.num_rows)
        # Ids and files, for a table of that name may have been made anew with other rows, or with
        # other images and texts of the same ids.
        own = [name for of, name in files if of.start < rows.stop and rows.start < of.stop]
        told = "\n".join([about, *own, *batch["id"].to_pylist()])
        digest = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()
        yield rows, folder / f"{key}-{rows.start:010d}-{digest[:16]}.parquet"
        start = rows.stop


def _files_by_row(table: PairTable) -> list[tuple[range, str]]:
    """The files with columns of the source, and the rows of the table that each is about."""
    fields = _leaves(table)
    base = {number for name in BASE_COLUMNS for number in fields.get(name, ())}
    found, start = [], 0
    for fragment in table.dataset.get_fragments():
        rows = range(start, start + fragment.count_rows())
        files = fragment.metadata.files
        found += [(rows, str(file.path)) for file in files if not base.isdisjoint(file.fields)]
        start = rows.stop
    return found
