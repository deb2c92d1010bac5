import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from openblip.runtime.errors import DataError
from openblip.table.table import BASE_COLUMNS, PairRow, PairTable
from openblip.table.versions import ConflictError

Rows = Callable[..., list[PairRow]]


def _scores(table: PairTable, value: float) -> pa.Table:
    return pa.table({"captions_itm": pa.array([[value, value]] * len(table))})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    row = PairRow(
        id="a",
        image=b"\xff\xd8",
        width=3,
        height=4,
        captions=["one", "zwei \u6f22"],
        origin="human",
        split="val",
        meta={"url": "http://x", "labels": [1, None]},
    )
    table = PairTable.create(tmp_path / "t", [row], {"kind": "test"})
    reopened = PairTable.open(str(tmp_path / "t"))
    assert reopened.columns == BASE_COLUMNS
    assert len(reopened) == len(table) == 1
    assert reopened.take([0]).to_pylist() == [
        {
            "id": "a",
            "image": b"\xff\xd8",
            "image_uri": None,
            "width": 3,
            "height": 4,
            "captions": ["one", "zwei \u6f22"],
            "origin": "human",
            "split": "val",
            "meta": '{"url": "http://x", "labels": [1, null]}',
        }
    ]
    assert reopened.metadata == {"kind": "test"}


def test_rows_come_in_the_order_that_was_asked_for(table: PairTable) -> None:
    ids = table.take([7, 0, 19, 7], ["id"])["id"].to_pylist()
    assert ids == ["r7", "r0", "r19", "r7"]
    assert table.take([], ["id"]).num_rows == 0
    assert table.take(np.array([3]), ["split", "id"]).column_names == ["split", "id"]


def test_a_scan_goes_through_all_rows_from_its_start(table: PairTable) -> None:
    batches = list(table.scan(["id"], batch_size=6, start=5))
    assert max(batch.num_rows for batch in batches) <= 6
    ids = [key for batch in batches for key in batch["id"].to_pylist()]
    assert ids == [f"r{number}" for number in range(5, 20)]


@pytest.mark.parametrize("index", [-1, 20])
def test_a_row_that_is_not_there_is_an_error(table: PairTable, index: int) -> None:
    with pytest.raises(DataError, match=rf"row {index} .* rows 0 to 19"):
        table.take([0, index])


def test_an_unknown_column_is_an_error_that_names_the_known_ones(table: PairTable) -> None:
    with pytest.raises(DataError, match="no column scores; it has id, image"):
        table.take([0], ["scores"])


def test_a_place_without_a_table_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="openblip data import"):
        PairTable.open(tmp_path / "none")


