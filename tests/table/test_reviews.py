"""The log of verdicts loses nothing that was acknowledged, and believes nothing that is torn."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openblip.runtime.errors import DataError, StorageError, UnwritableError
from openblip.table.reviews import ReviewLog, ReviewRecord
from openblip.table.storage import ObjectFolder

from ..s3_server import S3Proxy


def record(row: str = "r0", **changes: Any) -> ReviewRecord:
    values: dict[str, Any] = {
        "verdict": "right",
        "source": "web",
        "place": 0,
        "text": "a dog",
        "reviewer": "ada",
        "table_version": 3,
    }
    return ReviewRecord(row=row, **{**values, **changes})


def undo(of: ReviewRecord) -> ReviewRecord:
    return replace(record(), row=of.row, key=f"undo of {of.key}", verdict=None, undoes=of.key)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "pairs.lance")


@pytest.fixture(params=["on a disk", "in an object store"])
def anywhere(request: pytest.FixtureRequest, uri: str) -> str:
    if request.param == "on a disk":
        return uri
    s3: S3Proxy = request.getfixturevalue("s3")
    return f"{s3.bucket}/tables/pairs.lance"


def log_file(uri: str) -> Path:
    return Path(f"{uri}.reviews.jsonl")


def test_a_table_without_verdicts_has_an_empty_log_and_no_file(anywhere: str) -> None:
    log = ReviewLog.of(anywhere + "/")
    assert log.records() == log.standing() == []
    log.append([])
    assert not log_file(anywhere).exists()


def test_records_come_back_as_they_were_and_in_order(anywhere: str) -> None:
    ours, theirs = ReviewLog.of(anywhere), ReviewLog.of(anywhere)
    scored = record("r1", itm=0.25, itc=-0.5, filter="f0", sample="s", probability=1.0, stratum="a")
    ours.append([record("r0"), scored])
    known = theirs.records()
    assert known[1] == scored
    theirs.append([undo(known[0])])
    ours.append([record("r2", verdict="partly", edited="a red dog")])
    assert [r.row for r in ours.records()] == ["r0", "r1", "r0", "r2"]
    assert ours.records() == theirs.records() == ReviewLog.of(anywhere).records()


@pytest.mark.parametrize(
    "text",
    [
        "one\u2028line\u2029and\x85the\x0bnext\x0c\r\nend",
        "half \ud83d of a pair \udc80",
        'quotes " and \\ and #torn',
        "\0 #torn",
        "ein weißer Hund 犬 🐕",
    ],
)
def test_any_text_is_one_line(anywhere: str, text: str) -> None:
    log = ReviewLog.of(anywhere)
    log.append([record(text, text=text, edited=f"{text}.", reviewer=text)])
    log.append([record("next")])
    found = ReviewLog.of(anywhere).records()
    assert [r.row for r in found] == [text, "next"]
    assert (found[0].text, found[0].edited, found[0].reviewer) == (text, f"{text}.", text)


def test_what_holds_is_the_last_verdict_of_each_reviewer_on_each_text(anywhere: str) -> None:
    log = ReviewLog.of(anywhere)
    log.append([record("r0"), record("r1"), record("r0", reviewer="ben")])
    log.append([record("r0", verdict="wrong"), record("r0", text="another text")])
    rows = [(r.row, r.reviewer, r.verdict, r.text) for r in log.standing()]
    assert rows == [
        ("r1", "ada", "right", "a dog"),
        ("r0", "ben", "right", "a dog"),
        ("r0", "ada", "wrong", "a dog"),
        ("r0", "ada", "right", "another text"),
    ]


def test_what_is_taken_back_brings_the_verdict_before_to_light(anywhere: str) -> None:
    log = ReviewLog.of(anywhere)
    first, second = record(verdict="right"), record(verdict="wrong")
    log.append([first, second])
    assert log.standing() == [second]
    log.append([undo(second)])
    assert log.standing() == [first]
    log.append([undo(first)])
    assert log.standing() == []


def test_taking_back_can_be_taken_back_without_limit(uri: str) -> None:
    log = ReviewLog.of(uri)
    last = verdict = record()
    log.append([verdict])
    for times in range(1, 6):
        last = undo(last)
        log.append([last])
        assert log.standing() == ([] if times % 2 else [verdict])
        assert ReviewLog.of(uri).standing() == log.standing()


def test_a_reader_that_is_open_sees_what_others_add_and_reads_no_line_twice(
    anywhere: str, request: pytest.FixtureRequest
) -> None:
    reader = ReviewLog.of(anywhere)
    for number in range(3):
        ReviewLog.of(anywhere).append([record(f"r{number}"), record(f"q{number}")])
        assert len(reader.records()) == len(reader.standing()) == 2 * (number + 1)
    if anywhere.startswith("s3://"):
        s3: S3Proxy = request.getfixturevalue("s3")
        asked = s3.requests.total()
        reader.standing()
        assert s3.requests.total() == asked + 1  # whether there is a next object


def test_a_table_that_is_opened_by_a_link_has_the_same_log(uri: str, tmp_path: Path) -> None:
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "mine").symlink_to(uri)
    for name in (str(tmp_path / "names" / "mine"), f"file://{uri}", f"{uri}/"):
        ReviewLog.of(name).append([record(name)])
    assert len(ReviewLog.of(uri).records()) == 3
    assert ReviewLog.of(uri).where == str(log_file(uri))


def test_a_log_that_was_made_anew_is_read_anew(uri: str) -> None:
    log = ReviewLog.of(uri)
    log.append([record("r0"), record("r1")])
    assert len(log.standing()) == 2
    log_file(uri).unlink()
    assert log.standing() == []
    ReviewLog.of(uri).append([record("r2")])
    assert [r.row for r in log.standing()] == ["r2"]


def test_a_torn_line_is_ignored_and_ended_by_the_next_writer(uri: str) -> None:
    log = ReviewLog.of(uri)
    log.append([record("r0", text="weiß")])
    whole = log_file(uri).read_bytes()
    for length in (*range(1, len(whole) - 2, 23), len(whole) - 2):
        log_file(uri).write_bytes(whole + whole[:length])
        assert [r.row for r in ReviewLog.of(uri).records()] == ["r0"]
        ReviewLog.of(uri).append([record("r1")])
        assert [r.row for r in ReviewLog.of(uri).records()] == ["r0", "r1"], length
        assert log_file(uri).read_bytes().startswith(whole + whole[:length] + b" #torn\n")


def test_a_torn_line_does_not_confuse_a_reader_that_is_open(uri: str) -> None:
    log = ReviewLog.of(uri)
    log.append([record("r0")])
    with log_file(uri).open("ab") as file:
        file.write(b'{"key": "half a li')
    assert len(log.records()) == 1
    ReviewLog.of(uri).append([record("r1")])
    assert [r.row for r in log.records()] == ["r0", "r1"]


def test_zeros_that_a_power_cut_left_are_a_torn_line(uri: str) -> None:
    ReviewLog.of(uri).append([record("r0")])
    with log_file(uri).open("ab") as file:
        file.write(bytes(700))
    ReviewLog.of(uri).append([record("r1")])
    assert [r.row for r in ReviewLog.of(uri).records()] == ["r0", "r1"]


def test_a_whole_last_line_counts_without_its_end(uri: str) -> None:
    log = ReviewLog.of(uri)
    log.append([record("r0"), record("r1")])
    log_file(uri).write_bytes(log_file(uri).read_bytes().removesuffix(b"\n"))
    assert [r.row for r in log.records()] == [r.row for r in log.standing()] == ["r0", "r1"]
    log.append([record("r2")])
    assert [r.row for r in log.records()] == [r.row for r in log.standing()] == ["r0", "r1", "r2"]


def test_the_same_record_appended_again_counts_once(anywhere: str) -> None:
    log, verdict = ReviewLog.of(anywhere), record()
    log.append([verdict, verdict])
    log.append([verdict, record("r1")])
    assert [r.row for r in log.records()] == ["r0", "r1"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"verdict": "maybe"}, "verdict is 'maybe', none of right, wrong, partly, unsure"),
        ({"source": "captions"}, "none of human, web, synthetic"),
        ({"place": True}, "place is True, not a whole number"),
        ({"place": -1}, "must not be negative"),
        ({"row": 7}, "row is 7, not text"),
        ({"itm": "0.5"}, "itm is '0.5', not a number or null"),
        ({"probability": 0.0}, "not above 0"),
        ({"undoes": "key"}, "either a verdict or a record that it undoes"),
        ({"edited": "  "}, "edited is empty"),
        ({"itc": 1e999}, "no finite number"),
    ],
)
def test_a_bad_line_is_named(uri: str, changes: dict[str, Any], what: str) -> None:
    ReviewLog.of(uri).append([record("r0")])
    values = {**json.loads(log_file(uri).read_bytes()), "key": "k2", **changes}
    with log_file(uri).open("a") as file:
        file.write(json.dumps(values) + "\n")
    ReviewLog.of(uri).append([record("r2")])
    log = ReviewLog.of(uri)
    for _ in range(2):
        with pytest.raises(DataError, match=rf"reviews\.jsonl, line 2: .*{what}.*: restore"):
            log.records()


def test_a_line_of_another_version_or_of_no_log_is_named(uri: str) -> None:
    ReviewLog.of(uri).append([record("r0")])
    line = json.loads(log_file(uri).read_bytes())
    for text, what in (
        (json.dumps({**line, "mood": 1}), "'mood' is no field.*newer version"),
        (json.dumps({k: v for k, v in line.items() if k != "place"}), "it has no place"),
        ("[1]", "no JSON object"),
        ("hello", "is no record of a verdict"),
        ("[" * 100_000, "is no record of a verdict"),
    ):
        log_file(uri).write_text(json.dumps(line) + "\n" + text + "\n")
        with pytest.raises(DataError, match=f"line 2: .*{what}"):
            ReviewLog.of(uri).records()


def test_a_record_is_checked_before_it_is_written() -> None:
    with pytest.raises(DataError, match="itm is nan"):
        record(itm=float("nan"))


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pairs.lance.reviews.jsonl").mkdir()
    with pytest.raises(UnwritableError, match=r"pairs\.lance\.reviews\.jsonl: the verdict cannot"):
        ReviewLog.of(str(tmp_path / "pairs.lance")).append([record()])


def test_without_room_nothing_of_a_group_is_added(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ReviewLog.of(uri)
    log.append([record("r0")])
    before = log_file(uri).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UnwritableError, match="No space left"):
            log.append([record("r1"), record("r2")])
    assert log_file(uri).read_bytes() == before
    log.append([record("r3")])
    assert [r.row for r in log.records()] == ["r0", "r3"]


WRITER = """
import sys
from openblip.table.reviews import ReviewLog, ReviewRecord
uri, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
log = ReviewLog.of(uri)
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    row = f"{name}-{number}"
    log.append([ReviewRecord(verdict="right", row=row, source="web", place=0, text="x" * 3000,
                             reviewer=name, table_version=1)])
    print(row, flush=True)
