import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from openblip.runtime.errors import DataError
from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport
from openblip.sources.source import Entry, Found
from openblip.table.rows import file_key
from openblip.table.table import PairTable

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
        log = {"key": [f"{shard * 3 + n:05d}" for n in range(3)], "status": ["success"] * 3}
        parquet.write_table(pa.table(log), tmp_path / "shards" / f"{shard:05d}.parquet")
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
    from openblip.sources.source import SourceOptions
    from openblip.sources.tars import TarSource

    shard = write_tar("00000.tar", samples(0, 3))
    assert TarSource([shard], SourceOptions()).total() is None
    shard.with_name("00000_stats.json").write_text('{"successes": 3}')
    assert TarSource([shard], SourceOptions()).total() == 3


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


def test_the_image_of_a_key_is_the_one_of_its_name(
    tmp_path: Path, write_tar: WriteTar, jpeg: Callable[..., bytes]
) -> None:
    members: list[tuple[str, bytes]] = []
    for key in ("0", "1"):
        members += [
            (f"{key}.depth.png", jpeg(50)),
            (f"{key}.exif.json", b'{"caption": "of the camera"}'),
            (f"{key}.jpg", jpeg(int(key))),
            (f"{key}.mask.jpg", jpeg(51)),
            (f"{key}.txt", f"text {key}".encode()),
            (f"{key}.left.jpg", jpeg(52)),
            (f"{key}.npy", b"numbers"),
            (f"{key}.json", b'{"url": "u"}'),
        ]
    report, rows = _import(write_tar("a.tar", members), tmp_path / "t")
    assert [(row["id"], row["image"], row["captions"]) for row in rows] == [
        ("0", jpeg(0), ["text 0"]),
        ("1", jpeg(1), ["text 1"]),
    ]
    assert [json.loads(str(row["meta"])) for row in rows] == [{"url": "u"}] * 2
    assert report.noted == {"other member of a sample": 10}
    assert "a.tar: 0.depth.png" in report.to_text()
    assert (report.num_used, report.num_skipped) == (16, 0)


def test_views_without_an_image_of_the_key_have_a_reason(
    tmp_path: Path, write_tar: WriteTar, jpeg: Callable[..., bytes]
) -> None:
    members = [
        (f"{key}.{end}", jpeg(0) if "jpg" in end else b"text")
        for key in "01"
        for end in ("left.jpg", "right.jpg", "txt")
    ]
    report = import_pairs(write_tar("a.tar", members), tmp_path / "t", show_progress=False)
    assert report.skipped == {"missing image": 6}
    assert "there is .left.jpg, .right.jpg, .txt" in report.to_text()


@pytest.mark.parametrize("first", ["caption.txt", "tags.txt"])
def test_a_text_may_have_its_name_before_the_suffix(
    tmp_path: Path, write_tar: WriteTar, jpeg: Callable[..., bytes], first: str
) -> None:
    texts = {"caption.txt": b"a dog", "tags.txt": b"dog, grass"}
    second = next(name for name in texts if name != first)
    members = [(f"0.{first}", texts[first]), ("0.jpg", jpeg(0)), (f"0.{second}", texts[second])]
    report, rows = _import(write_tar("a.tar", members), tmp_path / "t")
    assert [row["captions"] for row in rows] == [["a dog"]]
    assert report.noted == {"other member of a sample": 1}


def test_names_with_dots_are_samples_of_their_own_where_the_key_has_nothing_else(
    tmp_path: Path, write_tar: WriteTar, jpeg: Callable[..., bytes]
) -> None:
    members = []
    for number in range(3):
        members += [(f"IMG.{number}.jpg", jpeg(number)), (f"IMG.{number}.txt", b"text")]
    report, rows = _import(write_tar("a.tar", members), tmp_path / "t")
    assert [row["id"] for row in rows] == ["IMG.0", "IMG.1", "IMG.2"]
    assert (report.num_used, report.num_seen) == (6, 6)


def test_which_of_two_images_a_text_is_of_cannot_be_told(
    tmp_path: Path, write_tar: WriteTar, jpeg: Callable[..., bytes]
) -> None:
    members = [
        *(("0.jpg", jpeg(0)), ("0.png", jpeg(1)), ("0.txt", b"text")),
        # Suffixes that are known count before what is an image by its content.
        *(("1.jpg", jpeg(2)), ("1.thumb", jpeg(3)), ("1.txt", b"text")),
        *(("2.upload", jpeg(4)), ("2.txt", b"text")),
    ]
    report, rows = _import(write_tar("a.tar", members), tmp_path / "t")
    assert [(row["id"], row["image"]) for row in rows] == [("1", jpeg(2)), ("2", jpeg(4))]
    assert report.skipped == {"contradiction": 3}
    assert ".jpg and .png are images of this key" in report.to_text()
    assert report.noted == {"other member of a sample": 1}


def test_members_that_belong_to_nothing_are_left_out_by_name(
    tmp_path: Path, write_tar: WriteTar, samples: Samples
) -> None:
    members = [
        *(("inner.tar", b"tar"), ("README", b"text"), ("film.mp4", b"\0\0\0\x18ftypmp42")),
        *(("raw.dng", b"II*\0"), ("__MACOSX/x.jpg", b"")),
        *samples(0, 1),
    ]
    report, rows = _import(write_tar("a.tar", members), tmp_path / "t")
    assert len(rows) == 1
    assert report.skipped == {"other file": 4, "hidden file": 1}
    assert report.num_seen == len(members)
    text = report.to_text()
    for line in ("archive in the archive", "film.mp4 is a video", "raw file of a camera"):
        assert line in text


