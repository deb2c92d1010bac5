"""Vectors of a table's rows: the nearest to one, by a scan or by an index; and rows exchanged.

Other tables only grow. That of a folder follows the folder: rows of files that are gone are marked
as deleted, in the same version in which those of new files appear.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openblip.runtime.errors import DataError
from openblip.table.table import PairTable
from openblip.table.versions import (
    change_version,
    commit_version,
    create_version,
    lance_library,
    open_version,
    read,
    reason,
    write_fragments,
)

if TYPE_CHECKING:
    import pyarrow as pa

LEAST_INDEXED_ROWS = 65_536
"""Below, a scan of 256 numbers a row takes no longer than a search by the index."""
# As many numbers become one byte of the index; more lose too much, fewer make it slow.
_NUMBERS_A_BYTE = 4
_LEAST_PROBES, _SHARE_OF_PROBES = 20, 0.04
# So many times k candidates of the index are compared exactly. Among a million clustered vectors
# the first 100 are found to 0.94 with 4 and to 0.999 with 8, for 10 ms more.
_REFINED = 8
_FRAGMENT_ROWS = 16384
# Whoever has opened a version reads on while another process removes older ones.
_KEPT = timedelta(days=1)


@dataclass(frozen=True)
class VectorIndex:
    """An index over the vectors of a table."""

    kind: str
    """Lance's name of it."""
    num_rows: int
    """Rows that it covers; the others are compared one by one."""


def nearest_rows(
    table: PairTable,
    column: str,
    vector: NDArray[np.floating[Any]],
    k: int,
    where: str | None = None,
) -> NDArray[np.int64]:
    """Numbers of the k rows whose vectors have the largest product with one, best first.

    Args:
        table: with vectors in a column; rows without one are not found.
        column: of float16 lists of one length.
        vector: of that length.
        k: at least 1; fewer are found where there are no more.
        where: what the rows must fulfil, as Lance's SQL; it is asked before they are compared.

    Raises:
        DataError: the condition cannot be read, or a file of the table is damaged.
    """
    if where is not None:
        _check_condition(table, where)
    partitions = _num_partitions(len(table))
    probes = min(partitions, max(_LEAST_PROBES, int(partitions * _SHARE_OF_PROBES)))
    query = {
        "column": column,
        "q": np.asarray(vector, np.float16),
        "k": k,
        "metric": "dot",
        "minimum_nprobes": probes,
        "refine_factor": _REFINED,
    }

    def ask(**more: int) -> NDArray[np.int64]:
        scanner = table.dataset.scanner(
            columns=["_rowoffset", "_distance"],
            nearest={**query, **more},
            filter=where,
            prefilter=True,
        )
        found: NDArray[np.int64] = read(table.uri, scanner.to_table)["_rowoffset"].to_numpy()
        return found.astype(np.int64)

    # Without a maximum Lance searches ten times as many partitions, in case a condition leaves few
    # rows; a search that wants more than these partitions have needs them, too.
    found = ask(maximum_nprobes=probes) if where is None else ask()
    return ask() if where is None and len(found) < min(k, len(table)) else found


def rows_where(table: PairTable, where: str) -> NDArray[np.int64]:
    """Numbers of all rows that fulfil a condition, ascending.

    Args:
        table: any table.
        where: Lance's SQL over its columns.

    Raises:
        DataError: the condition cannot be read, or a file of the table is damaged.
    """
    _check_condition(table, where)
    scanner = table.dataset.scanner(columns=["_rowoffset"], filter=where)
    try:
        found = read(table.uri, scanner.to_table)["_rowoffset"].to_numpy()
    except DataError as error:
        cause = error.__cause__
        # Some conditions fail at a row only, such as a text that is no number: no damage.
        if cause is None or "filter expression" not in str(cause):
            raise
        raise _bad_condition(where, cause) from cause
    return np.sort(found.astype(np.int64))


def _check_condition(table: PairTable, where: str) -> None:
    try:
        table.dataset.scanner(columns=["id"], filter=where).explain_plan()
    except (ValueError, OSError, RuntimeError) as error:
        raise _bad_condition(where, error) from error


def _bad_condition(where: str, error: BaseException) -> DataError:
    return DataError(
        f"the condition {where!r} cannot be used ({reason(error)}): write it as SQL over the "
        f"columns of the table, such as \"split = 'test' and width > 1000\""
    )


def _num_partitions(num_rows: int) -> int:
    return max(1, round(sqrt(num_rows)))