"""


def writer(uri: str, name: str, count: int) -> "subprocess.Popen[str]":
    """A process that waits for a line, and prints the row of each record once it is recorded."""
    command = [sys.executable, "-c", WRITER, uri, name, str(count)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def begin(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_writer_killed_among_many_appends_loses_nothing_that_it_was_told_is_there(
    uri: str,
) -> None:
    told: list[str] = []
    for attempt, num_lines in enumerate((3, 11, 24)):
        process = writer(uri, f"w{attempt}", 1_000_000)
        begin(process)
        assert process.stdout is not None
        told += [process.stdout.readline().strip() for _ in range(num_lines)]
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        told += output.split("\n")[:-1]
        rows = [r.row for r in ReviewLog.of(uri).records()]
        assert [row for row in rows if row in set(told)] == told
        # One more may be there: written, and killed before it was told.
        assert len(rows) <= len(told) + attempt + 1
    ReviewLog.of(uri).append([record("after")])
    assert ReviewLog.of(uri).records()[-1].row == "after"


def test_four_processes_append_at_once(anywhere: str) -> None:
    count = 3 if anywhere.startswith("s3://") else 50
    processes = [writer(anywhere, f"w{number}", count) for number in range(4)]
    for process in processes:
        begin(process)
    reader = ReviewLog.of(anywhere)
    while any(process.poll() is None for process in processes):
        reader.records()  # is never confused by what is being written
        time.sleep(0.01)
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    rows = [r.row for r in reader.records()]
    assert rows == [r.row for r in ReviewLog.of(anywhere).records()]
    assert len(rows) == 4 * count
    for number in range(4):
        own = [row for row in rows if row.startswith(f"w{number}-")]
        assert own == [f"w{number}-{place}" for place in range(count)]


def test_threads_share_one_log(uri: str) -> None:
    log = ReviewLog.of(uri)

    def work(name: str) -> None:
        for number in range(20):
            log.append([record(f"{name}-{number}")])
            log.standing()

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.records()) == len(log.standing()) == 80


def test_an_object_store_that_fails_for_a_while_loses_and_doubles_nothing(s3: S3Proxy) -> None:
    uri = f"{s3.bucket}/pairs.lance"
    log = ReviewLog.of(uri)
    s3.share, s3.faults = 0.2, ("slow down", "drop", "lose answer", "deny answer")
    for number in range(12):
        log.append([record(f"r{number}")])
    s3.share = 0.0
    assert [r.row for r in ReviewLog.of(uri).records()] == [f"r{number}" for number in range(12)]
    assert sum(s3.failed.values()) > 2


def test_an_object_that_is_missing_is_told_and_not_skipped(s3: S3Proxy) -> None:
    uri = f"{s3.bucket}/pairs.lance"
    for number in range(3):
        ReviewLog.of(uri).append([record(f"r{number}")])
    ObjectFolder(f"{uri}.reviews").remove("0000000001.jsonl")
    with pytest.raises(DataError, match=r"reviews/0000000001\.jsonl is missing"):
        ReviewLog.of(uri).records()


def test_what_was_read_before_an_outage_is_not_forgotten(
    s3: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3.bucket}/pairs.lance"
    for number in range(3):
        ReviewLog.of(uri).append([record(f"r{number}")])
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "1")
    log = ReviewLog.of(uri)
    s3.only, s3.failing, s3.faults = "0000000002", 10_000, ("slow down",)
    with pytest.raises(StorageError):
        log.records()
    s3.failing = 0
    assert [r.row for r in log.records()] == ["r0", "r1", "r2"]
