"""The room of runs: what is told of runs that grow, go back, end or are damaged."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.model import MedConfig
from openblip.objectives.settings import PretrainObjectives
from openblip.studio import runs as room
from openblip.studio.runs import Runs
from openblip.training.metrics_log import METRICS_FILE, MetricsLog
from openblip.training.recipe import DataConfig, OptimiserConfig, Recipe, TrainConfig
from openblip.training.recipe_file import RECIPE_FILE, write_recipe

RECIPE = Recipe(
    task="pretrain",
    data=DataConfig(table="pairs.lance"),
    objectives=PretrainObjectives(queue_size=64),
    model=MedConfig(),
    tokenizer="train:400",
    train=TrainConfig(steps=100, batch_size=8, log_every=1),
)


def begin(run_dir: Path, recipe: Recipe = RECIPE, steps: int = 3, loss: float = 2.0) -> Path:
    """A run directory with so many lines of metrics, as a run leaves it."""
    run_dir.mkdir(parents=True)
    write_recipe(recipe, run_dir / RECIPE_FILE)
    write(run_dir, 0, steps, loss)
    return run_dir


def write(run_dir: Path, first: int, last: int, loss: float) -> None:
    with MetricsLog(run_dir, first) as log:
        for step in range(first + 1, last + 1):
            log.write("train", step, {"loss": loss / step, "lr": 0.1, "pairs_per_second": 80.0})


def append(run_dir: Path, step: int, loss: float) -> None:
    """One more line of a run that is going on."""
    with (run_dir / METRICS_FILE).open("a") as file:
        file.write(json.dumps({"step": step, "kind": "train", "loss": loss}) + "\n")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_LOOKING_SECONDS", 0.0)
    monkeypatch.setattr(room, "_FINDING_SECONDS", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    faster = replace(RECIPE, optimiser=OptimiserConfig(lr=2e-3))
    begin(tmp_path / "runs" / "slow")
    begin(tmp_path / "runs" / "fast", faster, steps=5)
    return tmp_path / "runs"


def test_runs_are_rows_with_what_the_list_shows(folder: Path) -> None:
    told = Runs(folder).rows("")
    rows = {row["name"]: row for row in told["rows"]}
    assert told["names"] == ["fast", "slow"]
    assert (rows["fast"]["step"], rows["fast"]["total_steps"]) == (5, 100)
    assert rows["slow"]["loss"] == pytest.approx(2 / 3)
    assert rows["slow"]["state"] == "unknown"
    assert told["reading"] == 0


def test_rows_that_have_not_changed_are_not_told_again(folder: Path) -> None:
    runs = Runs(folder)
    after = runs.rows("")["after"]
    assert runs.rows(after)["rows"] == []
    append(folder / "slow", 4, 0.5)
    assert [row["name"] for row in runs.rows(after)["rows"]] == ["slow"]


def test_curves_are_told_once_and_then_what_is_new(folder: Path) -> None:
    runs = Runs(folder)
    first = runs.curves("loss", "")
    assert first["curves"]["slow"]["train"] == (0, [1, 2, 3], [2.0, 1.0, 0.66667])
    assert runs.curves("loss", first["after"])["curves"] == {}
    append(folder / "slow", 4, 0.5)
    later = runs.curves("loss", first["after"])
    assert later["curves"] == {"slow": {"train": (3, [4], [0.5])}}


def test_another_server_knows_nothing_of_earlier_changes(folder: Path) -> None:
    after = Runs(folder).curves("loss", "")["after"]
    assert set(Runs(folder).curves("loss", after)["curves"]) == {"fast", "slow"}


def test_a_run_that_goes_back_is_told_from_the_start(folder: Path) -> None:
    runs = Runs(folder)
    after = runs.curves("loss", "")["after"]
    write(folder / "fast", 1, 3, 9.0)
    told = runs.curves("loss", after)["curves"]["fast"]
    assert told == {"anew": True, "train": (0, [1, 2, 3], [2.0, 4.5, 3.0])}


def test_a_line_that_is_being_written_is_read_when_it_is_whole(folder: Path) -> None:
    runs = Runs(folder)
    after = runs.curves("loss", "")["after"]
    line = json.dumps({"step": 4, "kind": "train", "loss": 0.25})
    with (folder / "slow" / METRICS_FILE).open("a") as file:
        file.write(line[:20])
        file.flush()
        assert runs.curves("loss", after)["curves"] == {}
        file.write(line[20:] + "\n")
    assert runs.curves("loss", after)["curves"]["slow"]["train"] == (3, [4], [0.25])


def test_a_damaged_run_is_named_and_hides_no_other(folder: Path) -> None:
    (folder / "slow" / RECIPE_FILE).write_text("task: nothing\n")
    rows = {row["name"]: row for row in Runs(folder).rows("")["rows"]}
    assert "recipe.yaml" in rows["slow"]["damage"]
    assert rows["fast"]["step"] == 5
    assert [axis["runs"] for axis in Runs(folder).about()["quantities"][0]["axes"]] == [["fast"]]


def test_a_damaged_run_that_is_mended_comes_back(folder: Path) -> None:
    runs = Runs(folder)
    recipe = (folder / "slow" / RECIPE_FILE).read_text()
    (folder / "slow" / RECIPE_FILE).write_text("task: nothing\n")
    after = runs.rows("")["after"]
    (folder / "slow" / RECIPE_FILE).write_text(recipe)
    assert [row["name"] for row in runs.rows(after)["rows"]] == ["slow"]


def test_a_run_that_begins_later_appears_and_one_that_is_removed_goes(folder: Path) -> None:
    runs = Runs(folder)
    after = runs.rows("")["after"]
    begin(folder / "late")
    told = runs.rows(after)
    assert told["names"] == ["fast", "late", "slow"]
    assert [row["name"] for row in told["rows"]] == ["late"]
    (folder / "late" / RECIPE_FILE).unlink()
    assert runs.rows(told["after"])["names"] == ["fast", "slow"]


def test_a_folder_without_runs_says_so_and_is_looked_at_again(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    assert "holds no run directory" in runs.rows("")["problem"]
    begin(tmp_path / "first")
    assert runs.rows("")["problem"] is None


def test_what_differs_and_which_losses_share_an_axis(folder: Path) -> None:
    other = replace(RECIPE, objectives=PretrainObjectives(queue_size=128))
    begin(folder / "queue", other)
    about = Runs(folder).about()
    assert set(about["different"]) == {"optimiser.lr", "objectives.queue_size"}
    axes = {q["name"]: [axis["runs"] for axis in q["axes"]] for q in about["quantities"]}
    assert axes["loss"] == [["fast", "slow"], ["queue"]]
    assert axes["lr"] == [["fast", "queue", "slow"]]


def test_events_are_told(folder: Path) -> None:
    with MetricsLog(folder / "slow", 3) as log:
        log.event("alarm", 3, {"loss": 9.0}, "loss 9 of step 3 is high")
    (event,) = Runs(folder).about()["events"]
    assert event == {"run": "slow", "step": 3, "what": "alarm", "text": "loss 9 of step 3 is high"}


def test_numbers_that_are_none_are_null_in_rows(folder: Path) -> None:
    append(folder / "slow", 4, float("nan"))
    rows = {row["name"]: row for row in Runs(folder).rows("")["rows"]}
    assert rows["slow"]["loss"] is None
    json.dumps(list(rows.values()), allow_nan=False)


def test_the_time_that_is_left_is_that_of_a_running_run(folder: Path) -> None:
    from openblip.training.parallelism import Processes
    from openblip.training.rank_log import RankLog

    log = RankLog(folder / "slow", Processes())
    log.begin(3, 100)
    rows = {row["name"]: row for row in Runs(folder).rows("")["rows"]}
    assert rows["slow"]["state"] == "running"
    assert rows["slow"]["seconds_left"] == pytest.approx(97 * 8 / 80)
    assert rows["fast"]["seconds_left"] is None
    log.close()


def test_many_long_runs_are_read_in_parts_and_sent_small(tmp_path: Path) -> None:
    lines = "".join(
        json.dumps({"step": 20 * n, "kind": "train", "loss": 7 - n / 5000, "itc": 1.0}) + "\n"
        for n in range(1, 2001)
    )
    for number in range(20):
        run = begin(tmp_path / f"run-{number:02d}", steps=0)
        (run / METRICS_FILE).write_text(lines)
    runs = Runs(tmp_path)
    began = time.monotonic()
    while runs.rows("")["reading"]:
        assert time.monotonic() - began < 120
    sent = json.dumps(runs.curves("loss", ""), separators=(",", ":"))
    assert len(sent) < 20 * 7_000
