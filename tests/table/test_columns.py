"""Fragments of a table, read one by one and given columns by files."""

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from openblip.runtime.errors import DataError, StorageError
from openblip.table.columns import (
    ColumnFile,
    attach_columns,
    column_state,
    compute_columns,
    encode_columns,
    list_fragments,
    read_rows,
    work_folder,
)
from openblip.table.table import PairRow, PairTable
from openblip.table.versions import ConflictError

SCHEMA = pa.schema([("score", pa.list_(pa.float32())), ("reason", pa.string())])


def made(first: int, count: int) -> list[PairRow]:
    return [PairRow(id=f"r{n}", image=b"x") for n in range(first, first + count)]


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    """Two fragments, of three and of two rows."""
    table = PairTable.create(tmp_path / "t.lance", made(0, 3))
    table.append(made(3, 2))
    return PairTable.open(table.uri)


def write(table: PairTable, name: str, values: list[float]) -> ColumnFile:
    columns = pa.table(
        {"score": [[v, v + 1] for v in values], "reason": [None] * len(values)}, SCHEMA
    )
    content = encode_columns(table, columns)
    Path(table.uri, "data", name).write_bytes(content)
    return ColumnFile(name, len(content))


def scores(table: PairTable) -> list[float | None]:
    values = PairTable.open(table.uri).take(range(len(table)), ["score"])["score"].to_pylist()
    return [value and value[0] for value in values]


def test_fragments_are_listed_with_rows_that_keep_their_digest(table: PairTable) -> None:
    before = list_fragments(table, ["score"])
    assert [(f.number, f.num_rows, f.filled) for f in before] == [(0, 3, False), (1, 2, False)]
    assert before[0].digest != before[1].digest

    table.add_columns(pa.table({"score": [[1.0]] * 5}))
    after = list_fragments(PairTable.open(table.uri), ["score"])
    assert [f.digest for f in after] == [f.digest for f in before]
    assert all(f.filled for f in after)


def test_rows_are_counted_from_the_first_of_the_fragment(table: PairTable) -> None:
    assert read_rows(table, 1, range(1, 2), ["id"])["id"].to_pylist() == ["r4"]


def test_a_damaged_file_and_an_unknown_fragment_are_named(table: PairTable) -> None:
    (name,) = list_fragments(table, [])[1].files
    Path(table.uri, "data", name).write_bytes(b"damaged")
    with pytest.raises(DataError, match=f"fragment 1 .*{name}"):
        read_rows(PairTable.open(table.uri), 1, range(2), ["id"])
    with pytest.raises(DataError, match="no fragment 9"):
        read_rows(table, 9, range(1), ["id"])


def test_files_become_columns_and_rows_that_came_meanwhile_have_nulls(table: PairTable) -> None:
    files = {0: write(table, "a.lance", [0, 1, 2]), 1: write(table, "b.lance", [3, 4])}
    PairTable.open(table.uri).append(made(5, 1))
    attached = attach_columns(table, files, SCHEMA, replace=True)

    assert len(attached) == 6
    assert scores(attached) == [0, 1, 2, 3, 4, None]
    assert [f.filled for f in list_fragments(attached, SCHEMA.names)] == [True, True, False]

    more = attach_columns(attached, {2: write(table, "c.lance", [5])}, SCHEMA, replace=False)
    assert scores(more) == [0, 1, 2, 3, 4, 5]


def test_a_reader_sees_the_old_columns_until_the_new_ones_are_whole(table: PairTable) -> None:
    files = {0: write(table, "a.lance", [0, 1, 2]), 1: write(table, "b.lance", [3, 4])}
    attach_columns(table, files, SCHEMA, replace=True)
    first = PairTable.open(table.uri).version
    files = {0: write(table, "c.lance", [7, 7, 7]), 1: write(table, "d.lance", [7, 7])}
    attach_columns(PairTable.open(table.uri), files, SCHEMA, replace=True)

    seen = []
    for version in range(first, PairTable.open(table.uri).version + 1):
        old = PairTable.open(table.uri, version=version)
        assert set(old.columns) == {*made_columns(table), *SCHEMA.names}
        seen.append([value[0] for value in old.take(range(5), ["score"])["score"].to_pylist()])
    assert {tuple(s) for s in seen} == {(0, 1, 2, 3, 4), (7, 7, 7, 7, 7)}
    names = {name for f in list_fragments(PairTable.open(table.uri), []) for name in f.files}
    assert not names & {"a.lance", "b.lance"}


def test_where_one_column_was_dropped_all_are_made_again(table: PairTable) -> None:
    files = {0: write(table, "a.lance", [0, 1, 2]), 1: write(table, "b.lance", [3, 4])}
    attach_columns(table, files, SCHEMA, replace=True).drop_columns(["reason"])
    grown = PairTable.open(table.uri)
    grown.append(made(5, 1))
    files[2] = write(table, "c.lance", [5])

    attached = attach_columns(PairTable.open(table.uri), files, SCHEMA, replace=False)

    assert scores(attached) == [0, 1, 2, 3, 4, 5]
    assert attached.columns[-2:] == ("score", "reason")
    assert attached.take([5], ["reason"])["reason"].to_pylist() == [None]
    assert all(f.filled for f in list_fragments(attached, SCHEMA.names))


