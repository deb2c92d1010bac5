import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from openblip.cli import main
from openblip.runtime.errors import DataError, OpenBlipError, OpenBlipWarning, RecipeError
from openblip.sources import import_pairs
from openblip.sources.export import FORMATS, WRITERS, ExportReport, export_pairs
from openblip.sources.export_formats import write_jsonl
from openblip.table.rows import row_schema
from openblip.table.table import PairRow, PairTable
from openblip.table.versions import lance_library
from openblip.table.views import CaptionView

Jpeg = Callable[..., bytes]
ALL = ("human", "web", "synthetic")
OTHER_ORIGIN = "texts of another origin"
# What an export adds to the metadata of a row.
_ADDED = {"caption_sources", "caption_itm", "caption_captioners", "file_name", "width", "height"}


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (5, 7), "teal").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def bootstrapped(tmp_path: Path, jpeg: Jpeg) -> PairTable:
    """Rows as CapFilt leaves them: a human one, two web ones, one of another split."""
    rows = [
        PairRow("plain", jpeg(0), captions=["h0", "h1"], origin="human", meta={"label": "cat"}),
        PairRow("images/a.b.jpg", jpeg(1), captions=["w1", "ünïcode"], meta={"n": [1, 2]}),
        PairRow("../up", _png(), captions=["w2"]),
        PairRow("other", jpeg(3), captions=["v"], split="val"),
    ]
    table = PairTable.create(tmp_path / "pairs.lance", rows, {"capfilt": '{"filter": "f00d"}'})
    table.add_columns(
        pa.table(
            {
                "captions_itm": [[0.75, 0.25], [0.875, 0.25], [0.125], [0.5]],
                "synthetic": [None, ["s1"], ["s2"], ["s3"]],
                "synthetic_itm": [None, [0.625], [0.25], [0.5]],
                "synthetic_captioner": [None, ["cafe"], ["cafe"], ["cafe"]],
            }
        )
    )
    return table


def _export(table: PairTable, place: Path, form: str, **options: Any) -> ExportReport:
    view = CaptionView(
        sources=options.pop("sources", ALL if "synthetic" in table.columns else ALL[:2]),
        itm=options.pop("itm", None),
        split=options.pop("split", "train"),
    )
    return export_pairs(table, place, form, view, show_progress=False, **options)


def _reimported(place: Path) -> dict[str, dict[str, Any]]:
    """Rows of an import of `place`, by id; everything must have been taken over."""
    table = place.with_name(f"{place.name}.lance")
    report = import_pairs(place, table, show_progress=False)
    # What an export says of itself is no pair, and is told as what it is.
    assert set(report.skipped) <= {"other file"}, report.to_text()
    rows = [row for batch in PairTable.open(table).scan() for row in batch.to_pylist()]
    for row in rows:
        row["meta"] = json.loads(row["meta"])
    return {row["id"]: row for row in rows}


@pytest.mark.parametrize("form", FORMATS)
def test_an_import_reads_an_export_back(form: str, bootstrapped: PairTable, tmp_path: Path) -> None:
    _export(bootstrapped, tmp_path / "out", form)
    rows = _reimported(tmp_path / "out")
    expected = bootstrapped.take(range(3)).to_pylist()
    assert list(rows) == [row["id"] for row in expected]
    for row in expected:
        again = rows[row["id"]]
        assert again["image"] == row["image"]
        assert again["split"] == row["split"]
        assert again["captions"] == row["captions"] + (row["synthetic"] or [])
        own = {name: value for name, value in again["meta"].items() if name not in _ADDED}
        assert own == json.loads(row["meta"])


def origins(table: PairTable) -> dict[str, str]:
    rows = [row for batch in table.scan(["id", "origin"]) for row in batch.to_pylist()]
    return {row["id"]: row["origin"] for row in rows}


