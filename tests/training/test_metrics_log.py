"""Lines of numbers, for programs and for TensorBoard."""

from pathlib import Path

from openblip.training.metrics_log import METRICS_FILE, MetricsLog, read_metrics


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