def index_vectors(
    table: PairTable, column: str, least_rows: int = LEAST_INDEXED_ROWS
) -> VectorIndex | None:
    """The index of a column, made or extended where a scan would be slower; None where it is not.

    Args:
        table: its latest version.
        column: of float16 lists of one length.
        least_rows: a smaller table gets none.

    Raises:
        OSError, StorageError: it cannot be written.
    """
    dataset, name = table.dataset, f"{column}_index"
    if len(table) < least_rows:
        return None
    before = vector_index(table, column)
    if before is not None and before.num_rows == len(table):
        return before
    if before is not None and before.num_rows >= len(table) // 2:
        # New rows go to the partitions that there are.
        change_version(
            dataset, table.uri, lambda: dataset.optimize.optimize_indices(index_names=[name])
        )
    else:
        length = vector_length(table, column)
        bytes_a_row = max(1, length // _NUMBERS_A_BYTE)
        while length % bytes_a_row:
            bytes_a_row -= 1
        change_version(
            dataset,
            table.uri,
            lambda: dataset.create_index(
                column,
                "IVF_PQ",
                name=name,
                metric="dot",
                replace=True,
                num_partitions=_num_partitions(len(table)),
                num_sub_vectors=bytes_a_row,
            ),
        )
    return vector_index(PairTable.open(table.uri), column)


def vector_length(table: PairTable, column: str) -> int:
    """Numbers of each vector of a column."""
    return int(table.dataset.schema.field(column).type.list_size)


def vector_index(table: PairTable, column: str) -> VectorIndex | None:
    """The index of a column; None if it has none."""
    name = f"{column}_index"
    found = [
        index for index in read(table.uri, table.dataset.describe_indices) if index.name == name
    ]
    if not found:
        return None
    return VectorIndex(found[0].index_type, int(found[0].num_rows_indexed))


def create_rows_table(uri: str, schema: "pa.Schema", *, anew: bool = False) -> PairTable:
    """The table at an address, made without rows where there is none; begun again with `anew`.

    Raises:
        DataError: something else is there.
    """
    overwrite = lance_library().LanceOperation.Overwrite(schema, [])
    dataset = open_version(uri)
    if dataset is None:
        dataset = create_version(uri, overwrite) or open_version(uri)
    elif anew:
        transaction = lance_library().Transaction(int(dataset.version), overwrite)
        dataset = commit_version(dataset, uri, transaction)
    return PairTable(dataset, uri)


def exchange_rows(
    table: PairTable, removed: Collection[str], added: "Sequence[pa.RecordBatch]"
) -> PairTable:
    """The table without some rows and with others behind its last; readers see both or neither.

    Args:
        table: its latest version.
        removed: ids of rows; their places in the files stay until `compact`.
        added: rows, with any of the table's columns; the others are null.

    Raises:
        ConflictError: another process has changed the table.
        OSError, StorageError: it cannot be written.
    """
    lance = lance_library()
    new = write_fragments(table.dataset, table.uri, iter(added))[0] if added else []
    emptied, shrunk = _without_rows(table, removed) if removed else ([], [])
    operation = lance.LanceOperation.Update(
        removed_fragment_ids=emptied,
        updated_fragments=shrunk,
        new_fragments=new,
        fields_modified=[],
    )
    transaction = lance.Transaction(table.version, operation)
    return PairTable(commit_version(table.dataset, table.uri, transaction), table.uri)


def _without_rows(table: PairTable, removed: Collection[str]) -> tuple[list[int], list[Any]]:
    """Fragments of which no row is left, and those that have lost some."""
    quoted = ", ".join("'" + row_id.replace("'", "''") + "'" for row_id in removed)
    condition = f"id IN ({quoted})"
    scanner = table.dataset.scanner(columns=[], filter=condition, with_row_address=True)
    addresses = read(table.uri, scanner.to_table)["_rowaddr"].to_numpy()
    emptied, shrunk = [], []
    # An address is a fragment's number and a place in it, of 32 bits each.
    for number in np.unique(addresses >> np.uint64(32)).tolist():
        left = table.dataset.get_fragment(number).delete(condition)
        if left is None:
            emptied.append(number)
        else:
            shrunk.append(left)
    return emptied, shrunk


def compact(table: PairTable) -> PairTable:
    """The table in few fragments without the places of deleted rows; an index stays right.

    Rows may change their numbers. Versions that are older than a day are removed.
    """
    dataset = table.dataset
    fragments = [fragment.metadata for fragment in dataset.get_fragments()]
    small = sum(fragment.physical_rows < _FRAGMENT_ROWS for fragment in fragments)
    if small > 1 or any(fragment.num_deletions for fragment in fragments):
        change_version(
            dataset,
            table.uri,
            lambda: dataset.optimize.compact_files(
                target_rows_per_fragment=_FRAGMENT_ROWS, materialize_deletions_threshold=0.0
            ),
        )
        dataset.cleanup_old_versions(_KEPT)
    return PairTable.open(table.uri)
