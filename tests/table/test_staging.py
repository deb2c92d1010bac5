"""Hidden columns of a change: nobody sees them, and only those of a dead change are removed."""

import time
from pathlib import Path

import pyarrow as pa
import pytest

from openblip.table.table import (
    BASE_COLUMNS,
    LEFTOVER_SECONDS,
    PairRow,
    PairTable,
    Staging,
    is_hidden,
    is_leftover,
)


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    return PairTable.create(tmp_path / "t", [PairRow(id=f"r{n}", image=b"x") for n in range(3)])


def old(name: str) -> str:
    """A hidden column whose change began long ago."""
    return f"{name}__staged_{int(time.time() - LEFTOVER_SECONDS) - 1}_0123abcd"


def test_names_are_hidden_and_those_of_no_other_change() -> None:
    new = Staging(["a", "b"], ["b"])
    assert all(is_hidden(name) and not is_leftover(name) for name in new.staged + new.replaced)
    assert set(new.staged).isdisjoint(Staging(["a", "b"], ["b"]).staged)
    assert is_leftover(old("a"))
    assert not is_hidden("a__staged")


def test_a_change_is_made_when_its_new_and_its_replaced_columns_are_there() -> None:
    new = Staging(["a", "b"], ["b"])
    assert not new.is_visible({"b", *new.staged})
    # The staged columns were removed by somebody else.
    assert not new.is_visible({"b"})
    assert not new.is_visible({"a", "b"})
    assert new.is_visible({"a", "b", *new.replaced})


def test_another_change_leaves_those_of_a_living_process_alone(table: PairTable) -> None:
    new = Staging(["a"], [])
    for name in (new.staged[0], old("a")):
        PairTable.open(table.uri).dataset.add_columns(pa.schema([(name, pa.string())]))
    other = PairTable.open(table.uri)
    assert other.columns == BASE_COLUMNS

    other.add_columns(pa.table({"b": [1, 2, 3]}))
    other.add_columns(pa.table({"b": [4, 5, 6]}), overwrite=True)

    names = set(PairTable.open(table.uri).dataset.schema.names)
    assert names == {*BASE_COLUMNS, "b", *new.staged}