@pytest.mark.parametrize("form", ["webdataset", "parquet", "jsonl", "huggingface"])
def test_an_import_knows_who_wrote_the_texts_of_an_export(
    form: str, bootstrapped: PairTable, tmp_path: Path
) -> None:
    view = CaptionView(sources=("human", "web", "synthetic"))
    export_pairs(bootstrapped, tmp_path / "out", form, view, show_progress=False)

    def imported(name: str, origin: str | None) -> tuple[dict[str, str], int]:
        report = import_pairs(tmp_path / "out", tmp_path / name, origin=origin, show_progress=False)
        return origins(PairTable.open(tmp_path / name)), report.noted.get(OTHER_ORIGIN, 0)

    before = origins(bootstrapped)
    after, num_noted = imported("told", None)
    assert after == {key: before[key] for key in after}
    assert set(after.values()) == {"human", "web"}
    num_web = sum(origin == "web" for origin in after.values())
    assert 0 < num_noted <= num_web
    assert imported("human", "human") == (dict.fromkeys(after, "human"), num_web)


@pytest.mark.parametrize("form", ["webdataset", "parquet", "jsonl"])
def test_a_text_keeps_its_source_and_its_score(
    form: str, bootstrapped: PairTable, tmp_path: Path
) -> None:
    _export(bootstrapped, tmp_path / "out", form)
    meta = _reimported(tmp_path / "out")["images/a.b.jpg"]["meta"]
    assert meta["caption_sources"] == ["web", "web", "synthetic"]
    assert meta["caption_itm"] == [0.875, 0.25, 0.625]
    assert meta["caption_captioners"] == [None, None, "cafe"]


@pytest.mark.parametrize("form", FORMATS)
def test_the_threshold_decides_what_stays(
    form: str, bootstrapped: PairTable, tmp_path: Path
) -> None:
    report = _export(bootstrapped, tmp_path / "out", form, itm=0.5)
    rows = _reimported(tmp_path / "out")
    assert {key: row["captions"] for key, row in rows.items()} == {
        "plain": ["h0", "h1"],
        "images/a.b.jpg": ["w1", "s1"],
    }
    assert (report.num_images, report.num_without_text) == (2, 1)
    assert report.num_texts == {"human": 2, "web": 1, "synthetic": 1}


def test_sources_and_split_decide_too(bootstrapped: PairTable, tmp_path: Path) -> None:
    _export(bootstrapped, tmp_path / "s", "jsonl", sources=("synthetic",))
    assert {k: r["captions"] for k, r in _reimported(tmp_path / "s").items()} == {
        "images/a.b.jpg": ["s1"],
        "../up": ["s2"],
    }
    _export(bootstrapped, tmp_path / "v", "coco", split="val", sources=("web",))
    (row,) = _reimported(tmp_path / "v").values()
    assert (row["id"], row["split"], row["captions"]) == ("other", "val", ["v"])


@pytest.mark.parametrize(
    ("form", "source", "is_told"),
    [("coco", "synthetic", True), ("coco", "web", False), ("jsonl", "synthetic", False)],
)
def test_what_cannot_say_who_wrote_a_text_says_that(
    bootstrapped: PairTable, tmp_path: Path, form: str, source: str, is_told: bool
) -> None:
    report = _export(bootstrapped, tmp_path / "out", form, sources=(source,))
    assert ("COCO has no place for who wrote a text" in report.to_text()) == is_told
    (row, *_) = _reimported(tmp_path / "out").values()
    assert row["origin"] == "web"


def test_members_of_a_tar_are_an_image_a_text_and_a_record(
    bootstrapped: PairTable, tmp_path: Path
) -> None:
    _export(bootstrapped, tmp_path / "out", "webdataset")
    unsafe = [hashlib.sha256(name).hexdigest() for name in (b"images/a.b.jpg", b"../up")]
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        names = tar.getnames()
        text, record = (tar.extractfile(f"{unsafe[0]}.{kind}") for kind in ("txt", "json"))
        assert text
        assert record
        assert text.read() == b"w1"
        assert json.load(record) == {
            "n": [1, 2],
            "id": "images/a.b.jpg",
            "caption": "w1",
            "captions": ["w1", "ünïcode", "s1"],
            "caption_sources": ["web", "web", "synthetic"],
            "caption_itm": [0.875, 0.25, 0.625],
            "caption_captioners": [None, None, "cafe"],
            "split": "train",
        }
    # The ending is that of the first image's bytes, also for the last, a PNG: `datasets` would take
    # it for a sample without an image.
    keys = ["plain", *unsafe]
    assert names == [f"{key}{kind}" for key in keys for kind in (".jpg", ".txt", ".json")]