def test_changes_of_other_processes_do_not_end_it(table: PairTable) -> None:
    files = {0: write(table, "a.lance", [0, 1, 2]), 1: write(table, "b.lance", [0, 0])}
    better = {1: write(table, "c.lance", [3, 4])}

    def attach() -> None:
        for _ in range(6):
            attach_columns(PairTable.open(table.uri), files, SCHEMA, replace=True)
            attach_columns(PairTable.open(table.uri), better, SCHEMA, replace=False)

    def flag() -> None:
        for number in range(12):
            column = pa.table({"flag": [number] * 5})
            try:
                PairTable.open(table.uri).add_columns(column, overwrite=True)
                PairTable.open(table.uri).drop_columns(["flag"])
            except ConflictError:  # it says: run the same command again
                continue

    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(attach), threads.submit(flag)]:
            future.result()

    assert scores(table) == [0, 1, 2, 3, 4]
    assert set(PairTable.open(table.uri).columns) - {"flag"} == {
        *made_columns(table),
        *SCHEMA.names,
    }


def test_a_folder_for_temporary_files_that_cannot_be_written_is_named(
    table: PairTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match=r"gone, cannot be written .*TMPDIR"):
        write(table, "a.lance", [0, 1, 2])


def computed(table: PairTable, value: float) -> int:
    """As a job that writes one number beside every row, and says in which way it was made."""

    def of_rows(rows: range) -> pa.Table:
        return pa.table({"score": [[value]] * len(rows)}, pa.schema([SCHEMA.field("score")]))

    return compute_columns(
        PairTable.open(table.uri),
        "job",
        {"value": value},
        of_rows,
        show_progress=False,
        beside={"report": f'{{"of": {value}}}'},
    )


def test_a_kill_leaves_no_note_beside_columns_that_it_is_not_about(
    table: PairTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert computed(table, 1.0) == 5
    update = PairTable.update_metadata

    def killed(self: PairTable, values: dict[str, str | None]) -> None:
        if values.get("job") is not None:
            raise KeyboardInterrupt
        update(self, values)

    with monkeypatch.context() as patched:
        patched.setattr(PairTable, "update_metadata", killed)
        with pytest.raises(KeyboardInterrupt):
            computed(table, 2.0)
    opened = PairTable.open(table.uri)
    assert scores(table) == [2.0] * 5
    assert (column_state(opened, "job"), column_state(opened, "report")) == ({}, {})
    # Whoever wants the former ones again gets them, and no word of those that stand there.
    assert computed(table, 1.0) == 5
    assert scores(table) == [1.0] * 5
    assert column_state(PairTable.open(table.uri), "report") == {"of": 1.0}
    # What had been computed before the kill is still there.
    assert computed(table, 2.0) == 0
    assert scores(table) == [2.0] * 5


def test_parts_of_a_table_that_was_made_anew_are_of_no_use(tmp_path: Path) -> None:
    """With the same ids, and other images: what a killed call has computed is of the former."""
    uri = tmp_path / "t.lance"

    def sizes(dies_at: int = -1) -> list[list[float]]:
        table = PairTable.open(uri)

        def of_rows(rows: range) -> pa.Table:
            if rows.start == dies_at:
                raise KeyboardInterrupt
            images = table.take(list(rows), ["image"])["image"].to_pylist()
            values = [[float(len(image))] for image in images]
            return pa.table({"score": values}, pa.schema([SCHEMA.field("score")]))

        compute_columns(table, "job", {}, of_rows, show_progress=False)
        found = PairTable.open(uri).take([0, 1500], ["score"])["score"].to_pylist()
        return [value for value in found if value is not None]

    def rows(image: bytes) -> list[PairRow]:
        return [PairRow(id=f"r{n}", image=image) for n in range(1501)]

    PairTable.create(uri, rows(b"x"))
    with pytest.raises(KeyboardInterrupt):
        sizes(dies_at=1024)
    assert len(list(work_folder(PairTable.open(uri)).iterdir())) == 1
    shutil.rmtree(uri)
    PairTable.create(uri, rows(b"xyz"))
    assert sizes() == [[3.0], [3.0]]


def test_an_append_costs_no_part_that_was_done(table: PairTable) -> None:
    begun: list[int] = []

    def of_rows(rows: range, dies: bool = True) -> pa.Table:
        if dies and begun:
            raise KeyboardInterrupt
        begun.append(rows.start)
        return pa.table({"score": [[1.0]] * len(rows)}, pa.schema([SCHEMA.field("score")]))

    with pytest.raises(KeyboardInterrupt):
        compute_columns(PairTable.open(table.uri), "job", {}, of_rows, show_progress=False)
    done = begun.pop()
    PairTable.open(table.uri).append(made(2000, 3))
    opened = PairTable.open(table.uri)
    compute_columns(opened, "job", {}, lambda rows: of_rows(rows, False), show_progress=False)
    assert begun
    assert done not in begun
    assert scores(opened) == [1.0] * 8


def test_deleted_rows_and_columns_of_the_source_are_refused(table: PairTable) -> None:
    with pytest.raises(DataError, match="captions"):
        attach_columns(table, {}, pa.schema([("captions", pa.string())]), replace=True)
    table.dataset.delete("id = 'r1'")
    with pytest.raises(DataError, match="compact"):
        list_fragments(PairTable.open(table.uri), [])


def made_columns(table: PairTable) -> set[str]:
    return set(PairTable.open(table.uri, version=1).columns)
