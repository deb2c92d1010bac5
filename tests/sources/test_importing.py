import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.runtime.errors import DataError
from openblip.sources.checking import ImportSettings, Store
from openblip.sources.export import export_pairs
from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport, Reason, is_import_state
from openblip.sources.row_images import stream_images
from openblip.sources.source import SourceOptions
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView


@pytest.fixture
def source(write_jsonl: Callable[..., Path]) -> Path:
    """Ten images; the last but one is broken, the first comes again at the end."""
    records = [{"image": f"images/{n}.jpg", "captions": [f"text {n}"]} for n in (*range(10), 0)]
    source = write_jsonl(records)
    (source / "images" / "8.jpg").write_text("broken")
    return source


def _ids(uri: Path) -> list[str]:
    return [key for batch in PairTable.open(uri).scan(["id"]) for key in batch["id"].to_pylist()]


def _stored_reports(table: PairTable) -> list[ImportReport]:
    states = [text for key, text in table.metadata.items() if is_import_state(key)]
    return [ImportReport.from_dict(json.loads(state)["report"]) for state in states]


@pytest.mark.parametrize("num_threads", [1, 5])
def test_rows_keep_the_order_of_the_source(source: Path, tmp_path: Path, num_threads: int) -> None:
    import_pairs(source, tmp_path / "t", num_threads=num_threads, show_progress=False)
    assert _ids(tmp_path / "t") == [f"images/{n}.jpg" for n in (*range(8), 9)]


def test_the_report_is_returned_stored_and_rendered(source: Path, tmp_path: Path) -> None:
    report = import_pairs(source, tmp_path / "t", show_progress=False)
    assert _stored_reports(PairTable.open(tmp_path / "t")) == [report]
    assert ImportReport.from_json(report.to_json()) == report
    text = report.to_text()
    assert "9 rows with 9 captions imported" in text
    assert "left out: 2" in text
    assert "unreadable image: 1\n    captions.jsonl line 9, images/8.jpg: " in text
    assert "duplicate id: 1\n    captions.jsonl line 11, images/0.jpg: " in text


def test_an_empty_name_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the name of the source is empty"):
        import_pairs("", tmp_path / "t")


def test_a_source_with_nothing_in_it_says_so(
    write_tar: Callable[..., Path], tmp_path: Path
) -> None:
    (coco := tmp_path / "captions.json").write_text('{"images": [], "annotations": []}')
    for source in (write_tar("a.tar", []), coco):
        report = import_pairs(source, tmp_path / "t", show_progress=False)
        assert report.skipped == {"empty file": 1}
        assert f"{source.name}: it holds no image and no record" in report.to_text()
        assert not (tmp_path / "t").exists()


def test_a_complete_import_is_not_repeated(source: Path, tmp_path: Path) -> None:
    first = import_pairs(source, tmp_path / "t", show_progress=False)
    version = PairTable.open(tmp_path / "t").version
    assert import_pairs(source, tmp_path / "t", show_progress=False) == first
    assert PairTable.open(tmp_path / "t").version == version


def test_an_import_in_steps_equals_one_in_one_go(source: Path, tmp_path: Path) -> None:
    whole = import_pairs(source, tmp_path / "whole", show_progress=False)
    for limit in (1, 4, 4, 8):
        report = import_pairs(
            source, tmp_path / "t", limit=limit, commit_rows=2, show_progress=False
        )
        assert (report.num_rows, report.complete) == (limit, False)
        assert len(PairTable.open(tmp_path / "t")) == limit
    report = import_pairs(source, tmp_path / "t", show_progress=False)
    assert _ids(tmp_path / "t") == _ids(tmp_path / "whole")
    assert (report.skipped, report.complete) == (whole.skipped, True)


