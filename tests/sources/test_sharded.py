"""An import by many workers gives the table and the report that one process gives."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from openblip.jobs.pools import RayCluster
from openblip.jobs.units import Unit
from openblip.runtime.errors import DataError, OpenBlipError, OpenBlipWarning, StorageError
from openblip.sources import folder as folder_module
from openblip.sources.checking import ImportSettings, Outcome
from openblip.sources.detect import open_source
from openblip.sources.importing import checks_of, import_pairs
from openblip.sources.report import ImportReport, Reason, is_import_state
from openblip.sources.sharded import ImportJob
from openblip.sources.source import SourceOptions
from openblip.sources.tars import TarSource
from openblip.table.rows import PairRow
from openblip.table.storage import ObjectFolder
from openblip.table.table import PairTable

from ..s3_server import S3Proxy

Tar = Callable[[Path, Sequence[tuple[str, bytes]]], None]


@pytest.fixture
def tar(write_tar: Callable[..., Path]) -> Tar:
    """Writes a tar of (name, content) members at a path."""

    def write(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tar("made.tar", members).rename(path)

    return write


@pytest.fixture
def shards(tmp_path: Path, tar: Tar, samples: Callable[..., Any]) -> Path:
    """Four tars: ids of the second are in the first, the third breaks off, one has a bad image."""
    source = tmp_path / "crawl"
    for number in range(4):
        tar(source / f"{number:05d}.tar", samples(4 * number, 5))
    whole = (source / "00002.tar").read_bytes()
    (source / "00002.tar").write_bytes(whole[: len(whole) // 2])
    bad = [("90000.jpg", b"no image"), ("90000.txt", b"x"), ("../out.jpg", b"x")]
    tar(source / "00003.tar", [*samples(12, 2), *bad, *samples(30, 2)])
    return source


@pytest.fixture
def mixed(shards: Path, tar: Tar, jpeg: Callable[..., bytes], samples: Callable[..., Any]) -> Path:
    """All that a folder may hold: tars, tables, lists, images with texts, and what is none."""
    (shards / "test").mkdir()
    tar(shards / "test" / "a.tar", samples(2, 3))
    images = [{"bytes": jpeg(n), "path": None} for n in (50, 51, 50)]
    texts = [f"cell {n}" for n in range(3)]
    rows = pa.table({"image": images, "caption": texts, "split": ["val", "train", "nowhere"]})
    parquet.write_table(rows, shards / "a.parquet")
    parquet.write_table(rows.slice(0, 1), shards / "b.parquet")
    for number in range(6):
        at = shards / "photos" / ("more" if number % 2 else "") / f"{number}.jpg"
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(jpeg(60 + number))
        at.with_suffix(".txt").write_text(f"beside {number}")
    records: list[dict[str, Any]] = [
        {"image": "0.jpg", "captions": ["of a list"], "split": "test"},
        {"image": "missing.jpg", "caption": "x"},
        {"image": "more/1.jpg", "caption": "cut \ud83d", "split": "train"},
        {"image": "more/1.jpg", "caption": "y", "split": "test"},
    ]
    lines = "\n".join(map(json.dumps, records))
    (shards / "photos" / "captions.jsonl").write_text(lines)
    (shards / "photos" / "more" / ".DS_Store").write_text("")
    (shards / "photos" / "notes.docx").write_text("no image")
    (shards / "photos" / "broken.jpg").write_text("no image")
    (shards / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: validation\n    path: photos/**\n---\n"
    )
    return shards


def _whole(uri: Path | str) -> tuple[list[Any], dict[str, Any]]:
    """All that is in a table, but for what tells when and where it was made."""
    table = PairTable.open(uri)
    states = {key: json.loads(text) for key, text in table.metadata.items()}
    assert all(map(is_import_state, states))
    for state in states.values():
        del state["version"]
        state["report"] = _told(ImportReport.from_dict(state["report"]))
    return [row for batch in table.scan() for row in batch.to_pylist()], states


def _told(report: ImportReport) -> str:
    values = asdict(report)
    for name in ("uri", "seconds", "completed"):
        del values[name]
    # With the order of all that is told.
    return json.dumps(values)


def _compare(
    source: Path | str, tmp_path: Path, processes: int = 1, **options: Any
) -> ImportReport:
    """Imports a source by one process and by several, and compares all that comes of it."""
    one, many = tmp_path / "one.lance", tmp_path / "many.lance"
    alone = import_pairs(source, one, show_progress=False, **options)
    together = import_pairs(source, many, processes=processes, show_progress=False, **options)
    assert _told(together) == _told(alone)
    assert together.num_seen == together.num_used + together.num_skipped
    assert _whole(many) == _whole(one)
    # Nothing is left of it but the lock.
    left = [path.name for path in Path(f"{many}.import").rglob("*") if path.is_file()]
    assert [name for name in left if not name.startswith(("lock", "latest"))] == []
    return together


@pytest.mark.parametrize(
    "options",
    [{}, {"ids": "sha256"}, {"split": "test", "origin": "human"}, {"without_captions": True}],
)
def test_tars_are_read_as_by_one_process(
    shards: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    _compare(f"{shards}/*.tar", tmp_path, **options)


@pytest.mark.parametrize(
    ("below", "options"), [("", {}), ("", {"ids": "sha256"}), ("photos", {"store": "uri"})]
)
def test_whatever_is_in_a_folder_is_read_as_by_one_process(
    mixed: Path,
    tmp_path: Path,
    below: str,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(folder_module, "_MANY_FILES", 3)
    monkeypatch.setattr(folder_module, "_MOST_FILES", 4)
    report = _compare(mixed / below, tmp_path, **options)
    assert len(report.splits) == (2 if below else 3)
    assert len(report.skipped) >= 4


def test_several_processes_read_side_by_side(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _compare(mixed, tmp_path, processes=2)
    assert "import" not in capsys.readouterr().err


def test_progress_tells_megabytes_and_images(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = import_pairs(f"{shards}/*.tar", tmp_path / "t", processes=1)
    told = capsys.readouterr().err
    assert "import: 4 of 4 MB, " in told
    # With those that another shard had, of three members each.
    images = report.num_rows + report.skipped["duplicate id"] // 3
    assert f" MB/s, images {images}, took " in told


def test_tables_of_text_and_of_bytes_are_read_as_by_one_process(
    mixed: Path, tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _compare(f"{mixed}/*.parquet", tmp_path / "bytes", ids="sha256")
    lists = tmp_path / "lists"
    lists.mkdir()
    for number in range(3):
        (lists / f"{number}.jpg").write_bytes(jpeg(number))
    # One image in two lists, which differ in its split; a list that is damaged; an empty one.
    (lists / "train.csv").write_text("image,caption\n0.jpg,a\n0.jpg,b\n1.jpg,c\n")
    (lists / "test.csv").write_text("image,caption\n1.jpg,d\n2.jpg,e\ngone.jpg,f\n")
    (lists / "more.csv").write_bytes(b'image,caption\n2.jpg,"\xff"\n2.jpg,g\n')
    (lists / "none.csv").write_text("image,caption\n")
    _compare(f"{lists}/*.csv", tmp_path / "texts")


def test_links_to_folders_are_followed_once(
    tmp_path: Path, jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = tmp_path / "photos", tmp_path / "other"
    for place in (source / "b", other / "in"):
        place.mkdir(parents=True)
        for number in range(3):
            (place / f"{number}.jpg").write_bytes(jpeg(number))
            (place / f"{number}.txt").write_text("text")
    (source / "a").symlink_to(other)
    (source / "c").symlink_to(other)
    monkeypatch.setattr(folder_module, "_MANY_FILES", 2)
    monkeypatch.setattr(folder_module, "_MOST_FILES", 2)
    _compare(source, tmp_path)


def test_a_table_grows_by_rows_whose_ids_are_new(
    shards: Path, tmp_path: Path, samples: Callable[..., Any], tar: Tar
) -> None:
    tar(tmp_path / "before.tar", samples(3, 6))
    for name in ("one", "many"):
        import_pairs(tmp_path / "before.tar", tmp_path / f"{name}.lance", show_progress=False)
    _compare(shards, tmp_path)


def test_a_source_is_read_again_for_what_is_new(
    shards: Path, tmp_path: Path, samples: Callable[..., Any], tar: Tar
) -> None:
    _compare(shards, tmp_path)
    report = import_pairs(shards, tmp_path / "many.lance", processes=1)
    assert report.nothing_read
    tar(shards / "00004.tar", samples(40, 2))
    _compare(shards, tmp_path, again=True)


def test_texts_that_have_changed_are_told_as_by_one_process(
    shards: Path, tmp_path: Path, samples: Callable[..., Any], tar: Tar
) -> None:
    tar(shards / "00005.tar", samples(50, 3))
    tar(shards / "00006.tar", samples(60, 2))
    _compare(shards, tmp_path)
    changed = [(name, data.replace(b"text 51", b"new 51")) for name, data in samples(50, 3)]
    tar(shards / "00005.tar", changed)
    tar(shards / "00007.tar", changed)
    report = _compare(shards, tmp_path, again=True)
    (example,) = report.examples[Reason.OTHER_CONTENT]
    assert example.detail.endswith("here: 'new 51', train")


def test_a_source_of_which_nothing_can_be_used_makes_no_table(tmp_path: Path, tar: Tar) -> None:
    for number in range(2):
        tar(tmp_path / "s" / f"{number}.tar", [("a.jpg", b"none"), ("a.txt", b"text")])
    report = import_pairs(tmp_path / "s", tmp_path / "t", processes=1)
    assert (report.num_rows, report.skipped, report.complete) == (0, {"unreadable image": 4}, True)
    assert not (tmp_path / "t").exists()
    for number in range(2):
        tar(tmp_path / "s" / f"{number}.tar", [])
    report = import_pairs(tmp_path / "s", tmp_path / "t", processes=1)
    assert report.skipped == {"empty file": 1}


@pytest.mark.parametrize("form", ["jsonl", "folder with a list", "one tar"])
def test_what_cannot_be_divided_is_read_by_one_process_which_is_said(
    tmp_path: Path,
    write_jsonl: Callable[..., Path],
    tar: Tar,
    samples: Callable[..., Any],
    form: str,
) -> None:
    source = write_jsonl([{"image": "images/0.jpg", "captions": ["a"]}])
    (source / "README.md").write_text("what it is")
    if form == "jsonl":
        source /= "captions.jsonl"
    if form == "one tar":
        tar(source := tmp_path / "a.tar", samples(0, 1))
    with pytest.warns(OpenBlipWarning, match="cannot be divided .*: it is read by one process"):
        report = import_pairs(source, tmp_path / "t", processes=2, show_progress=False)
    assert (report.num_rows, report.complete) == (1, True)


def _stopped_after(number: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of tars that are read, of which the last raises what Ctrl-C does."""
    read: list[str] = []
    whole = TarSource.entries_of

    def entries_of(source: TarSource, shard: Any) -> Iterator[Any]:
        read.append(shard.name)
        for place, entry in enumerate(whole(source, shard)):
            if len(read) == number and place == 1:
                raise KeyboardInterrupt
            yield entry

    monkeypatch.setattr(TarSource, "entries_of", entries_of)
    return read


