"""A pair table in an object store does what one on a disk does, also when the store fails."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from openblip.batches.images import every_image
from openblip.batches.loader import PairLoader
from openblip.batches.mixture import WeightedIndex
from openblip.batches.tokenizer import TextTokenizer
from openblip.runtime.errors import DataError, OpenBlipError, StorageError
from openblip.sources.row_images import encoded_image
from openblip.table.reviews import ReviewLog, ReviewRecord
from openblip.table.storage import ObjectFolder
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView

from ..s3_server import S3Proxy

Rows = Callable[..., list[PairRow]]
STORM = ("slow down", "drop", "cut", "lose answer", "deny answer")


@pytest.fixture
def uri(s3: S3Proxy) -> str:
    return f"{s3.bucket}/tables/pairs.lance"


def ids(table: PairTable) -> list[str]:
    return [key for batch in table.scan(["id"], batch_size=7) for key in batch["id"].to_pylist()]


def scores(table: PairTable, value: float) -> pa.Table:
    return pa.table({"captions_itm": pa.array([[float(value)] * 2] * len(table))})


def at_once(count: int, act: Callable[[int], object]) -> list[OpenBlipError]:
    """Lets `act` be called by so many threads at the same time; what they raised."""
    start, errors = threading.Barrier(count), []

    def run(number: int) -> None:
        start.wait()
        try:
            act(number)
        except OpenBlipError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_a_table_lives_there_as_on_a_disk(uri: str, pair_rows: Rows) -> None:
    rows = pair_rows(10)
    table = PairTable.create(uri, rows[:6], {"kind": "test"})
    assert table.append(rows[6:]) == 4
    table.add_columns(scores(table, 0.25))
    table.add_columns(scores(table, 0.75), overwrite=True)
    reopened = PairTable.open(uri)
    assert ids(reopened) == [f"r{number}" for number in range(10)]
    assert next(reopened.scan(["id"], start=8))["id"].to_pylist() == ["r8", "r9"]
    taken = reopened.take([9, 0], ["image", "captions_itm"]).to_pylist()
    assert [row["image"] for row in taken] == [rows[9].image, rows[0].image]
    assert taken[0]["captions_itm"] == [0.75, 0.75]
    assert reopened.metadata["kind"] == "test"
    reopened.drop_columns(["captions_itm"])
    assert "captions_itm" not in PairTable.open(uri).columns
    assert "captions_itm" in PairTable.open(uri, version=table.version).columns


def test_a_place_without_a_table_says_how_to_make_one(uri: str) -> None:
    with pytest.raises(DataError, match="openblip data import"):
        PairTable.open(uri)


def test_a_missing_bucket_is_named(s3: S3Proxy) -> None:
    with pytest.raises(
        StorageError, match=rf"no-such-bucket/t: there is no such bucket at {s3.url}"
    ):
        PairTable.open("s3://no-such-bucket/t")


def test_wrong_credentials_are_an_error_that_says_what_to_set(uri: str, s3: S3Proxy) -> None:
    with s3.checking_credentials(), pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID"):
        PairTable.open(uri)


def test_of_processes_that_create_one_table_one_succeeds(uri: str, pair_rows: Rows) -> None:
    rows = pair_rows(4)
    errors = at_once(4, lambda number: PairTable.create(uri, [rows[number]]))
    assert len(errors) == 3
    assert all("already holds a table" in str(error) for error in errors)
    assert len(PairTable.open(uri)) == 1


def test_appends_at_the_same_time_are_all_kept(uri: str, pair_rows: Rows) -> None:
    rows = pair_rows(8)
    PairTable.create(uri, rows[:1])
    tables = [PairTable.open(uri) for _ in range(7)]
    assert not at_once(7, lambda number: tables[number].append([rows[number + 1]]))
    assert sorted(ids(PairTable.open(uri))) == sorted(row.id for row in rows)


def test_of_columns_added_at_the_same_time_none_is_half_there(uri: str, pair_rows: Rows) -> None:
    table = PairTable.create(uri, pair_rows(4))
    tables = [PairTable.open(uri) for _ in range(3)]
    errors = at_once(3, lambda number: tables[number].add_columns(scores(table, number)))
    assert all("at the same time: run the same command again" in str(error) for error in errors)
    column = PairTable.open(uri).take(range(4), ["captions_itm"])["captions_itm"].to_pylist()
    assert column in [[[float(number)] * 2] * 4 for number in range(3)]


@pytest.mark.parametrize("fault", STORM)
def test_a_commit_is_made_once_whatever_its_request_meets(
    uri: str, s3: S3Proxy, pair_rows: Rows, fault: str
) -> None:
    rows = pair_rows(3)
    s3.faults, s3.only, s3.failing = (fault,), "_versions", 2
    PairTable.create(uri, rows[:1])
    s3.failing = 2
    PairTable.open(uri).append(rows[1:])
    s3.failing = 2
    PairTable.open(uri).add_columns(scores(PairTable.open(uri), 0.5))
    s3.failing = 0
    table = PairTable.open(uri)
    assert ids(table) == ["r0", "r1", "r2"]
    assert table.version == 3
    assert s3.failed[fault] > 0


def test_a_storm_of_errors_leaves_no_trace_in_a_table(
    uri: str, s3: S3Proxy, pair_rows: Rows
) -> None:
    s3.share, s3.faults = 0.4, STORM
    rows = pair_rows(12)
    table = PairTable.create(uri, rows[:2])
    for start in range(2, 12, 2):
        table.append(rows[start : start + 2])
    table.add_columns(scores(table, 0.5))
    assert ids(table) == [row.id for row in rows]
    s3.share = 0.0
    assert ids(PairTable.open(uri)) == [row.id for row in rows]
    assert s3.failed.total() > 5


def test_an_outage_is_not_taken_for_a_missing_table(
    uri: str, s3: S3Proxy, pair_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    PairTable.create(uri, pair_rows(2))
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "1")
    s3.share, s3.faults = 1.0, ("cut",)
    with pytest.raises(StorageError, match="has failed for 1 s"):
        PairTable.create(uri, pair_rows(1))
    s3.share = 0.0
    assert len(PairTable.open(uri)) == 2


def test_an_append_that_gave_up_can_be_made_again(
    uri: str, s3: S3Proxy, pair_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pair_rows(4)
    table = PairTable.create(uri, rows[:2])
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "1")
    table = PairTable.open(uri)
    s3.share, s3.faults, s3.only = 1.0, ("slow down",), "PUT"
    with pytest.raises(StorageError, match=r"has failed for 1 s \(SlowDown\)"):
        table.append(rows[2:])
    s3.share = 0.0
    table.append(rows[2:])
    assert ids(PairTable.open(uri)) == [row.id for row in rows]


@pytest.fixture
def loaded(tmp_path: Path, uri: str, s3: S3Proxy, pair_rows: Rows) -> dict[str, PairTable]:
    """One table on the disk and one in the store, whose images are objects of their own."""
    folder = ObjectFolder(f"{s3.bucket}/images")
    rows, away = pair_rows(8), []
    for row in rows:
        folder.write(f"{row.id}.jpg", row.image or b"")
        address = f"{folder.uri}/{row.id}.jpg"
        away.append(replace(row, image=None, image_uri=address))
    return {
        "disk": PairTable.create(tmp_path / "t", rows),
        "store": PairTable.create(uri, away),
    }


def loader(table: PairTable, rank: int = 0, world_size: int = 1) -> PairLoader:
    tokenizer = TextTokenizer.train(["picture number this is 0 1 2 3 4 5 6 7"], 60)
    parts = [WeightedIndex(CaptionView().resolve(table))]
    return PairLoader(parts, tokenizer, 4 // world_size, 16, None, 12, 0, rank, world_size)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_every_rank_reads_its_part_directly(
    loaded: dict[str, PairTable], s3: S3Proxy, share: float
) -> None:
    s3.share, s3.faults = share, ("slow down", "drop", "cut")
    with loader(loaded["disk"]) as one, loader(loaded["store"], 0, 2) as first:
        second = loader(PairTable.open(loaded["store"].uri), 1, 2)
        with second:
            for whole, left, right, _ in zip(
                one.iterate(), first.iterate(), second.iterate(), range(3), strict=False
            ):
                assert whole.ids == left.ids + right.ids
                assert whole.images.tolist() == left.images.tolist() + right.images.tolist()


def test_a_missing_object_is_an_error_of_its_row(loaded: dict[str, PairTable], s3: S3Proxy) -> None:
    ObjectFolder(f"{s3.bucket}/images").remove("r3.jpg")
    with pytest.raises(DataError, match=r"row 3 of .*images/r3\.jpg: there is no such object"):
        list(every_image(loaded["store"], range(8), 8, 16))


def test_an_outage_is_no_error_of_a_row(
    loaded: dict[str, PairTable], s3: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "1")
    s3.share, s3.faults, s3.only = 1.0, ("slow down",), "/images/"
    with pytest.raises(StorageError, match=r"images/r\d\.jpg: .* has failed for 1 s"):
        list(every_image(loaded["store"], range(8), 8, 16))


def test_an_enormous_object_is_refused_unread(s3: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openblip.sources.row_images.MAX_IMAGE_BYTES", 10)
    ObjectFolder(s3.bucket).write("big.jpg", b"1" * 11)
    with pytest.raises(DataError, match="has 11 bytes, more than 10"):
        encoded_image(None, f"{s3.bucket}/big.jpg")


def test_verdicts_lie_beside_a_table_and_a_view_takes_them_in(uri: str, pair_rows: Rows) -> None:
    table = PairTable.create(uri, pair_rows(4))
    text = "picture number 2"
    record = ReviewRecord(
        row="r2",
        source="web",
        place=0,
        text=text,
        verdict="partly",
        edited="a corrected picture",
        reviewer="ada",
        table_version=table.version,
    )
    ReviewLog.of(uri).append([record])
    index = CaptionView(sources=("reviewed",)).resolve(PairTable.open(uri))
    assert index.captions_of_rows(index.rows) == [["a corrected picture"]]
    # What lies beside the table is none of its own files.
    assert ids(PairTable.open(uri)) == ["r0", "r1", "r2", "r3"]
    assert ObjectFolder(f"{uri}.reviews").names() == ["0000000000.jsonl"]