def test_a_killed_import_carries_on_without_loss_or_duplicates(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    num_images = 300
    names = [f"images/{n}.jpg" for n in range(num_images)]
    source = write_jsonl([{"image": name, "captions": ["x"]} for name in names], num_images)
    uri = tmp_path / "t"
    call = f"import_pairs({str(source)!r}, {str(uri)!r}, commit_rows=4, show_progress=False)"
    code = f"from openblip.sources.importing import import_pairs; {call}"
    child = subprocess.Popen([sys.executable, "-c", code])
    versions = uri / "_versions"
    while child.poll() is None and not (versions.is_dir() and len(list(versions.iterdir())) > 9):
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    num_before = len(PairTable.open(uri))
    assert 4 <= num_before < num_images
    report = import_pairs(source, uri, commit_rows=100, show_progress=False)
    assert _ids(uri) == names
    assert (report.num_rows, report.num_skipped, report.complete) == (num_images, 0, True)


def test_a_second_source_is_appended_and_its_known_ids_are_left_out(
    source: Path, tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    import_pairs(source, tmp_path / "t", show_progress=False)
    other = tmp_path / "human"
    (other / "images").mkdir(parents=True)
    for name in ("0.jpg", "new.jpg"):
        (other / "images" / name).write_bytes(jpeg(77))
    records = [{"image": f"images/{name}", "captions": ["h"]} for name in ("0.jpg", "new.jpg")]
    (other / "captions.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    report = import_pairs(other, tmp_path / "t", origin="human", show_progress=False)
    assert (report.num_rows, report.skipped) == (1, {"duplicate id": 1})
    table = PairTable.open(tmp_path / "t")
    assert table.take([9], ["id", "origin"]).to_pylist() == [
        {"id": "images/new.jpg", "origin": "human"}
    ]
    assert {found.num_rows for found in _stored_reports(table)} == {9, 1}


def test_a_source_of_damage_only_makes_no_table_and_says_what_was_in_it(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    source = write_jsonl(["{", "{"])
    report = import_pairs(source, tmp_path / "t", show_progress=False)
    assert (report.num_rows, report.skipped, report.complete) == (0, {"bad record": 2}, True)
    assert "nothing in it could be used" in report.to_text()
    assert not (tmp_path / "t").exists()


def test_a_folder_of_which_nothing_is_usable_says_what_was_in_it(tmp_path: Path) -> None:
    (tmp_path / "papers" / "more").mkdir(parents=True)
    for name in ("notes.docx", "more/slides.pdf", ".DS_Store"):
        (tmp_path / "papers" / name).write_bytes(b"%PDF-1.7")
    report = import_pairs(tmp_path / "papers", tmp_path / "t", show_progress=False)
    assert (report.num_rows, report.num_seen, report.complete) == (0, 3, True)
    assert report.skipped == {"other file": 2, "hidden file": 1}
    assert "more/slides.pdf: a PDF" in report.to_text()
    assert not (tmp_path / "t").exists()


def test_what_was_seen_was_used_or_left_out(source: Path, tmp_path: Path) -> None:
    report = import_pairs(source, tmp_path / "t", show_progress=False)
    assert (report.num_seen, report.num_used, report.num_skipped) == (11, 9, 2)
    assert "left out: 2 of 11 files, members or records" in report.to_text()


def test_the_report_says_who_said_the_split(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    records = [{"image": f"images/{n}.jpg", "caption": "x"} for n in range(3)]
    source = write_jsonl([records[0] | {"split": "dev"}, records[1], records[2]])
    report = import_pairs(source, tmp_path / "t", show_progress=False)
    assert report.split_from == {
        "val": {"a field of the record": 1},
        "train": {"nothing says otherwise": 2},
    }
    assert "splits: val 1 (a field of the record), train 2" in report.to_text()


def test_contradicting_splits_are_left_out_with_both_names(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    source = write_jsonl([{"image": "images/0.jpg", "caption": "x", "split": "train"}])
    (source / "captions.jsonl").rename(source / "test.jsonl")
    report = import_pairs(source / "test.jsonl", tmp_path / "t", show_progress=False)
    assert report.skipped == {"contradiction": 1}
    assert "says 'train', but test.jsonl says 'test'" in report.examples["contradiction"][0].detail


def test_a_source_that_was_imported_says_that_nothing_was_read_or_is_read_again(
    source: Path, tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    import_pairs(source, tmp_path / "t", show_progress=False)
    (source / "images" / "8.jpg").write_bytes(jpeg(8))
    with (source / "captions.jsonl").open("a") as file:
        file.write(json.dumps({"image": "images/10.jpg", "caption": "new"}) + "\n")
    (source / "images" / "10.jpg").write_bytes(jpeg(10))
    report = import_pairs(source, tmp_path / "t", show_progress=False)
    assert report.nothing_read
    assert "nothing read now: --again" in report.to_text()
    assert len(PairTable.open(tmp_path / "t")) == 9
    # In steps, as after a stop: it stays one reading.
    import_pairs(source, tmp_path / "t", again=True, limit=1, show_progress=False)
    report = import_pairs(source, tmp_path / "t", again=True, show_progress=False)
    assert (report.num_rows, report.nothing_read) == (2, False)
    assert report.skipped == {"already in the table": 10}
    assert _ids(tmp_path / "t")[-2:] == ["images/8.jpg", "images/10.jpg"]


def test_a_text_that_has_changed_since_it_was_imported_is_told_and_not_taken(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    records = [{"image": f"images/{n}.jpg", "captions": [f"text {n}"]} for n in range(3)]
    source = write_jsonl(records)
    import_pairs(source, tmp_path / "t", show_progress=False)
    records[1]["captions"] = ["text 1", "and more"]
    records.append({"image": "images/0.jpg", "captions": ["text 0"]})
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, records)))
    report = import_pairs(source, tmp_path / "t", again=True, show_progress=False)
    assert report.skipped == {
        "already in the table": 3,
        Reason.OTHER_CONTENT: 1,
    }
    assert (report.num_rows, report.num_known) == (0, 4)
    (example,) = report.examples[Reason.OTHER_CONTENT]
    assert example.where.endswith("images/1.jpg")
    told = "in the table with another image, other texts or in another split"
    told += "; here: 'text 1', 'and more', train"
    assert example.detail == f"id 'images/1.jpg' is {told}"
    assert "rows stay as they are" in report.to_text()
    assert "into a new table" in report.to_text()
    assert _texts(tmp_path / "t")["images/1.jpg"] == "text 1"
    assert PairTable.open(tmp_path / "t").take([1]).to_pylist()[0]["captions"] == ["text 1"]


@pytest.mark.parametrize("store", ["bytes", "uri"])
def test_an_image_that_was_exchanged_is_told_where_the_row_holds_the_old_one(
    source: Path, tmp_path: Path, jpeg: Callable[..., bytes], store: Store
) -> None:
    import_pairs(source, tmp_path / "t", store=store, show_progress=False)
    # Of the same size.
    (source / "images" / "1.jpg").write_bytes(jpeg(99))
    report = import_pairs(source, tmp_path / "t", store=store, again=True, show_progress=False)
    examples = report.examples.get(Reason.OTHER_CONTENT, [])
    assert [one.where.endswith("images/1.jpg") for one in examples] == [True] * (store == "bytes")


def test_a_split_that_has_changed_is_told_too(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    records = [{"image": f"images/{n}.jpg", "captions": [f"text {n}"]} for n in range(2)]
    source = write_jsonl(records)
    import_pairs(source, tmp_path / "t", show_progress=False)
    records[1]["split"] = "test"
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, records)))
    report = import_pairs(source, tmp_path / "t", again=True, show_progress=False)
    ((_, (example,)),) = [one for one in report.examples.items() if "another split" in one[0]]
    assert example.detail.endswith("here: 'text 1', test")


def test_a_text_whose_characters_were_replaced_is_told(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    texts = ["cut \ud83d", "good"]
    records = [{"image": f"images/{n}.jpg", "caption": text} for n, text in enumerate(texts)]
    report = import_pairs(write_jsonl(records), tmp_path / "table")

    assert report.noted == {"characters replaced": 1}
    assert "stored as 'cut ?'" in report.to_text()


def test_only_the_first_examples_are_kept(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    report = import_pairs(write_jsonl(["{"] * 25), tmp_path / "t", show_progress=False)
    assert len(report.examples["bad record"]) == 10
    assert "and 15 more" in report.to_text()


def test_progress_is_shown_in_plain_lines(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_pairs(source, tmp_path / "t")
    assert "importing jsonl: 11 of 11 rows" in capsys.readouterr().err


def test_a_place_that_is_no_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none does not exist: give a folder with captions"):
        import_pairs(tmp_path / "none", tmp_path / "t")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"not a known source.*it is empty"):
        import_pairs(tmp_path / "empty", tmp_path / "t")
    (tmp_path / "a.tar.zst").touch()
    with pytest.raises(DataError, match=r"a\.tar\.zst is an archive of a kind that is not read"):
        import_pairs(tmp_path / "a.tar.zst", tmp_path / "t")
    with pytest.raises(DataError, match="no pair table"):
        PairTable.open(tmp_path / "t")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "zip"}, "unknown format 'zip': give one of jsonl, folder"),
        ({"format": "webdataset"}, "not a source of the format 'webdataset'; in it are captions"),
        ({"origin": "machine"}, "origin must be one of web, human"),
        ({"split": "dev"}, "split must be one of train, val, test"),
    ],
)
def test_wrong_options_are_named(
    source: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        import_pairs(source, tmp_path / "t", **options)


def test_real_photographs(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "flickr8k"
    report = import_pairs(source, tmp_path / "t", origin="human", limit=200, show_progress=False)
    assert (report.num_rows, report.num_captions, report.num_skipped) == (200, 1000, 0)
    record = PairTable.open(tmp_path / "t").take([0], ["width", "height", "captions"]).to_pylist()
    assert (record[0]["width"], record[0]["height"]) == (224, 224)
    assert len(record[0]["captions"]) == 5


def test_names_that_differ_in_bytes_that_are_no_utf8_stay_different(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    for number, stem in enumerate(("caf\udce9", "caf\udce8")):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{stem}.jpg").write_bytes(jpeg(number))
        (tmp_path / "photos" / f"{stem}.txt").write_text(f"text {number}")
    (tmp_path / "photos" / "bad\udcff.jpg").write_text("no image")
    (tmp_path / "photos" / "bad\udcff.txt").write_text("text")
    report = import_pairs(tmp_path / "photos", tmp_path / "t", store="uri", show_progress=False)
    report.to_text().encode()
    # And the text beside it.
    assert report.skipped == {"unreadable image": 2}
    table = PairTable.open(tmp_path / "t")
    rows = table.take([0, 1], ["id", "captions"]).to_pylist()
    assert rows == [
        {"id": r"caf\xe8", "captions": ["text 1"]},
        {"id": r"caf\xe9", "captions": ["text 0"]},
    ]
    assert len(list(stream_images(table, [0, 1]))) == 2


_BYTE, _SPELT = "caf\udce9", r"caf\xe9"


def _photo(folder: Path, stem: str, image: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{stem}.jpg").write_bytes(image)
    (folder / f"{stem}.txt").write_text(ascii(stem))
    return folder


def _texts(uri: Path) -> dict[str, str]:
    rows = PairTable.open(uri).scan(["id", "captions"])
    return {row["id"]: row["captions"][0] for batch in rows for row in batch.to_pylist()}


@pytest.mark.parametrize("folders", [("a", "a"), ("a", "b"), ("b", "a")])
def test_a_name_that_spells_an_escape_is_another_than_the_one_with_the_byte(
    tmp_path: Path, jpeg: Callable[..., bytes], folders: tuple[str, str]
) -> None:
    for number, (folder, stem) in enumerate(zip(folders, (_BYTE, _SPELT), strict=True)):
        _photo(tmp_path / folder, stem, jpeg(number))
    for folder in sorted(set(folders)):
        report = import_pairs(tmp_path / folder, tmp_path / "t", show_progress=False)
        assert report.skipped == {}
    stored = {r"caf\xe9": ascii(_BYTE), r"caf\x5cxe9": ascii(_SPELT)}
    assert _texts(tmp_path / "t") == stored
    for folder in sorted(set(folders)):
        again = import_pairs(tmp_path / folder, tmp_path / "t", again=True, show_progress=False)
        assert again.num_rows == 0
    # What is exported comes back under the same ids.
    for form in ("webdataset", "coco", "jsonl", "parquet"):
        out = tmp_path / form
        export_pairs(PairTable.open(tmp_path / "t"), out, form, CaptionView(), show_progress=False)
        import_pairs(out, tmp_path / f"{form}.lance", show_progress=False)
        assert _texts(tmp_path / f"{form}.lance") == stored, form


def test_rows_of_an_older_table_are_known_by_the_ids_that_they_have(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    folder = _photo(tmp_path / "a", _SPELT, jpeg(0))
    # It was stored as it is spelt.
    PairTable.create(tmp_path / "t", [PairRow(_SPELT, jpeg(0), captions=["old"])])
    report = import_pairs(folder, tmp_path / "t", show_progress=False)
    assert (report.num_rows, report.skipped) == (0, {"duplicate id": 2})
    _photo(folder, r"new\xe9", jpeg(1))
    again = import_pairs(folder, tmp_path / "t", again=True, show_progress=False)
    assert (again.num_rows, again.skipped) == (1, {"already in the table": 2})
    assert _texts(tmp_path / "t").keys() == {_SPELT, r"new\x5cxe9"}


@pytest.mark.parametrize("ids", ["key", pytest.param("sha256", marks=pytest.mark.slow)])
def test_imports_at_the_same_time_never_give_one_id_to_two_rows(
    tmp_path: Path, write_jsonl: Callable[..., Path], ids: str
) -> None:
    records = [{"image": f"images/{n}.jpg", "captions": ["x"]} for n in range(60)]
    source = write_jsonl(records, 60)
    call = f"import_pairs({str(source)!r}, {str(tmp_path / 't')!r}, ids={ids!r}, commit_rows=5"
    code = f"from openblip.sources.importing import import_pairs; {call}, show_progress=False)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        if process.returncode:
            assert "at the same time" in said.splitlines()[-1]
    assert len(set(_ids(tmp_path / "t"))) == len(_ids(tmp_path / "t"))
    # What was stopped goes on.
    report = import_pairs(source, tmp_path / "t", ids=ids, show_progress=False)
    assert report.complete
    assert sorted(set(_ids(tmp_path / "t"))) == sorted(_ids(tmp_path / "t"))
    assert len(PairTable.open(tmp_path / "t")) == 60


def test_two_sources_at_the_same_time_both_come_into_a_new_table(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    processes = []
    for source in ("left", "right"):
        (tmp_path / source).mkdir()
        for number in range(30):
            (tmp_path / source / f"{source}-{number}.jpg").write_bytes(jpeg(number))
            (tmp_path / source / f"{source}-{number}.txt").write_text("text")
        call = f"import_pairs({str(tmp_path / source)!r}, {str(tmp_path / 't')!r}, commit_rows=3"
        code = f"from openblip.sources.importing import import_pairs; {call})"
        processes.append(subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE))
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    expected = {f"{source}-{number}" for source in ("left", "right") for number in range(30)}
    assert set(_ids(tmp_path / "t")) == expected
    assert len(_ids(tmp_path / "t")) == 60


def test_an_import_is_known_by_the_same_name_in_every_version() -> None:
    options = SourceOptions(caption_column="x")
    settings = ImportSettings(
        source="/a",
        format=None,
        origin="web",
        split=None,
        store="bytes",
        ids="key",
        options=options,
    )
    # What is said for the first time since makes another import of it.
    assert settings.fingerprint() == "a5003748a8298920"
    named = replace(options, columns=("image", "x"))
    assert replace(settings, options=named).fingerprint() != "a5003748a8298920"


def test_an_import_that_came_to_nothing_is_read_anew(source: Path, tmp_path: Path) -> None:
    import_pairs(source, tmp_path / "t", show_progress=False)
    for _ in range(2):
        report = import_pairs(source, tmp_path / "t", origin="human", show_progress=False)
        assert (report.num_rows, report.nothing_read) == (0, False)
        assert report.skipped == {"duplicate id": 10, "unreadable image": 1}
    (source / "images" / "8.jpg").write_bytes((source / "images" / "7.jpg").read_bytes())
    report = import_pairs(source, tmp_path / "t", origin="human", show_progress=False)
    assert report.num_rows == 1


def test_whether_there_are_no_captions_by_the_sources_word_is_told(
    source: Path, tmp_path: Path
) -> None:
    records = [
        {"image": "images/0.jpg", "captions": []},
        {"image": "images/1.jpg"},
    ]
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, records)))
    for number in range(2, 10):
        (source / "images" / f"{number}.jpg").unlink()
    report = import_pairs(source, tmp_path / "t", without_captions=True, show_progress=False)
    said = [example.detail for example in report.examples["imported without captions"]]
    assert said == ["the source says that there are none", "there is no text of it"]


def test_a_name_shows_no_command_for_the_terminal(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    (source / "\x1b[31mred\n.jpg").write_bytes(b"no image")
    (source / "a.txt").write_text("a text")
    shown = import_pairs(source, tmp_path / "t", show_progress=False).to_text()
    assert "\x1b" not in shown
    assert r"\x1b[31mred\n.jpg" in shown
