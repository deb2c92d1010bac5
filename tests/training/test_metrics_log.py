"""Lines of numbers, for programs and for TensorBoard."""

from pathlib import Path

import pytest

from openblip.runtime.errors import OpenBlipWarning, TrainingError
from openblip.training.metrics_log import (
    METRICS_FILE,
    MetricsLog,
    read_metrics,
    without_tensorboard,
)


def write_steps(run_dir: Path, first: int, last: int, loss: float) -> None:
    with MetricsLog(run_dir, first) as log:
        for step in range(first + 1, last + 1):
            log.write("train", step, {"loss": loss})


def test_a_line_has_step_kind_and_numbers(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 1, loss=2.5)
    assert read_metrics(tmp_path) == [{"step": 1, "kind": "train", "loss": 2.5}]


def test_tensorboard_gets_the_same_names(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 1, loss=2.5)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_without_tensorboard_the_lines_are_the_same_and_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert without_tensorboard() is None
    monkeypatch.setattr("openblip.training.metrics_log.find_spec", lambda name: None)
    with MetricsLog(tmp_path) as log:
        log.write("train", 1, {"loss": 2.5})
        log.event("alarm", 1, {}, "the loss has grown")
        log.note(1, "all is well")
    assert [line["kind"] for line in read_metrics(tmp_path)] == ["train", "alarm", "note"]
    assert not (tmp_path / "tensorboard").exists()
    assert "pip install 'openblip[tensorboard]'" in str(without_tensorboard())


def test_a_resumed_run_writes_no_line_twice(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 5, loss=1.0)
    write_steps(tmp_path, 3, 6, loss=2.0)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]


def test_a_line_torn_by_a_kill_is_left_out(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 2, loss=1.0)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 3, "ki')
    assert len(read_metrics(tmp_path)) == 2
    write_steps(tmp_path, 2, 3, loss=1.0)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_without_a_file_there_are_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize(
    "odd",
    [
        "[]",
        "3",
        "{}",
        '{"step": 2}',
        '{"step": "2", "kind": "train"}',
        '{"step": -1, "kind": "train"}',
        '{"step": 2, "kind": ["train"]}',
        '{"step": 2, "kind": "train", "loss": "low"}',
        "[" * 100_000,
        "no JSON",
    ],
)
def test_a_line_that_is_none_of_metrics_is_left_out_and_told_of(odd: str, tmp_path: Path) -> None:
    good = '{"step": 1, "kind": "train", "loss": NaN}\n'
    (tmp_path / METRICS_FILE).write_text(f"{good}{odd}\n{good}", encoding="utf-8")
    with pytest.warns(OpenBlipWarning, match=r"metrics\.jsonl: line 2 is no line of metrics \(1 "):
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 1]


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrainingError, match="byte 0xff is not UTF-8"):
        read_metrics(tmp_path)
