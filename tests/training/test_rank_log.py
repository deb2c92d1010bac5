"""Each process leaves a log and a status; those that die are named, and the run goes on."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.runtime.errors import OpenBlipWarning, TrainingError
from openblip.table.table import PairRow, PairTable
from openblip.training.metrics_log import read_metrics
from openblip.training.parallelism import Processes, recorded
from openblip.training.rank_log import (
    RankLog,
    is_held,
    log_path,
    open_rank_log,
    read_statuses,
    what_happened,
)
from openblip.training.recipe import Recipe, StabilityConfig
from openblip.training.recipe_file import write_recipe
from openblip.training.run import train

MakeRecipe = Callable[..., Recipe]
SCRIPT = Path(__file__).parent / "kill_script.py"


def launch(*runs: Path, max_restarts: int = 0) -> subprocess.Popen[str]:
    """Two processes that train, with a launcher that restarts them so often."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    options = ["--nproc-per-node=2", f"--max-restarts={max_restarts}", "--monitor-interval=0.1"]
    return subprocess.Popen(
        [*launcher, *options, str(SCRIPT), *map(str, runs)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "POISONED_STEPS": "3 22"},
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_a_rank(run_dir: Path, step: int, attempt: int = 0) -> int:
    """Kill a random one of the processes once the run has made so many steps of a start."""
    while True:
        statuses = read_statuses(run_dir)
        if len(statuses) == 2 and all(s.attempt == attempt and s.step >= step for s in statuses):
            break
        time.sleep(0.005)
    victim = random.choice(statuses)
    assert victim.state == "running"
    os.kill(victim.pid, signal.SIGKILL)
    return victim.rank


def last_weights(run_dir: Path) -> bytes:
    return (run_dir / "checkpoints" / "last" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_restarted_run_ends_as_if_it_had_not_been(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(steps=30, checkpoint_every=5, log_every=1)
    # Two steps fail on one rank, before and after the kill, and are left out.
    recipe = replace(recipe, stability=StabilityConfig(rewinds=2, skip_steps=2))
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for run in (undisturbed, killed):
        write_recipe(recipe, run.with_suffix(".yaml"))
    # After a restart the first of the two is found finished.
    process = launch(undisturbed, killed, max_restarts=1)
    rank = kill_a_rank(killed, step=random.randrange(6, 20))
    _, told = process.communicate(timeout=100)
    assert process.returncode == 0, told
    log = log_path(killed, rank)
    assert f"restart 1 of 1: rank {rank} died after step" in told
    assert f"(as by signal 9: killed, or out of memory), see {log}. Going on from step" in told
    # The launcher's own report, with the signal.
    assert f"failed (exitcode: -9) local_rank: {rank}" in told
    assert last_weights(killed) == last_weights(undisturbed)
    skipped = [line["skipped"] for line in read_metrics(killed) if line["kind"] == "rewind"]
    assert skipped == [[2, 4], [21, 23]]
    ends = [(status.state, status.step, status.attempt) for status in read_statuses(killed)]
    assert ends == [("finished", 30, 1)] * 2
    lines = log.read_text().splitlines()
    assert sum("begins at step" in line for line in lines) == 2
    assert "finished at step 30" in lines[-1]


@pytest.mark.slow
def test_many_kills_of_random_ranks(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(steps=120, checkpoint_every=5, log_every=1)
    recipe = replace(recipe, stability=StabilityConfig(rewinds=2, skip_steps=2))
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for run in (undisturbed, killed):
        write_recipe(recipe, run.with_suffix(".yaml"))
    process = launch(undisturbed, killed, max_restarts=8)
    for attempt in range(8):
        kill_a_rank(killed, step=15 * attempt + random.randrange(1, 14), attempt=attempt)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    assert "restart 8 of 8" in told
    assert last_weights(killed) == last_weights(undisturbed)


@pytest.mark.slow
def test_an_exception_on_a_rank_is_in_the_report_of_the_launcher(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    rows = [PairRow(f"row-{n}", b"no image", captions=["a wall"], origin="human") for n in range(8)]
    PairTable.create(str(tmp_path / "broken.lance"), rows)
    recipe = make_recipe(batch_size=4)
    recipe = replace(recipe, data=replace(recipe.data, table=str(tmp_path / "broken.lance")))
    recipe = replace(recipe, objectives=replace(recipe.objectives, queue_size=4))
    write_recipe(recipe, tmp_path / "run.yaml")
    process = launch(tmp_path / "run")
    _, told = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "Root Cause" in told
    assert "DataError: row" in told.split("Root Cause")[1]
    statuses = read_statuses(tmp_path / "run")
    assert [status.state for status in statuses] == ["failed", "failed"]
    story = what_happened(tmp_path / "run", statuses)
    assert story is not None
    assert "failed after step 0 (DataError: row" in story
    assert "Traceback" in log_path(tmp_path / "run", 0).read_text()


def test_an_exception_is_recorded_for_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise TrainingError("step 3 is not finite")

    assert recorded(fail) is fail
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(TrainingError):
        recorded(fail)()
    report = json.loads((tmp_path / "error.json").read_text())
    assert report["message"]["message"] == "TrainingError: step 3 is not finite"


def test_a_status_tells_how_far_a_process_is_and_how_it_ended(tmp_path: Path) -> None:
    with RankLog(tmp_path, Processes()) as log:
        log.begin(step=3, total_steps=9)
        log.beat(5)
        (status,) = read_statuses(tmp_path)
        assert (status.state, status.step, status.total_steps) == ("running", 5, 9)
        assert (status.pid, status.host) == (os.getpid(), socket.gethostname())
        assert status.started <= status.updated
        log.end("interrupted", 6)
    (status,) = read_statuses(tmp_path)
    assert (status.state, status.step) == ("interrupted", 6)
    assert what_happened(tmp_path, [status]) is None


def test_an_error_stands_in_status_and_log(tmp_path: Path) -> None:
    with pytest.raises(TrainingError), RankLog(tmp_path, Processes()):
        raise TrainingError("step 3 is not finite")
    (status,) = read_statuses(tmp_path)
    assert (status.state, status.error) == ("failed", "TrainingError: step 3 is not finite")
    assert "Traceback" in log_path(tmp_path, 0).read_text()


def test_a_start_that_fails_before_it_trains_leaves_what_was_known_of_the_run(
    tmp_path: Path,
) -> None:
    with RankLog(tmp_path, Processes()) as log:
        log.begin(step=0, total_steps=9)
        log.end("finished", 9)
    (before,) = read_statuses(tmp_path)
    with pytest.raises(TrainingError), RankLog(tmp_path, Processes()):
        raise TrainingError("another recipe")
    assert read_statuses(tmp_path) == [before]
    assert "another recipe" not in log_path(tmp_path, 0).read_text()


def test_a_log_is_held_while_its_process_lives(tmp_path: Path) -> None:
    assert not is_held(tmp_path, 0)
    with RankLog(tmp_path, Processes()):
        assert is_held(tmp_path, 0)
    assert not is_held(tmp_path, 0)


def test_a_pipe_in_place_of_a_log_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    place = log_path(tmp_path, 0)
    place.parent.mkdir()
    os.mkfifo(place)
    with pytest.raises(TrainingError, match=r"rank-0\.log is no regular file"):
        RankLog(tmp_path, Processes())
    assert not is_held(tmp_path, 0)


def contents(run_dir: Path) -> dict[Path, bytes | None]:
    """Everything in a run directory but the logs."""
    paths = [path for path in run_dir.rglob("*") if "logs" not in path.parts]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_a_second_run_in_one_directory_is_refused_and_changes_nothing(
    make_recipe: MakeRecipe, tmp_path: Path, has_checkpoint: bool
) -> None:
    recipe = make_recipe(steps=2)
    train(recipe, tmp_path, quiet=True)
    if not has_checkpoint:
        shutil.rmtree(tmp_path / "checkpoints")
    # What the living run is writing.
    (tmp_path / "checkpoints" / ".step-00000004.1-2.unfinished").mkdir(parents=True)
    before = contents(tmp_path)
    other = recipe if has_checkpoint else replace(recipe, tokenizer="train:50")
    with (
        RankLog(tmp_path, Processes()),
        pytest.raises(TrainingError, match=f"being trained by process {os.getpid()} on"),
    ):
        train(other, tmp_path, quiet=True)
    assert contents(tmp_path) == before
    assert train(recipe, tmp_path, quiet=True).steps == 2


def test_a_child_that_a_killed_process_left_behind_holds_nothing(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with RankLog(tmp_path, Processes()):
        path = log_path(tmp_path, 0).with_suffix(".json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": dead.pid}))
        with RankLog(tmp_path, Processes()):
            (status,) = read_statuses(tmp_path)
    assert status.pid == os.getpid()


def leave_behind(run_dir: Path, rank: int, **values: object) -> None:
    path = log_path(run_dir, rank)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    path.with_suffix(".json").write_text(json.dumps({"rank": rank, **values}))


def test_a_killed_rank_is_named_before_those_that_lost_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_behind(tmp_path, 0, state="failed", error="RuntimeError: connection closed", step=7)
    leave_behind(tmp_path, 1, state="running", step=7)
    leave_behind(tmp_path, 2, state="running", step=7, attempt=-1)
    story = what_happened(tmp_path, read_statuses(tmp_path))
    assert story is not None
    assert story.startswith("rank 1 died after step 7")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    told = "restart 1 of 2: rank 1 died after step 7.*step 5"
    with open_rank_log(tmp_path, Processes()) as log:
        with pytest.warns(OpenBlipWarning, match=told):
            log.begin(step=5, total_steps=9)
        assert "restart 1 of 2" in log.path.read_text()
    # This start has one process: what the others left is no longer told.
    assert [status.rank for status in read_statuses(tmp_path)] == [0]


def test_of_several_failures_the_first_is_told(tmp_path: Path) -> None:
    leave_behind(tmp_path, 0, state="failed", error="RuntimeError: connection closed", updated=9.0)
    leave_behind(tmp_path, 1, state="failed", error="DataError: row 5\nmore", updated=8.0)
    story = what_happened(tmp_path, read_statuses(tmp_path))
    assert story is not None
    assert story.startswith("rank 1 failed after step 0 (DataError: row 5), see")
