"""Rows that are exchanged in one step, and the nearest among those that are left."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from openblip.runtime.errors import DataError
from openblip.table.columns import list_fragments
from openblip.table.rows import PairRow, row_batches, row_schema
from openblip.table.table import PairTable
from openblip.table.vectors import (
    compact,
    create_rows_table,
    exchange_rows,
    index_vectors,
    nearest_rows,
    vector_index,
    vector_length,
)
from openblip.table.versions import ConflictError

WIDTH = 8
SCHEMA = pa.schema([*row_schema(), ("v", pa.list_(pa.float16(), WIDTH))])


def rows(ids: Sequence[str], seed: int = 0) -> list[pa.RecordBatch]:
    """Rows with vectors that their places and the seed decide."""
    pairs = (PairRow(row_id, None, f"/{row_id}.jpg", width=n) for n, row_id in enumerate(ids))
    table = pa.Table.from_batches(row_batches(pairs, lambda row_id: True, None))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors(len(ids), seed).ravel()), WIDTH)
    return table.append_column("v", column).combine_chunks().to_batches()


def vectors(count: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, WIDTH))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def ids(table: PairTable) -> list[str]:
    return table.take(range(len(table)), ["id"])["id"].to_pylist()


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    """Rows in three fragments."""
    table = create_rows_table(str(tmp_path / "t.lance"), SCHEMA)
    for number in range(3):
        names = [f"{number}-{n}" for n in range(4)]
        table = exchange_rows(table, [], rows(names, number))
    return table


def test_rows_go_and_come_in_one_version(table: PairTable) -> None:
    changed = exchange_rows(table, ["0-1", "2-3"], rows(["it's new", "x"], 9))
    assert changed.version == table.version + 1
    left = [name for name in ids(table) if name not in ("0-1", "2-3")]
    assert ids(changed) == [*left, "it's new", "x"]
    assert ids(PairTable.open(table.uri, table.version)) == ids(table)
    again = exchange_rows(changed, ["it's new"], [])
    assert ids(again) == [*left, "x"]


def test_all_rows_of_a_fragment_and_of_the_table_may_go(table: PairTable) -> None:
    changed = exchange_rows(table, [f"1-{n}" for n in range(4)], [])
    assert ids(changed) == [name for name in ids(table) if name[0] != "1"]
    empty = exchange_rows(changed, ids(changed), [])
    assert len(empty) == 0
    assert ids(exchange_rows(empty, [], rows(["a"]))) == ["a"]


def test_the_nearest_are_numbered_as_the_rows_are_also_after_deletions(table: PairTable) -> None:
    changed = exchange_rows(table, ["0-0", "1-2"], [])
    for current in (changed, compact(changed)):
        found = current.take(range(len(current)), ["id", "v"]).to_pylist()
        for number, row in enumerate(found):
            nearest = nearest_rows(current, "v", np.array(row["v"]), 1)
            assert nearest.tolist() == [number]
    assert nearest_rows(changed, "v", vectors(1)[0], 100).size == 10


def test_conditions_come_first(table: PairTable) -> None:
    found = nearest_rows(table, "v", vectors(1)[0], 5, "width = 2 AND id LIKE '1%'")
    assert [ids(table)[row] for row in found] == ["1-2"]
    with pytest.raises(DataError, match="nothing = 1"):
        nearest_rows(table, "v", vectors(1)[0], 5, "nothing = 1")


def test_compacting_leaves_no_place_of_a_deleted_row(table: PairTable) -> None:
    changed = exchange_rows(table, ["0-0"], [])
    with pytest.raises(DataError, match="deleted"):
        list_fragments(changed, [])
    whole = compact(changed)
    assert [fragment.num_rows for fragment in list_fragments(whole, [])] == [11]
    assert ids(whole) == ids(changed)
    assert compact(whole).version == whole.version


def test_an_index_covers_new_rows_when_it_is_extended(tmp_path: Path) -> None:
    table = create_rows_table(str(tmp_path / "t.lance"), SCHEMA)
    table = exchange_rows(table, [], rows([f"r{n}" for n in range(300)]))
    assert index_vectors(table, "v") is None
    made = index_vectors(table, "v", least_rows=300)
    assert made is not None
    table = exchange_rows(PairTable.open(table.uri), ["r7"], rows(["new"], 5))
    assert vector_index(table, "v").num_rows == 299
    assert nearest_rows(table, "v", vectors(1, 5)[0], 1).tolist() == [299]
    table = compact(table)
    assert index_vectors(table, "v", least_rows=300).num_rows == 300
    table = PairTable.open(table.uri)
    (nearest,) = nearest_rows(table, "v", vectors(1, 5)[0], 1)
    assert ids(table)[nearest] == "new"
    assert vector_length(table, "v") == WIDTH


def test_an_index_finds_the_first_hundred_and_as_many_as_are_asked_for(tmp_path: Path) -> None:
    table = create_rows_table(str(tmp_path / "t.lance"), SCHEMA)
    table = exchange_rows(table, [], rows([f"r{n}" for n in range(3000)]))
    index_vectors(table, "v", least_rows=3000)
    table = PairTable.open(table.uri)
    stored = vectors(3000).astype(np.float32)
    found = 0
    for query in vectors(20, 9):
        exact = np.argsort(-(stored @ query.astype(np.float32)), kind="stable")[:100]
        found += len({*nearest_rows(table, "v", query, 100).tolist()} & {*exact.tolist()})
    assert found >= 0.97 * 2000
    # More than the partitions have that are looked at first.
    assert sorted(nearest_rows(table, "v", vectors(1, 9)[0], 3000).tolist()) == list(range(3000))


def test_two_that_exchange_the_same_row_do_not_both_succeed(table: PairTable) -> None:
    other = PairTable.open(table.uri)
    exchange_rows(table, ["0-0"], rows(["a"]))
    with pytest.raises(ConflictError):
        exchange_rows(other, ["0-0"], rows(["b"]))


def test_a_table_is_made_once_or_begun_again(table: PairTable) -> None:
    assert ids(create_rows_table(table.uri, SCHEMA)) == ids(table)
    assert len(create_rows_table(table.uri, SCHEMA, anew=True)) == 0
