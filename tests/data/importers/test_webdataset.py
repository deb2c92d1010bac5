import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from openblip.data.ids import file_key
from openblip.data.importers.driver import import_pairs
from openblip.data.report import ImportReport
from openblip.data.table import PairTable
from openblip.errors import DataError

Samples = Callable[..., list[tuple[str, bytes]]]
WriteTar = Callable[..., Path]


def _import(source: Path | str, uri: Path) -> tuple[ImportReport, list[dict[str, object]]]:
    report = import_pairs(source, uri, show_progress=False)
    return report, PairTable.open(uri).take(range(report.num_rows)).to_pylist()


def test_shards_of_img2dataset(
    tmp_path: Path, write_tar: WriteTar, samples: Samples, jpeg: Callable[..., bytes]
) -> None:
    for shard in range(2):
        write_tar(f"{shard:05d}.tar", samples(shard * 3, 3))
        (tmp_path / "shards" / f"{shard:05d}.parquet").write_bytes(b"beside the tars, not read")
    report, rows = _import(tmp_path / "shards", tmp_path / "t")
    assert (report.format, report.num_rows, report.num_used) == ("webdataset", 6, 18)
    assert report.skipped == {"other file": 2}
    assert [row["id"] for row in rows] == [f"{number:05d}" for number in range(6)]
    assert rows[4]["image"] == jpeg(4)
    assert rows[4]["captions"] == ["text 4"]
    assert json.loads(str(rows[4]["meta"])) == {"url": "http://x/4", "sha256": "0f"}
    assert (rows[4]["width"], rows[4]["origin"], rows[4]["split"]) == (24, "web", "train")


@pytest.mark.parametrize("pattern", ["{00000..00001}.tar", "0000?.tar"])
def test_ranges_and_patterns_name_shards(
    tmp_path: Path, write_tar: WriteTar, samples: Samples, pattern: str
) -> None:
    for shard in range(3):
        write_tar(f"{shard:05d}.tar", samples(shard * 2, 2))
    (tmp_path / "shards" / "00002.tar").unlink()
    report, _ = _import(tmp_path / "shards" / pattern, tmp_path / "t")
    assert report.num_rows == 4
    with pytest.raises(DataError, match=r"00002\.tar does not exist"):
        _import(tmp_path / "shards" / "{00000..00002}.tar", tmp_path / "t")


def test_a_packed_shard_and_captions_in_json(
    tmp_path: Path, write_tar: WriteTar, samples: Samples
) -> None:
    members = [member for member in samples(0, 3) if not member[0].endswith(".txt")]
    members[3] = ("00001.json", b'{"caption": "told", "split": "test"}')
    report, rows = _import(write_tar("a.tar.gz", members), tmp_path / "t")
    assert report.splits == {"train": 2, "test": 1}
    assert [row["captions"] for row in rows] == [["text 0"], ["told"], ["text 2"]]


def test_folders_inside_a_shard_belong_to_the_key(
    tmp_path: Path, write_tar: WriteTar, jpeg: Callable[..., bytes]
) -> None:
    members = [
        *((f"{folder}/1.jpg", jpeg(1)) for folder in "a"),
        ("a/1.txt", b"one"),
        ("b/1.png", jpeg(2)),
        ("b/1.txt", b"two"),
        ("._b.jpg", b"left by a Mac"),
    ]
    report, rows = _import(write_tar("a.tar", members), tmp_path / "t")
    assert [(row["id"], row["captions"]) for row in rows] == [("a/1", ["one"]), ("b/1", ["two"])]
    assert report.skipped == {"hidden file": 1}


def test_incomplete_samples_are_reported_and_the_rest_imported(
    tmp_path: Path, write_tar: WriteTar, samples: Samples, jpeg: Callable[..., bytes]
) -> None:
    members = [
        ("no_text.jpg", jpeg(50)),
        ("no_image.txt", b"text"),
        ("bad_json.jpg", jpeg(51)),
        ("bad_json.json", b"{"),
        ("bad_text.jpg", jpeg(52)),
        ("bad_text.txt", b"\xff\xff"),
        ("bad_image.jpg", b"JFIF"),
        ("bad_image.txt", b"text"),
        *samples(0, 2),
        *samples(1, 1),
    ]
    report, rows = _import(write_tar("a.tar", members), tmp_path / "t")
    assert [row["id"] for row in rows] == ["00000", "00001"]
    assert report.skipped == {
        "missing caption": 1,
        "missing image": 1,
        # The other samples have two members, or three.
        "bad record": 4,
        "unreadable image": 2,
        "duplicate id": 3,
    }
    assert report.num_seen == len(members)
    assert report.examples["unreadable image"][0].where == "a.tar: bad_image"