def _num_members(file: Path) -> int:
    with tarfile.open(file) as tar:
        return len(tar.getnames())


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_files_hold_at_most_the_asked_number_of_images(
    form: str, table: PairTable, tmp_path: Path
) -> None:
    _export(table, tmp_path / "out", form, shard_size=8)
    files = sorted((tmp_path / "out").glob("0*"))
    assert [file.stem for file in files] == ["00000", "00001", "00002"]
    if form == "parquet":
        assert [parquet.read_metadata(file).num_rows for file in files] == [8, 8, 4]
    else:
        assert [_num_members(file) for file in files] == [24, 24, 12]
    assert list(_reimported(tmp_path / "out")) == [f"r{number}" for number in range(20)]


@pytest.mark.parametrize(
    ("ids", "numbers"), [(["7", "391895"], [7, 391895]), (["7", "007"], [1, 2])]
)
def test_coco_ids_are_numbers_those_of_the_table_if_possible(
    ids: list[str], numbers: list[int], jpeg: Jpeg, tmp_path: Path
) -> None:
    rows = [PairRow(key, jpeg(int(key)), captions=["a", "b"]) for key in ids]
    table = PairTable.create(tmp_path / "pairs.lance", rows)
    _export(table, tmp_path / "out", "coco")
    document = json.loads((tmp_path / "out" / "captions_train.json").read_text())
    assert [image["id"] for image in document["images"]] == numbers
    assert [note["image_id"] for note in document["annotations"]] == [
        n for n in numbers for _ in "ab"
    ]
    assert [note["id"] for note in document["annotations"]] == [1, 2, 3, 4]
    assert document["images"][0]["width"] == 24
    assert list(_reimported(tmp_path / "out")) == ids


