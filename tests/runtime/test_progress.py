import io

import pytest

from openblip.runtime.progress import Progress, duration


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