def test_an_interrupted_import_keeps_its_finished_shards(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_pairs(f"{shards}/*.tar", tmp_path / "one.lance", show_progress=False)
    with monkeypatch.context() as patch:
        _stopped_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            import_pairs(f"{shards}/*.tar", tmp_path / "many.lance", processes=1)
    assert len(PairTable.open(tmp_path / "many.lance")) == 0
    read = _stopped_after(0, monkeypatch)
    import_pairs(f"{shards}/*.tar", tmp_path / "many.lance", processes=1)
    assert read == ["00002.tar", "00003.tar"]
    assert _whole(tmp_path / "many.lance") == _whole(tmp_path / "one.lance")


def test_an_import_goes_on_in_the_way_in_which_it_was_begun(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, uri = f"{shards}/*.tar", tmp_path / "t.lance"
    with pytest.raises(DataError, match="leave out --limit, or --processes and --ray"):
        import_pairs(source, uri, processes=2, limit=3)
    import_pairs(source, uri, limit=3, show_progress=False)
    with pytest.raises(
        DataError, match=r"one process has begun .*\(3 rows so far\): go on without"
    ):
        import_pairs(source, uri, processes=2)
    import_pairs(source, uri, show_progress=False)
    with monkeypatch.context() as patch:
        _stopped_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            import_pairs(source, uri, again=True, processes=1)
    with pytest.raises(DataError, match="several processes have begun to import it: go on with"):
        import_pairs(source, uri, show_progress=False)
    # That it was to be read again is remembered.
    report = import_pairs(source, uri, processes=1)
    assert set(report.skipped) >= {"already in the table"}
    assert (report.num_rows, report.complete) == (0, True)


def test_an_import_that_was_killed_behind_its_commit_is_complete(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, uri = f"{shards}/*.tar", tmp_path / "t.lance"
    with monkeypatch.context() as patch:
        patch.setattr("openblip.sources.importing.remove_job", _raise)
        with pytest.raises(KeyboardInterrupt):
            import_pairs(source, uri, processes=1)
    before = _whole(uri)
    assert import_pairs(source, uri, processes=1).nothing_read
    assert _whole(uri) == before
    assert list(Path(f"{uri}.import").glob("*/*")) == []


def _raise(*_: object) -> None:
    raise KeyboardInterrupt


def test_another_import_that_brings_the_same_ids_meanwhile_is_no_harm(
    shards: Path, tmp_path: Path, jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, uri = f"{shards}/*.tar", tmp_path / "t.lance"
    whole = PairTable.append_written

    def append_written(table: PairTable, *args: Any) -> None:
        rows = [PairRow(id="00001", image=jpeg(0), captions=["of another"])]
        PairTable.open(uri).append(rows)
        whole(table, *args)

    with monkeypatch.context() as patch:
        patch.setattr(PairTable, "append_written", append_written)
        with pytest.raises(DataError, match="has added the id '00001' at the same time"):
            import_pairs(source, uri, processes=1)
    report = import_pairs(source, uri, processes=1)
    ids = [row["id"] for row in _whole(uri)[0]]
    assert len(ids) == len(set(ids)) == report.num_rows + 1
    assert "00001.tar: 00004" in {found.where for found in report.examples["duplicate id"]}


def test_a_shard_that_kills_its_workers_is_named(shards: Path, tmp_path: Path) -> None:
    job = _job(f"{shards}/*.tar", tmp_path / "t")
    part = job.part(1)
    unit = Unit(
        part=1,
        digest=part.digest,
        num_rows=part.num_rows,
        version=0,
        batches=(0,),
        seals=True,
        blamed={0: "5 workers died"},
    )
    with pytest.raises(OpenBlipError, match=r"00001\.tar: 5 workers died; the other shards"):
        list(job.open_worker("cpu", 0.0, 1).compute(unit))


def test_rows_that_were_lost_before_the_commit_are_told(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _stopped_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            import_pairs(f"{shards}/*.tar", tmp_path / "t", processes=1)
    next((tmp_path / "t" / "data").glob("*.lance")).unlink()
    with pytest.raises(StorageError, match=r"1 files of rows that were read are gone.*: remove"):
        import_pairs(f"{shards}/*.tar", tmp_path / "t", processes=1)


def test_a_machine_that_does_not_have_a_shard_stops_the_import(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = TarSource.shards

    def then_gone(source: TarSource) -> list[Any]:
        found = listed(source)
        (shards / "00001.tar").unlink()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(TarSource, "shards", then_gone)
        with pytest.raises(OpenBlipError, match=r"00001\.tar is not there on .*: every"):
            import_pairs(f"{shards}/*.tar", tmp_path / "t", processes=1)


def test_rows_go_into_an_object_store(shards: Path, tmp_path: Path, s3: S3Proxy) -> None:
    one, many = f"{s3.bucket}/one.lance", f"{s3.bucket}/many.lance"
    source = f"{shards}/*.tar"
    alone = import_pairs(source, one, show_progress=False)
    with pytest.MonkeyPatch.context() as patch:
        _stopped_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            import_pairs(source, many, processes=1)
    together = import_pairs(source, many, processes=1)
    # Some ids are in several shards, so that fragments were read and written anew.
    assert "duplicate id" in together.skipped
    assert _told(together) == _told(alone)
    assert _whole(many) == _whole(one)
    left = ObjectFolder(f"{many}.import").names()
    assert [name for name in left if not name.startswith(("lock", "latest"))] == []


def _job(source: str, uri: Path) -> ImportJob:
    opened = open_source(source, options := SourceOptions())
    assert isinstance(opened, TarSource)
    settings = ImportSettings(
        source=source,
        format=None,
        origin=None,
        split=None,
        store="bytes",
        ids="key",
        options=options,
    )
    return ImportJob(
        str(uri), opened, tuple(opened.shards()), checks_of(settings, opened), again=False
    )


def test_a_result_is_read_back_as_it_was_written() -> None:
    notes = (("several columns of one name", "a.csv", "cut \ud83d"),)
    outcome = Outcome("a: b", 2, row_id="caf\udce9", split="train", num_captions=1, notes=notes)
    assert Outcome.from_json(outcome.to_json()) == outcome
    assert outcome.known(again=True).detail == r"id 'caf\udce9' is in the table"


CALL = """
from openblip.sources.importing import import_pairs
if __name__ == "__main__":
    import_pairs({source!r}, {uri!r}, processes={processes})
"""


def _begin(source: str, uri: Path, script: Path, processes: int) -> subprocess.Popen[bytes]:
    # From a file: processes that are spawned read the main module.
    script.write_text(CALL.format(source=source, uri=str(uri), processes=processes))
    words = [sys.executable, str(script)]
    # A suite in the background ignores Ctrl-C, and its processes would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, before)


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


@pytest.fixture
def many(tmp_path: Path, tar: Tar, samples: Callable[..., Any]) -> Path:
    """Twelve tars of sixty samples; two ids in each are those of the one before."""
    for number in range(12):
        tar(tmp_path / "many" / f"{number:05d}.tar", samples(58 * number, 60))
    return tmp_path / "many"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for child processes")
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_change_nothing(many: Path, tmp_path: Path, seed: int) -> None:
    draw, uri = random.Random(seed), tmp_path / "many.lance"
    import_pairs(many, tmp_path / "one.lance", show_progress=False)
    until = time.monotonic() + 100
    results = Path(f"{uri}.import")
    while time.monotonic() < until:
        driver = _begin(str(many), uri, tmp_path / "call.py", processes=2)
        finished, more = len(list(results.glob("*/results/*"))), draw.randrange(1, 4)
        while driver.poll() is None and time.monotonic() < until:
            time.sleep(draw.uniform(0.01, 0.2))
            # Workers die one by one, in whatever they do; then all of it.
            if draw.random() < 0.05:
                for child in _children(driver.pid)[-1:]:
                    os.kill(child, signal.SIGKILL)
            if len(list(results.glob("*/results/*"))) >= finished + more:
                break
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        if driver.wait() == 0:
            break
    report = import_pairs(many, uri, processes=1)
    assert report.complete
    assert _whole(uri) == _whole(tmp_path / "one.lance")


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_the_same_command_goes_on(many: Path, tmp_path: Path) -> None:
    uri = tmp_path / "many.lance"
    driver = _begin(str(many), uri, tmp_path / "call.py", processes=2)
    results = Path(f"{uri}.import")
    while driver.poll() is None and len(list(results.glob("*/results/*"))) < 2:
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGINT)
    driver.wait(timeout=60)
    finished = {path.name for path in results.glob("*/results/*")}
    assert 2 <= len(finished) < 12
    import_pairs(many, tmp_path / "one.lance", show_progress=False)
    import_pairs(many, uri, processes=2)
    assert _whole(uri) == _whole(tmp_path / "one.lance")


@pytest.mark.slow
def test_a_ray_cluster_reads_as_one_process(mixed: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    one, many = tmp_path / "one.lance", tmp_path / "many.lance"
    alone = import_pairs(mixed, one, show_progress=False)
    together = import_pairs(mixed, many, ray=RayCluster(address="local", workers=2))
    assert _told(together) == _told(alone)
    assert _whole(many) == _whole(one)