def _linked(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_dangerous_members_are_refused(
    tmp_path: Path, write_tar: WriteTar, samples: Samples, jpeg: Callable[..., bytes]
) -> None:
    members = [
        ("../up.jpg", jpeg(60)),
        ("/abs.jpg", jpeg(61)),
        ("a/../../up2.jpg", jpeg(62)),
        _linked("soft.jpg", tarfile.SYMTYPE),
        ("soft.txt", b"text"),
        _linked("hard.jpg", tarfile.LNKTYPE, "00000.jpg"),
        _linked("device.jpg", tarfile.CHRTYPE),
        _linked("pipe.txt", tarfile.FIFOTYPE),
        _linked("folder", tarfile.DIRTYPE),
        *samples(0, 2),
    ]
    report, rows = _import(write_tar("a.tar", members), tmp_path / "t")
    assert [row["id"] for row in rows] == ["00000", "00001"]
    assert report.skipped == {"unsafe path": 3, "unsafe archive member": 5}
    assert not (tmp_path / "up.jpg").exists()


def test_a_member_that_claims_to_be_enormous_is_not_read(
    tmp_path: Path, write_tar: WriteTar, samples: Samples
) -> None:
    shard = write_tar("a.tar", [*samples(0, 1), ("big.jpg", b"x")])
    info = tarfile.TarInfo("big.jpg")
    info.size = 1 << 40
    data = shard.read_bytes()
    start = data.index(b"big.jpg")
    shard.write_bytes(data[:start] + info.tobuf() + data[start + 512 :])
    report, _ = _import(shard, tmp_path / "t")
    assert report.num_rows == 1
    assert report.skipped == {"truncated archive": 1}


# Members 0, 1, 2 are the image, text and metadata of the first sample, and so on.
@pytest.mark.parametrize(
    ("member", "offset", "num_rows"),
    [(0, 100, 0), (0, 600, 0), (6, 0, 2), (6, 100, 2), (6, 600, 2), (7, 515, 2), (8, 515, 3)],
)
def test_a_truncated_shard_gives_what_lies_before_the_break(
    tmp_path: Path, write_tar: WriteTar, samples: Samples, member: int, offset: int, num_rows: int
) -> None:
    shard = write_tar("a.tar", samples(0, 4))
    write_tar("b.tar", samples(10, 2))
    shard.write_bytes(shard.read_bytes()[: _offset_of(shard, member) + offset])
    report, rows = _import(tmp_path / "shards", tmp_path / "t")
    expected = [f"{number:05d}" for number in (*range(num_rows), 10, 11)]
    assert [row["id"] for row in rows] == expected
    assert report.skipped.keys() == {"truncated archive"}
    assert report.examples["truncated archive"][0].where == "a.tar"


def _offset_of(shard: Path, member: int) -> int:
    with tarfile.open(shard) as tar:
        return tar.getmembers()[member].offset


def test_a_damaged_header_in_the_middle_is_noticed(
    tmp_path: Path, write_tar: WriteTar, samples: Samples
) -> None:
    shard = write_tar("a.tar", samples(0, 4))
    data = bytearray(shard.read_bytes())
    start = _offset_of(shard, 6)
    data[start : start + 512] = b"\x55" * 512
    shard.write_bytes(data)
    report, rows = _import(shard, tmp_path / "t")
    assert len(rows) == 2
    assert report.skipped == {"truncated archive": 1}
    assert "damaged" in report.to_text()


def test_a_truncated_packed_shard_and_a_file_that_is_no_archive(
    tmp_path: Path, write_tar: WriteTar, samples: Samples
) -> None:
    shard = write_tar("a.tar.gz", samples(0, 8))
    shard.write_bytes(shard.read_bytes()[:-1500])
    (tmp_path / "shards" / "b.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "shards" / "c.tar").touch()
    report, rows = _import(tmp_path / "shards", tmp_path / "t")
    assert 0 < len(rows) < 8
    assert report.skipped == {"truncated archive": 3}


def test_the_total_comes_from_the_statistics_beside_the_shards(
    tmp_path: Path, write_tar: WriteTar, samples: Samples
) -> None:
    from openblip.data.importers.webdataset import TarSource

    shard = write_tar("00000.tar", samples(0, 3))
    assert TarSource([shard]).total() is None
    shard.with_name("00000_stats.json").write_text('{"successes": 3}')
    assert TarSource([shard]).total() == 3


def test_images_in_shards_cannot_stay_outside_the_table(
    tmp_path: Path, write_tar: WriteTar, samples: Samples
) -> None:
    with pytest.raises(DataError, match="store='bytes'"):
        import_pairs(write_tar("a.tar", samples(0, 1)), tmp_path / "t", store="uri")


def test_the_record_may_hold_more_texts_than_the_text_file(
    tmp_path: Path, write_tar: WriteTar, jpeg: Callable[..., bytes]
) -> None:
    members = []
    for key, captions in {"more": ["a", "b"], "others": ["b", "c"]}.items():
        record = json.dumps({"captions": captions}).encode()
        members += [(f"{key}.jpg", jpeg(0)), (f"{key}.txt", b"a"), (f"{key}.json", record)]
    _, rows = _import(write_tar("a.tar", members), tmp_path / "t")
    assert [(row["captions"], json.loads(str(row["meta"]))) for row in rows] == [
        (["a", "b"], {}),
        # What does not go on from the text is something else.
        (["a"], {"captions": ["b", "c"]}),
    ]


def test_an_id_in_the_record_counts_only_if_the_key_stands_for_it(
    tmp_path: Path, write_tar: WriteTar, jpeg: Callable[..., bytes]
) -> None:
    members = []
    for key, told in {file_key("a/b.jpg"): "a/b.jpg", "00001": "not unique"}.items():
        record = json.dumps({"caption": "text", "id": told}).encode()
        members += [(f"{key}.jpg", jpeg(0)), (f"{key}.json", record)]
    _, rows = _import(write_tar("a.tar", members), tmp_path / "t")
    assert [(row["id"], json.loads(str(row["meta"]))) for row in rows] == [
        ("a/b.jpg", {}),
        ("00001", {"id": "not unique"}),
    ]