def test_the_tools_for_coco_read_an_export(table: PairTable, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    _export(table, tmp_path / "out", "coco")
    read = coco.COCO(str(tmp_path / "out" / "captions_train.json"))
    texts = [
        [note["caption"] for note in read.loadAnns(read.getAnnIds(imgIds=number))]
        for number in read.getImgIds()
    ]
    assert texts == [[f"picture number {n}", f"this is {n}"] for n in range(20)]


@pytest.fixture
def with_files(tmp_path: Path, jpeg: Jpeg) -> PairTable:
    """Images in files: whole, cut off, and gone."""
    (tmp_path / "whole.jpg").write_bytes(jpeg(1))
    (tmp_path / "cut.jpg").write_bytes(jpeg(2)[:-200])
    names = ("whole", "cut", "gone")
    rows = [
        PairRow(name, image_uri=str(tmp_path / f"{name}.jpg"), captions=[name]) for name in names
    ]
    return PairTable.create(tmp_path / "files.lance", rows)


@pytest.mark.parametrize("form", FORMATS)
def test_images_in_files_are_read_and_unreadable_ones_counted(
    form: str, with_files: PairTable, jpeg: Jpeg, tmp_path: Path
) -> None:
    report = _export(with_files, tmp_path / "out", form)
    (row,) = _reimported(tmp_path / "out").values()
    assert (row["id"], row["image"]) == ("whole", jpeg(1))
    assert (report.num_images, report.num_unreadable) == (1, 2)
    assert [example.where for example in report.unreadable] == ["row 'cut'", "row 'gone'"]
    assert "No such file" in report.to_text()


def test_the_report_lies_beside_the_files(bootstrapped: PairTable, tmp_path: Path) -> None:
    _export(bootstrapped, tmp_path / "out", "parquet", itm=0.5)
    stored = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (stored["table"], stored["version"]) == (bootstrapped.uri, bootstrapped.version)
    assert stored["view"] == {
        "sources": list(ALL),
        "itm": 0.5,
        "split": "train",
        "score": "itm",
        "itm_of": [],
        "without": [],
        "weights": "equal",
        "weight_temperature": 1.0,
        "weight_floor": 0.0,
        "contrast_text": "any",
        "decoder_text": "any",
    }
    assert stored["table_metadata"] == {"capfilt": {"filter": "f00d"}}
    assert stored["num_texts"] == {"human": 2, "web": 1, "synthetic": 1}
    assert (stored["num_images"], stored["num_without_text"]) == (2, 1)


def test_an_earlier_export_is_replaced_only_when_asked(table: PairTable, tmp_path: Path) -> None:
    place = tmp_path / "out"
    place.mkdir()
    _export(table, place, "jsonl")
    with pytest.raises(DataError, match="--overwrite"):
        _export(table, place, "parquet")
    assert (place / "captions.jsonl").is_file()
    _export(table, place, "parquet", overwrite=True)
    assert sorted(file.name for file in place.iterdir()) == ["00000.parquet", "export.json"]


def test_what_is_no_export_is_never_replaced(table: PairTable, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="no export"):
        _export(table, tmp_path / "photos", "jsonl", overwrite=True)
    with pytest.raises(DataError, match="is a file"):
        _export(table, tmp_path / "photos" / "mine.txt", "jsonl", overwrite=True)
    assert (tmp_path / "photos" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_fails_leaves_nothing(
    form: str, table: PairTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(image: bytes, name: str) -> str:
        if name == "row 'r7'":
            raise KeyboardInterrupt
        return ".jpg"

    monkeypatch.setattr("openblip.sources.export.image_suffix", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _export(table, tmp_path / "out", form, num_threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.lance"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "hdf5"}, "unknown format"),
        ({"shard_size": 0}, "shard_size"),
        ({"split": "test"}, "no row in the split"),
    ],
)
def test_wrong_options_are_named(
    options: dict[str, Any], message: str, table: PairTable, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        _export(table, tmp_path / "out", **{"form": "jsonl", **options})


def test_the_command_exports_and_says_so(
    bootstrapped: PairTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "export", bootstrapped.uri, str(tmp_path / "out"), "--format", "coco"]
    assert main([*words, "--sources", "web", "synthetic", "--itm", "0.5"]) == 0
    printed = capsys.readouterr()
    assert "1 images with 1 web, 1 synthetic texts exported" in printed.out
    assert "exporting: 1 of 1 images" in printed.err
    assert main(words) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_the_command_fails_if_an_image_is_unreadable(
    with_files: PairTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "export", with_files.uri, str(tmp_path / "out"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["num_unreadable"] == 2
    assert (tmp_path / "out" / "00000.tar").is_file()


def test_of_two_exports_into_one_folder_one_is_refused(
    bootstrapped: PairTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path, pairs: Any, layout: Any) -> None:
        with pytest.raises(OpenBlipError, match="another process is writing an export into it"):
            _export(bootstrapped, tmp_path / "out", "jsonl")
        write_jsonl(folder, pairs, layout)

    monkeypatch.setitem(WRITERS, "coco", write)
    _export(bootstrapped, tmp_path / "out", "coco")
    assert (tmp_path / "out" / "captions.jsonl").is_file()
    with pytest.raises(DataError, match="already holds an export"):
        _export(bootstrapped, tmp_path / "out", "jsonl")


def test_a_table_in_which_an_id_is_there_twice_is_not_exported_under_one_name(
    tmp_path: Path, jpeg: Jpeg
) -> None:
    """Tables of others may hold such rows: of two images one would get the texts of both."""
    table = PairTable.create(tmp_path / "t", [PairRow("a", jpeg(0), captions=["x"])])
    same = PairTable.create(tmp_path / "same", [PairRow("a", jpeg(1), captions=["y"])])
    lance_library().write_dataset(same.dataset.to_table(), table.uri, mode="append")
    with pytest.raises(DataError, match="'a' is there twice"):
        _export(PairTable.open(table.uri), tmp_path / "out", "jsonl")


@pytest.mark.parametrize("form", FORMATS)
def test_half_a_surrogate_pair_in_metadata_stops_no_export(
    tmp_path: Path, jpeg: Jpeg, form: str
) -> None:
    """As a table of others may hold it, as an escape."""
    table = PairTable.create(tmp_path / "t", [PairRow("a", jpeg(0), captions=["x"])])
    rows = table.dataset.to_table().to_pylist()
    rows[0] |= {"id": "b", "meta": '{"title": "cut \\ud83d"}'}
    lance_library().write_dataset(
        pa.Table.from_pylist(rows, row_schema()), table.uri, mode="append"
    )
    report = _export(PairTable.open(table.uri), tmp_path / "out", form)
    assert report.num_images == 2
    assert set(_reimported(tmp_path / "out")) == {"a", "b"}


def test_any_list_of_captions_comes_back_from_every_format(tmp_path: Path, jpeg: Jpeg) -> None:
    parts = [*'a,[]"\\=| \n\r\t\ufeff\u2028\x0bü🐈{}', "'", "\r\n", "\n\n"]
    parts += ["line", "=1+1", "null", "NaN", '["a", "b"]']
    draw = random.Random(7)

    def text() -> str:
        drawn = "".join(draw.choices(parts, k=draw.randint(1, 6))).strip()
        return drawn or "x"

    lists = [["line1\nline2", "x"], ["\ufeffa", "b"], ['["a", "b"]'], ["a\nb"], ["a", "a\nb"]]
    lists += [[text() for _ in range(draw.randint(1, 4))] for _ in range(80)]
    rows = [PairRow(f"r{n}", jpeg(0), captions=texts) for n, texts in enumerate(lists)]
    table = PairTable.create(tmp_path / "t.lance", rows)
    for form in FORMATS:
        _export(table, tmp_path / form, form)
        found = {key: row["captions"] for key, row in _reimported(tmp_path / form).items()}
        assert [found.get(row.id) or found.get(_place(row)) for row in rows] == lists, form


def _place(row: PairRow) -> str:
    """The id of a row in an export of COCO's form, which is its place."""
    return str(int(row.id[1:]) + 1)


@pytest.mark.parametrize("form", ["webdataset", "parquet", "jsonl", "huggingface"])
def test_every_further_score_of_a_text_is_written(
    form: str, bootstrapped: PairTable, tmp_path: Path
) -> None:
    import pyarrow as pa

    rows = bootstrapped.take(range(len(bootstrapped))).to_pylist()
    lists = [None if r["captions_itm"] is None else [0.5 for _ in r["captions"]] for r in rows]
    made = [None if r["synthetic"] is None else [0.125 for _ in r["synthetic"]] for r in rows]
    kind = pa.list_(pa.float32())
    columns = {"captions_score_right": lists, "synthetic_score_right": made}
    columns["captions_score_common"] = lists
    bootstrapped.add_columns(pa.table({n: pa.array(v, kind) for n, v in columns.items()}))
    report = _export(PairTable.open(bootstrapped.uri), tmp_path / "out", form)
    assert report.scores == ("common", "right")
    key = next(k for k in _reimported(tmp_path / "out") if k.endswith("a.b.jpg"))
    meta = _reimported(tmp_path / "out")[key]["meta"]
    assert meta["caption_score_right"] == [0.5, 0.5, 0.125]
    assert meta["caption_score_common"] == [0.5, 0.5, None]


def test_a_source_that_contributes_nothing_is_warned_of(
    bootstrapped: PairTable, tmp_path: Path
) -> None:
    view = CaptionView(sources=("human", "web"), itm=1.0)
    with pytest.warns(OpenBlipWarning, match=r"none of \d web texts counts at itm=1\.0 "):
        export_pairs(bootstrapped, tmp_path / "out", "jsonl", view, show_progress=False)


def test_a_score_or_a_threshold_that_changes_nothing_is_refused(
    bootstrapped: PairTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "export", bootstrapped.uri, str(tmp_path / "out"), "--format", "jsonl"]
    assert main([*words, "--score", "itc"]) == 1
    assert "score is itc, which changes nothing without a threshold" in capsys.readouterr().err
    view = CaptionView(sources=("human",), itm=0.5)
    with pytest.raises(RecipeError, match=r"^itm is 0\.5.* sources human.*add web or synthetic"):
        export_pairs(bootstrapped, tmp_path / "out", "jsonl", view, show_progress=False)
    assert not (tmp_path / "out").exists()
    assert main([*words, "--itm", "0.5"]) == 0