def test_a_table_is_never_overwritten(table: PairTable, pair_rows: Rows) -> None:
    with pytest.raises(DataError, match="already holds a table"):
        PairTable.create(table.uri, pair_rows(1))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PairRow("a", b"1"), PairRow("a", b"2")], "'a' occurs twice"),
        ([PairRow("", b"1")], "empty id"),
        ([PairRow("a")], "neither image bytes nor"),
        ([PairRow("a", b"1", origin="machine")], "origin 'machine'"),
        ([PairRow("a", b"1", split="dev")], "split 'dev'"),
    ],
)
def test_malformed_rows_are_refused_and_leave_no_table(
    tmp_path: Path, rows: list[PairRow], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        PairTable.create(tmp_path / "t", rows)
    with pytest.raises(DataError, match="no pair table"):
        PairTable.open(tmp_path / "t")


def test_an_error_of_the_rows_arrives_as_it_was(tmp_path: Path, pair_rows: Rows) -> None:
    def rows() -> Iterator[PairRow]:
        yield from pair_rows(3)
        raise KeyError("the source broke")

    with pytest.raises(KeyError, match="the source broke"):
        PairTable.create(tmp_path / "t", rows())


def test_lone_surrogates_do_not_stop_an_import(tmp_path: Path) -> None:
    row = PairRow("a\ud800", b"1", captions=["\udfffx"], meta={"title": "cut \ud83d"})
    table = PairTable.create(tmp_path / "t", [row])
    record = table.take([0], ["id", "captions", "meta"]).to_pylist()[0]
    assert record["id"] == r"a\ud800"
    assert record["captions"] == ["?x"]
    assert json.loads(record["meta"]) == {"title": r"cut \ud83d"}


def test_ids_are_unique_as_they_are_stored(tmp_path: Path) -> None:
    keys = ["caf\udce9", "caf\udce8", "caf?", "\ud83d", "\ude00"]
    table = PairTable.create(tmp_path / "t", [PairRow(key, b"1") for key in keys])
    stored = table.take(range(len(keys)), ["id"])["id"].to_pylist()
    assert len(set(stored)) == len(keys)
    again: list[str] = []
    reopened = PairTable.open(table.uri)
    reopened.append([PairRow(k, b"2") for k in keys], on_duplicate=lambda r: again.append(r.id))
    assert again == keys
    # A name that looks like another's escape is told, and never takes its place.
    assert (
        reopened.append([PairRow(r"caf\xe9", b"3")], on_duplicate=lambda r: again.append("x")) == 0
    )
    assert again[-1] == "x"


def test_appended_rows_follow_the_others(table: PairTable) -> None:
    assert table.append([PairRow("new", b"1")]) == 1
    assert len(table) == 21
    assert PairTable.open(table.uri).take([20], ["id"])["id"].to_pylist() == ["new"]


def test_a_known_id_is_not_appended_again(table: PairTable) -> None:
    duplicates: list[str] = []
    reopened = PairTable.open(table.uri)
    rows = [PairRow("r3", b"1"), PairRow("new", b"1"), PairRow("new", b"2")]
    assert reopened.append(rows, on_duplicate=lambda row: duplicates.append(row.id)) == 1
    assert duplicates == ["r3", "new"]
    with pytest.raises(DataError, match="'r4' occurs twice"):
        reopened.append([PairRow("other", b"1"), PairRow("r4", b"1")])
    assert len(PairTable.open(table.uri)) == 21
    # The row that was not committed with the failed call is still unknown.
    assert reopened.append([PairRow("other", b"1")]) == 1


def test_rows_of_another_process_count_after_an_append(table: PairTable) -> None:
    other = PairTable.open(table.uri)
    assert table.append([PairRow("a", b"1")]) == 1
    assert other.append([PairRow("b", b"1"), PairRow("c", b"1")]) == 2
    assert len(other) == 23
    assert other.take([20, 22], ["id"])["id"].to_pylist() == ["a", "c"]
    with pytest.raises(DataError, match="'a' occurs twice"):
        other.append([PairRow("a", b"2")])


def test_of_two_that_append_one_id_at_the_same_time_one_is_told(table: PairTable) -> None:
    other = PairTable.open(table.uri)

    def rows() -> Iterator[PairRow]:
        yield PairRow("mine", b"1")
        table.append([PairRow("a", b"1"), PairRow("b", b"1")])
        yield PairRow("b", b"2")

    with pytest.raises(DataError, match="another process has added the id 'b'"):
        other.append(rows())
    reopened = PairTable.open(table.uri)
    ids = [key for batch in reopened.scan(["id"]) for key in batch["id"].to_pylist()]
    assert ids[20:] == ["a", "b"]
    # What was refused is not known: the same rows, but the one, can be appended.
    assert other.append([PairRow("mine", b"1"), PairRow("b", b"2")], on_duplicate=print) == 1


def test_rows_come_in_beside_columns_that_another_process_adds(table: PairTable) -> None:
    other = PairTable.open(table.uri)
    table.add_columns(_scores(table, 0.25))
    table.update_metadata({"note": "x"})
    assert other.append([PairRow("a", b"1")]) == 1
    assert other.take([19, 20], ["captions_itm"])["captions_itm"].to_pylist() == [[0.25] * 2, None]
    assert other.metadata["note"] == "x"


@pytest.mark.parametrize("change", ["drop", "replace"])
def test_a_change_that_does_not_go_with_another_says_what_to_do(
    table: PairTable, change: str
) -> None:
    table.add_columns(_scores(table, 0.25))
    other = PairTable.open(table.uri)
    table.add_columns(pa.table({"rank": pa.array(range(20))}))
    changes = {
        "drop": lambda: other.drop_columns(["captions_itm"]),
        "replace": lambda: other.add_columns(_scores(other, 0.75), overwrite=True),
    }
    with pytest.raises(ConflictError, match="run the same command again"):
        changes[change]()
    assert {"rank", "captions_itm"} <= set(PairTable.open(table.uri).columns)


def test_a_damaged_table_is_not_taken_for_a_missing_one(table: PairTable, pair_rows: Rows) -> None:
    (manifest,) = Path(table.uri, "_versions").glob("*.manifest")
    manifest.write_bytes(manifest.read_bytes()[:40])
    with pytest.raises(DataError, match=r"cannot be opened \(_versions/\d+\.manifest is damaged\)"):
        PairTable.open(table.uri)
    with pytest.raises(DataError, match="cannot be opened"):
        PairTable.create(table.uri, pair_rows(1))


@pytest.mark.parametrize("begin", [PairTable.open, PairTable.create, PairTable.open_or_create])
class TestAPlaceThatIsNotFree:
    def test_a_table_without_its_versions_is_damaged_not_new(
        self, table: PairTable, begin: Callable[[str], PairTable]
    ) -> None:
        shutil.rmtree(Path(table.uri, "_versions"))
        with pytest.raises(DataError, match=r"holds rows of a pair table, .* _versions was lost"):
            begin(table.uri)
        Path(table.uri, "_versions").mkdir()
        with pytest.raises(DataError, match="_versions was lost"):
            begin(table.uri)

    def test_a_folder_of_other_things_is_refused(
        self, tmp_path: Path, begin: Callable[[str], PairTable]
    ) -> None:
        (tmp_path / "photos" / "data").mkdir(parents=True)
        (tmp_path / "photos" / "a.jpg").touch()
        (tmp_path / "photos" / "data" / "b.csv").touch()
        with pytest.raises(DataError, match=r"no pair table, and holds other things \(a.jpg, data"):
            begin(str(tmp_path / "photos"))
        assert {path.name for path in (tmp_path / "photos").iterdir()} == {"a.jpg", "data"}

    @pytest.mark.parametrize("name", ["", "  "])
    def test_an_empty_name_is_refused(self, begin: Callable[[str], PairTable], name: str) -> None:
        with pytest.raises(DataError, match="the name of the pair table is empty"):
            begin(name)

    def test_a_file_or_a_device_is_refused(
        self, tmp_path: Path, begin: Callable[[str], PairTable]
    ) -> None:
        (tmp_path / "pairs.csv").write_text("image,caption")
        for place in (str(tmp_path / "pairs.csv"), "/dev/null"):
            with pytest.raises(DataError, match="is a file, and a pair table is a folder"):
                begin(place)

    def test_a_name_that_is_no_unicode_is_refused(self, begin: Callable[[str], PairTable]) -> None:
        with pytest.raises(DataError, match="must be UTF-8"):
            begin("caf\udce9")


def test_rows_that_could_not_all_be_written_leave_nothing_in_the_way(
    tmp_path: Path, pair_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openblip.table.versions._FRAGMENT_ROWS", 1)

    def rows() -> Iterator[PairRow]:
        yield from (PairRow(f"r{number}", bytes(1 << 20)) for number in range(40))
        raise KeyError("the source broke")

    with pytest.raises(KeyError):
        PairTable.create(tmp_path / "t", rows())
    assert not list((tmp_path / "t").rglob("*.lance"))
    assert len(PairTable.create(tmp_path / "t", pair_rows(2))) == 2


def test_a_table_begins_in_an_empty_folder(tmp_path: Path, pair_rows: Rows) -> None:
    (tmp_path / "t").mkdir()
    assert len(PairTable.create(tmp_path / "t", pair_rows(2))) == 2
    assert len(PairTable.open_or_create(tmp_path / "t")) == 2


def test_a_journal_note_appears_together_with_its_rows(table: PairTable) -> None:
    version = table.version
    assert table.journal_since(version, "position") is None
    table.append([PairRow("a", b"1")], journal=lambda: {"position": "1"})
    table.append([PairRow("b", b"1")], journal=lambda: {"position": "2"})
    table.update_metadata({"other": "x"})
    reopened = PairTable.open(table.uri)
    assert reopened.journal_since(version, "position") == "2"
    assert reopened.journal_since(reopened.version, "position") is None
    assert PairTable.open(table.uri, version=version + 1).journal_since(version, "position") == "1"


def test_metadata_is_changed_entry_by_entry(table: PairTable) -> None:
    table.update_metadata({"captioner": "abc", "seed": "1"})
    table.update_metadata({"seed": None, "filter": "def"})
    assert PairTable.open(table.uri).metadata == {"captioner": "abc", "filter": "def"}


def test_added_columns_stand_beside_the_rows(table: PairTable) -> None:
    data_files = sorted(Path(table.uri, "data").iterdir())
    table.add_columns(pa.table({"rank": pa.array(range(20))}))
    assert table.take([5, 0], ["id", "rank"]).to_pylist() == [
        {"id": "r5", "rank": 5},
        {"id": "r0", "rank": 0},
    ]
    assert set(data_files) < set(Path(table.uri, "data").iterdir())  # nothing was rewritten


@pytest.mark.parametrize("num_rows", [19, 21])
def test_columns_of_another_length_are_refused(table: PairTable, num_rows: int) -> None:
    with pytest.raises(DataError, match="each of the 20 rows"):
        table.add_columns(pa.table({"rank": pa.array(range(num_rows))}))
    assert "rank" not in PairTable.open(table.uri).columns


def test_columns_are_replaced_only_on_demand_and_in_one_step(table: PairTable) -> None:
    table.add_columns(_scores(table, 0.25))
    with pytest.raises(DataError, match="captions_itm already"):
        table.add_columns(_scores(table, 0.75))
    old = PairTable.open(table.uri)
    columns = _scores(table, 0.75).append_column("seed", pa.array([1] * 20))
    table.add_columns(columns, overwrite=True)
    assert table.columns == (*BASE_COLUMNS, "captions_itm", "seed")
    assert table.take([3], ["captions_itm"])["captions_itm"].to_pylist() == [[0.75, 0.75]]
    assert old.take([3], ["captions_itm"])["captions_itm"].to_pylist() == [[0.25, 0.25]]


def test_a_replacement_that_fails_leaves_the_old_values(table: PairTable) -> None:
    table.add_columns(_scores(table, 0.25))
    with pytest.raises(DataError, match="20 rows"):
        table.add_columns(_scores(table, 0.75).slice(0, 5), overwrite=True)
    reopened = PairTable.open(table.uri)
    assert reopened.columns == (*BASE_COLUMNS, "captions_itm")
    assert reopened.take([3], ["captions_itm"])["captions_itm"].to_pylist() == [[0.25, 0.25]]


def test_dropped_columns_are_gone_and_can_be_added_anew(table: PairTable) -> None:
    table.add_columns(_scores(table, 0.25))
    table.drop_columns(["captions_itm"])
    assert PairTable.open(table.uri).columns == BASE_COLUMNS
    table.add_columns(_scores(table, 0.75))
    assert table.take([3], ["captions_itm"])["captions_itm"].to_pylist() == [[0.75, 0.75]]


def test_columns_of_the_source_are_protected(table: PairTable) -> None:
    with pytest.raises(DataError, match="captions: columns of the source"):
        table.drop_columns(["captions"])
    with pytest.raises(DataError, match="split: columns of the source"):
        table.add_columns(pa.table({"split": ["test"] * 20}), overwrite=True)


def test_rows_appended_after_columns_were_added_have_nulls_there(table: PairTable) -> None:
    table.add_columns(_scores(table, 0.25))
    table.append([PairRow("late", b"1")])
    assert table.take([20], ["captions_itm"])["captions_itm"].to_pylist() == [None]


def test_an_older_version_stays_readable(table: PairTable) -> None:
    version = table.version
    table.append([PairRow("late", b"1")])
    assert len(PairTable.open(table.uri, version=version)) == 20
    with pytest.raises(DataError, match="version 99"):
        PairTable.open(table.uri, version=99)


def test_a_fingerprint_is_told_while_other_threads_read(table: PairTable) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            told = [pool.submit(lambda: table.fingerprint) for _ in range(300)]
            for _ in range(300):
                assert table.columns[0] == "id"
            assert {future.result() for future in told} == {table.fingerprint}
    finally:
        sys.setswitchinterval(before)


def test_each_version_has_a_fingerprint_that_a_table_in_its_place_lacks(
    table: PairTable, pair_rows: Rows
) -> None:
    uri, first = table.uri, table.fingerprint
    shutil.copytree(uri, f"{uri}.copy")
    table.append(pair_rows(21)[20:])
    assert table.fingerprint != first
    assert PairTable.open(uri, 1).fingerprint == first
    assert PairTable.open(f"{uri}.copy").fingerprint == first
    shutil.rmtree(uri)
    again = PairTable.create(uri, pair_rows(20))
    assert (again.version, again.fingerprint == first) == (1, False)


def test_many_threads_read_at_once(table: PairTable) -> None:
    wrong: list[int] = []

    def read(seed: int) -> None:
        rows = np.random.default_rng(seed).integers(0, 20, 8)
        if table.take(rows, ["id"])["id"].to_pylist() != [f"r{row}" for row in rows]:
            wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
