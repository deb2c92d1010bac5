import io
import json
from pathlib import Path

import pytest

from openblip.runtime.progress import PROGRESS_FILE, Progress, duration


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_is_a_line_now_and_then_and_one_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("importing", total=100, stream=stream, clock=clock) as progress:
        for _ in range(5):
            clock.seconds += 4
            progress.update(10, skipped=3, source="a.tar")
    assert stream.getvalue().splitlines() == [
        "importing: 30 of 100 rows, 2.5 rows/s, skipped 3, source a.tar, 28.0 s left",
        "importing: 50 of 100 rows, 2.5 rows/s, skipped 3, source a.tar, took 20.0 s",
    ]


def test_without_a_total_nobody_knows_what_is_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("scoring", unit="texts", stream=stream, clock=clock) as progress:
        clock.seconds += 10
        progress.update(5000)
    assert stream.getvalue().splitlines() == [
        "scoring: 5,000 texts, 500.0 texts/s",
        "scoring: 5,000 texts, 500.0 texts/s, took 10.0 s",
    ]


def test_where_there_is_more_than_was_said_nobody_knows_the_total() -> None:
    stream = io.StringIO()
    with Progress("importing", total=7, unit="rows", stream=stream) as progress:
        progress.update(10)

    assert stream.getvalue().startswith("importing: 10 rows, ")


def test_what_an_earlier_run_did_counts_but_not_for_the_rate() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("importing", total=100, start=90, stream=stream, clock=clock) as progress:
        clock.seconds += 2
        progress.update(10)
    assert progress.num_done == 100
    assert "100 of 100 rows, 5.0 rows/s" in stream.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with Progress("importing", total=3, stream=stream) as progress:
        for _ in range(3):
            progress.update(1, loss=0.123456)
    shown = stream.getvalue()
    assert "importing" in shown
    assert "3/3" in shown
    assert "rows/s, loss 0.1235" in shown


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_disabled_one_is_silent(stream: io.StringIO) -> None:
    with Progress("importing", stream=stream, enabled=False) as progress:
        progress.update(1)
    assert stream.getvalue() == ""
    assert progress.num_done == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (8.24, "8.2 s"), (200, "3 min 20 s"), (18_120, "5 h 02 min"), (-1, "0.0 s")],
)
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_units_that_turn_out_to_be_done_do_not_count_for_the_rate_either() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("captioning", total=100, unit="images", stream=stream, clock=clock) as progress:
        progress.skip(60)
        clock.seconds += 10
        progress.update(20)
    assert stream.getvalue().splitlines()[0] == (
        "captioning: 80 of 100 images, 2.0 images/s, 10.0 s left"
    )


def test_where_nothing_is_left_to_do_there_is_no_rate() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("index", 12, "files", 12, stream=stream, clock=clock):
        clock.seconds += 2
    assert stream.getvalue() == "index: 12 of 12 files, took 2.0 s\n"


def test_a_program_reads_in_a_file_how_far_the_job_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, clock = tmp_path / "progress.json", Clock()
    monkeypatch.setenv(PROGRESS_FILE, str(file))
    with Progress("index", 100, "files", 20, stream=io.StringIO(), clock=clock) as progress:
        assert json.loads(file.read_text())["done"] == 20
        clock.seconds += 0.1
        progress.update(1)
        assert json.loads(file.read_text())["done"] == 20
        clock.seconds += 9.9
        progress.update(9)
        told = json.loads(file.read_text())
    assert (told["what"], told["unit"], told["total"]) == ("index", "files", 100)
    assert (told["done"], told["rate"]) == (30, 1.0)


def test_a_file_of_progress_that_cannot_be_written_stops_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "no-folder" / "progress.json"))
    with Progress("index", 1, "files", stream=io.StringIO()) as progress:
        progress.update(1)
    assert progress.num_done == 1


def test_what_is_not_shown_is_not_written_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "progress.json"))
    with Progress("index", 1, "files", enabled=False) as progress:
        progress.update(1)
    assert list(tmp_path.iterdir()) == []
