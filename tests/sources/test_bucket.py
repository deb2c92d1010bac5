"""Shards in an object store are imported as the same files on a disk are."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from openblip.cli import main
from openblip.runtime.errors import DataError, StorageError
from openblip.sources.bucket import BucketSource, place_of
from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport
from openblip.sources.source import Found, SourceOptions
from openblip.table import storage
from openblip.table.storage import ObjectFolder
from openblip.table.table import PairTable

from ..s3_server import S3Proxy

Samples = Callable[..., Any]
COLUMNS = ["id", "image", "captions", "split", "origin", "meta"]


@pytest.fixture
def crawl(tmp_path: Path, write_tar: Callable[..., Path], samples: Samples) -> Path:
    """A folder of tars: one is damaged, one is of the test split, and other files lie beside."""
    source = tmp_path / "crawl"

    def write(name: str, members: Sequence[tuple[str, bytes]]) -> None:
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tar("made.tar", members).rename(path)

    write("00000.tar", samples(0, 3))
    # Ids that the first has, too.
    write("00001.tar", samples(2, 3))
    write("part/00002.tar", samples(8, 3))
    write("test-00000.tar", samples(20, 2))
    broken = (source / "part" / "00002.tar").read_bytes()
    (source / "broken.tar").write_bytes(broken[: len(broken) // 2])
    (source / "notes.txt").write_text("made in spring")
    (source / ".hidden").write_text("x")
    return source


def upload(folder: Path, address: str) -> str:
    store = ObjectFolder(address)
    for path in folder.rglob("*"):
        if path.is_file():
            store.write(path.relative_to(folder).as_posix(), path.read_bytes())
    return address


@pytest.fixture
def bucket(crawl: Path, s3: S3Proxy) -> str:
    return upload(crawl, f"{s3.bucket}/web/crawl")


def rows(uri: str | Path) -> list[dict[str, Any]]:
    return [row for batch in PairTable.open(str(uri)).scan(COLUMNS) for row in batch.to_pylist()]


def plain(report: ImportReport) -> dict[str, Any]:
    told = asdict(replace(report, source="", uri="", seconds=0.0, completed=""))
    # Of what lies beside, a disk is looked into and says what it is; and in another order.
    return {name: value for name, value in told.items() if name not in ("format", "examples")}


def skipped(report: ImportReport) -> dict[str, int]:
    return {str(reason): count for reason, count in report.skipped.items()}


def test_rows_and_report_are_those_of_the_same_files_on_a_disk(
    crawl: Path, bucket: str, tmp_path: Path
) -> None:
    here = import_pairs(crawl, tmp_path / "here", show_progress=False)
    there = import_pairs(bucket, tmp_path / "there", show_progress=False)
    order = lambda row: row["id"]  # noqa: E731
    assert sorted(rows(tmp_path / "there"), key=order) == sorted(rows(tmp_path / "here"), key=order)
    assert {row["split"] for row in rows(tmp_path / "there")} == {"train", "test"}
    assert plain(there) == plain(here)
    assert there.skipped
    # The place of a copy, which is gone by now, is nowhere told.
    assert "/openblip-" not in str(asdict(there))


def test_nothing_of_it_stays_on_the_disk(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    import_pairs(bucket, tmp_path / "t", show_progress=False)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_workers_read_it_side_by_side_to_the_same_end(bucket: str, tmp_path: Path) -> None:
    one = import_pairs(bucket, tmp_path / "one", show_progress=False)
    many = import_pairs(bucket, tmp_path / "many", show_progress=False, processes=2)
    assert rows(tmp_path / "many") == rows(tmp_path / "one")
    assert plain(many) == plain(one)


def test_an_import_that_was_stopped_goes_on_where_it_was(bucket: str, tmp_path: Path) -> None:
    whole = import_pairs(bucket, tmp_path / "whole", show_progress=False)
    for limit in (1, 4, 6, None):
        report = import_pairs(bucket, tmp_path / "parts", show_progress=False, limit=limit)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert plain(report) == plain(whole)


def test_every_cursor_is_a_place_to_go_on_from(bucket: str) -> None:
    def told(cursor: Any = None) -> list[tuple[str, str]]:
        source = BucketSource(bucket, SourceOptions())
        return [(type(one).__name__, one.where) for one in source.entries(cursor)]

    everything = list(BucketSource(bucket, SourceOptions()).entries(None))
    assert any(isinstance(one, Found) for one in everything)
    for number, entry in enumerate(everything, 1):
        assert told(entry.cursor) == told()[number:]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("*.tar", {"00000.tar", "00001.tar", "broken.tar", "test-00000.tar"}),
        ("**/0*.tar", {"00000.tar", "00001.tar", "part/00002.tar"}),
        ("{00000..00001}.tar", {"00000.tar", "00001.tar"}),
        ("p*/{00002,00003}*", {"part/00002.tar"}),
        ("part/00002.tar", {"part/00002.tar"}),
    ],
)
def test_objects_are_named_as_files_are(bucket: str, names: str, expected: set[str]) -> None:
    source = BucketSource(f"{bucket}/{names}", SourceOptions())
    folder, below = place_of(f"{bucket}/{names}")
    begin = folder.removeprefix(bucket).strip("/")
    assert {f"{begin}/{shard.name}".strip("/") for shard in source.shards()} == expected
    assert below


def test_what_is_named_and_missing_is_an_error(bucket: str, tmp_path: Path, s3: S3Proxy) -> None:
    table = tmp_path / "t"
    for address, told in {
        f"{bucket}/{{00000..00003}}.tar": r"00002\.tar does not exist \(2 are missing\)",
        f"{bucket}/no.tar": r"no\.tar does not exist",
        f"{bucket}/x*.tar": r"names no object; in it are .*00000\.tar",
        f"{s3.bucket}/nothing/": "is empty, or does not exist",
        f"{bucket}/notes*": r"has no \.tar and no \.parquet in it; in it are notes\.txt; anything",
    }.items():
        with pytest.raises(DataError, match=told):
            import_pairs(address, table, show_progress=False)
    with pytest.raises(DataError, match="format coco are read from a disk"):
        import_pairs(bucket, table, "coco", show_progress=False)
    with pytest.raises(DataError, match="have no path"):
        import_pairs(bucket, table, store="uri", show_progress=False)
    assert not table.exists()


def write_table(path: Path, images: Sequence[bytes | str], **more: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{path.stem} {number}" for number in range(len(images))]
    parquet.write_table(pa.table({"image": list(images), "caption": names, **more}), path)


def test_parquet_tables_are_read(
    tmp_path: Path, s3: S3Proxy, jpeg: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    local = tmp_path / "local"
    write_table(local / "train-0.parquet", [jpeg(1), jpeg(2)])
    write_table(local / "validation-0.parquet", [jpeg(3)])
    write_table(local / "paths.parquet", ["a.jpg", "b.jpg"])
    (local / "damaged.parquet").write_bytes(b"PAR1 no table PAR1")
    address = upload(local, f"{s3.bucket}/tables")
    assert main(["data", "import", address, str(tmp_path / "t"), "--json"]) == 0
    assert {row["captions"][0]: row["split"] for row in rows(tmp_path / "t")} == {
        "train-0 0": "train",
        "train-0 1": "train",
        "validation-0 0": "val",
    }
    told = capsys.readouterr().out
    assert "a.jpg is named, and not held, by this table" in told
    assert "damaged.parquet" in told
    assert "/openblip-" not in told


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_card_says_splits(
    tmp_path: Path, s3: S3Proxy, jpeg: Callable[..., bytes], *, is_folder: bool
) -> None:
    local = tmp_path / "local"
    write_table(local / "data" / "a-0.parquet", [jpeg(1)])
    write_table(local / "data" / "b-0.parquet", [jpeg(2)])
    write_table(local / "more" / "c-0.parquet", [jpeg(3)])
    (local / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: "
        "data/b-*.parquet\n  - split: train\n    path: data/a-*.parquet\n- config_name: other\n"
        "  data_files: more/*.parquet\n---\n"
    )
    address = upload(local, f"{s3.bucket}/carded")
    names = "" if is_folder else "/data/*.parquet"
    report = import_pairs(f"{address}{names}", tmp_path / "t", show_progress=False)
    assert {row["captions"][0]: row["split"] for row in rows(tmp_path / "t")} == {
        "a-0 0": "train",
        "b-0 0": "test",
    }
    assert skipped(report) == ({"other file": 1} if is_folder else {})


def test_a_bucket_whose_name_is_a_split_says_nothing(bucket: str) -> None:
    from openblip.sources.bucket import root_of

    root = root_of("s3://my-test-data/0.tar")
    assert root.split_in(Path("s3://my-test-data", "0.tar")) is None
    assert root_of("s3://data/test").split == "test"


def test_an_object_that_changes_meanwhile_ends_the_import(
    bucket: str, tmp_path: Path, write_tar: Callable[..., Path], samples: Samples
) -> None:
    source = BucketSource(bucket, SourceOptions())
    shard = source.shards()[0]
    ObjectFolder(bucket).write("00000.tar", write_tar("new.tar", samples(50, 1)).read_bytes())
    with pytest.raises(StorageError, match=r"00000\.tar has changed since it was listed"):
        list(source.entries_of(shard))
    ObjectFolder(bucket).remove("00000.tar")
    with pytest.raises(StorageError, match=r"00000\.tar has changed since it was listed"):
        list(source.entries_of(shard))


def test_a_large_object_comes_in_pieces_through_a_store_that_fails(
    bucket: str, s3: S3Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_PIECE_BYTES", 1000)
    (one,) = [one for one in ObjectFolder(bucket).objects() if one.name == "00001.tar"]
    s3.share, s3.faults, s3.only = 0.3, ("slow down", "drop", "cut"), "GET"
    ObjectFolder(bucket).fetch(one, tmp_path / "copy.tar")
    assert s3.failed
    s3.share = 0.0
    assert (tmp_path / "copy.tar").read_bytes() == ObjectFolder(bucket).read("00001.tar")


def test_a_full_disk_names_the_folder_for_temporary_files(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ObjectFolder, "fetch", full)
    with pytest.raises(StorageError, match=r"folder for temporary files.*No space left.*TMPDIR"):
        import_pairs(bucket, tmp_path / "t", show_progress=False)
    assert not (tmp_path / "t").exists()