def test_a_text_of_several_lines_is_a_caption_a_line_as_in_a_folder(
    tmp_path: Path, write_tar: WriteTar, jpeg: Callable[..., bytes]
) -> None:
    text = "one\u2028still one\r\ntwo\rthree\n".encode()
    members = [("0.jpg", jpeg(0)), ("0.txt", text), ("1.jpg", jpeg(1)), ("1.txt", b"a\0b\0")]
    report, rows = _import(write_tar("a.tar", members), tmp_path / "t")
    assert [row["captions"] for row in rows] == [["one\u2028still one", "two", "three"]]
    assert report.skipped == {"bad record": 2}
    assert "UTF-16" in report.to_text()


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar.bz2", "w:bz2"), ("a.txz", "w:xz"), ("mislabelled.tar", "w:gz")]
)
def test_archives_are_unpacked_by_their_content(
    tmp_path: Path, samples: Samples, name: str, mode: str
) -> None:
    with tarfile.open(tmp_path / name, mode) as tar:  # type: ignore[call-overload]
        for member, data in samples(0, 2):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    report, rows = _import(tmp_path / name, tmp_path / "t")
    assert [row["id"] for row in rows] == ["00000", "00001"]
    assert (report.format, report.num_skipped) == ("webdataset", 0)


def test_an_import_of_odd_members_is_the_same_in_steps(
    tmp_path: Path, write_tar: WriteTar, samples: Samples, jpeg: Callable[..., bytes]
) -> None:
    members = [
        *samples(0, 2),
        *(("x.a.jpg", jpeg(5)), ("x.a.txt", b"t"), ("x.b.jpg", jpeg(6)), ("x.b.txt", b"t")),
        *(("notes", b"x"), ("y.left.jpg", jpeg(7)), ("y.txt", b"t")),
        *samples(5, 2),
    ]
    shard = write_tar("a.tar", members)
    whole, rows = _import(shard, tmp_path / "whole")
    for limit in (1, 2, 3, 4, 5, None):
        report = import_pairs(
            shard, tmp_path / "t", limit=limit, commit_rows=1, show_progress=False
        )
    assert PairTable.open(tmp_path / "t").take(range(len(rows))).to_pylist() == rows
    assert (report.num_seen, report.skipped) == (len(members), whole.skipped)


def test_a_blank_text_hides_no_other_in_a_shard(
    write_tar: Callable[..., Path], entries: Callable[..., list[Entry]], jpeg: Callable[..., bytes]
) -> None:
    members = [
        *[("a.jpg", jpeg(0)), ("a.txt", b""), ("a.json", b'{"caption": "real", "Split": "val"}')],
        *[("b.jpg", jpeg(1)), ("b.txt", b" "), ("b.caption", b"real")],
        *[("c.jpg", jpeg(2)), ("c.json", b'{"caption": ["real", null]}')],
    ]
    found = [e for e in entries(write_tar("x.tar", members)) if isinstance(e, Found)]
    assert [(e.key, list(e.captions), e.split, e.remarks) for e in found] == [
        ("a", ["real"], "val", ()),
        ("b", ["real"], None, ()),
        ("c", ["real"], None, ()),
    ]


def test_a_text_or_record_may_have_the_whole_name_of_its_image(
    write_tar: Callable[..., Path], entries: Callable[..., list[Entry]], jpeg: Callable[..., bytes]
) -> None:
    members = [
        *[("a.jpg", jpeg(0)), ("a.jpg.txt", b"real")],
        *[("b.JPG.json", b'{"caption": "real", "split": "val"}'), ("b.JPG", jpeg(1))],
        *[("c.jpg", jpeg(2)), ("c.jpg.caption.txt", b"real"), ("c.jpg.json", b'{"n": 1}')],
        *[("d.jpg", jpeg(3)), ("d.jpg.txt", b"real"), ("d.txt", b"other"), ("d.json", b'{"n": 1}')],
        *[("e.png.txt", b"other"), ("e.jpg", jpeg(4)), ("e.txt", b"real")],
        *[("f.left.jpg", jpeg(5)), ("f.left.jpg.txt", b"real")],
        *[("g.image.png", jpeg(6)), ("g.image.png.txt", b"real")],
        *[("h.jpg", jpeg(7)), ("h.jpg.json", b" "), ("h.json", b'{"text": "real"}')],
    ]
    found = [e for e in entries(write_tar("x.tar", members)) if isinstance(e, Found)]
    assert [(e.key, e.captions, e.split, e.meta) for e in found] == [
        ("a", ["real"], None, {}),
        ("b", ["real"], "val", {}),
        ("c", ["real"], None, {"n": 1}),
        ("d", ["real"], None, {"n": 1}),
        ("e", ["real"], None, {}),
        ("f.left", ["real"], None, {}),
        ("g", ["real"], None, {}),
        ("h", ["real"], None, {}),
    ]
    assert sum(entry.num_records for entry in found) == len(members)
    remarks = {r.where.rpartition(" ")[2]: r.detail for e in found for r in e.remarks}
    assert remarks == {
        "d.txt": "says something else than .jpg.txt, which counts",
        "e.png.txt": "the text of another image, which is not here",
    }


def test_a_text_of_another_image_is_no_caption(
    tmp_path: Path, write_tar: WriteTar, jpeg: Callable[..., bytes], samples: Samples
) -> None:
    members = [*samples(0, 1), ("b.jpg", jpeg(1)), ("b.png.txt", b"of b.png"), ("c.jpg.txt", b"x")]
    report, rows = _import(write_tar("a.tar", members), tmp_path / "t")
    assert len(rows) == 1
    assert report.skipped == {"missing caption": 2, "missing image": 1}
