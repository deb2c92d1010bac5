"""What run directories tell without being opened for training, in rows and on a page."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.checkpoints.folder import read_folder
from openblip.cli import main
from openblip.runtime.errors import TrainingError
from openblip.training.parallelism import Processes
from openblip.training.rank_log import RankLog, log_path, read_statuses
from openblip.training.recipe import Recipe
from openblip.training.recipe_file import write_recipe
from openblip.training.run import train
from openblip.training.watching import (
    different_settings,
    event_rows,
    find_runs,
    short_names,
    summarise,
)

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def runs(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs of different learning rates."""
    folder = tmp_path_factory.mktemp("runs")
    for name, lr in (("slow", 1e-3), ("fast", 2e-3)):
        recipe = make_recipe(steps=4, log_every=1)
        recipe = replace(
            recipe,
            optimiser=replace(recipe.optimiser, lr=lr),
            data=replace(recipe.data, validation_split="val"),
        )
        train(recipe, folder / "walls" / name, quiet=True)
    return folder


def test_runs_are_found_at_some_depth(runs: Path, tmp_path: Path) -> None:
    fast, slow = runs / "walls" / "fast", runs / "walls" / "slow"
    assert find_runs([runs]) == [fast, slow]
    assert find_runs([slow, runs]) == [slow, fast]
    with pytest.raises(TrainingError, match="holds no run directory"):
        find_runs([tmp_path])
    with pytest.raises(TrainingError, match="is no folder"):
        find_runs([tmp_path / "absent"])


def test_a_finished_run(runs: Path) -> None:
    run = summarise(runs / "walls" / "fast")
    assert (run.state, run.step, run.total_steps) == ("finished", 4, 4)
    assert run.reason == "it said so when it ended"
    assert run.task == "pretrain"
    model = read_folder(runs / "walls" / "fast" / "checkpoints" / "last").med
    assert run.num_parameters == sum(t.numel() for t in model.state_dict().values())
    assert {"loss", "itc", "pairs_per_second", "utilisation"} <= set(run.train)
    assert run.validation["loss"] > 0
    assert run.settings["optimiser.lr"] == 2e-3


def test_only_what_differs_between_recipes_is_named(runs: Path) -> None:
    found = [summarise(path) for path in find_runs([runs])]
    assert different_settings(found) == {"optimiser.lr": [2e-3, 1e-3]}
    assert different_settings(found[:1]) == {}
    assert short_names(found) == ["fast", "slow"]
    assert short_names(found[:1]) == ["fast"]


@pytest.fixture
def begun(make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    """A run directory that no process has trained in yet."""
    (tmp_path / "run").mkdir()
    write_recipe(make_recipe(steps=9), tmp_path / "run" / "recipe.yaml")
    return tmp_path / "run"


def test_a_run_without_a_status_is_unknown(begun: Path) -> None:
    run = summarise(begun)
    assert (run.state, run.reason) == ("unknown", "it left no status")
    assert (run.step, run.total_steps, run.num_parameters) == (0, 9, None)


def test_a_running_and_then_a_killed_run(begun: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path;"
        "from openblip.training.rank_log import RankLog;"
        "from openblip.training.parallelism import Processes;"
        "log = RankLog(Path(sys.argv[1]), Processes()); log.begin(3, 9); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(begun)])
    while not (statuses := read_statuses(begun)) or not statuses[0].total_steps:
        assert process.poll() is None
        time.sleep(0.01)
    run = summarise(begun)
    assert (run.state, run.step) == ("running", 3)
    assert run.reason.startswith(f"process {process.pid} on {socket.gethostname()} holds")
    process.kill()
    process.wait()
    run = summarise(begun)
    assert run.state == "failed"
    assert run.reason.startswith("rank 0 died after step 3 without a word")


def test_a_run_that_failed_before_it_trained(begun: Path) -> None:
    with pytest.raises(TrainingError), RankLog(begun, Processes()):
        raise TrainingError("no such view")
    run = summarise(begun)
    assert (run.state, run.step, run.total_steps) == ("failed", 0, 9)


def test_a_failed_and_an_interrupted_run(begun: Path) -> None:
    failing = RankLog(begun, Processes())
    failing.begin(3, 9)
    with pytest.raises(TrainingError), failing:
        raise TrainingError("step 3 is not finite")
    run = summarise(begun)
    assert run.state == "failed"
    assert "failed after step 3 (TrainingError: step 3 is not finite)" in run.reason
    with RankLog(begun, Processes()) as log:
        log.begin(3, 9)
        log.end("interrupted", 5)
    run = summarise(begun)
    assert (run.state, run.step) == ("interrupted", 5)


def test_a_run_on_another_machine_is_judged_by_its_last_sign_of_life(begun: Path) -> None:
    path = log_path(begun, 0)
    path.parent.mkdir()
    path.touch()
    status = {"rank": 0, "host": "elsewhere", "pid": 7, "step": 3, "updated": 1000.0}
    path.with_suffix(".json").write_text(json.dumps(status))
    assert summarise(begun, now=1030.0).state == "running"
    assert summarise(begun, now=9000.0).state == "failed"


def test_the_command_prints_tables(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["run", "state", "task"]
    assert lines[1].split()[:5] == ["fast", "finished", "pretrain", "0.0", "M"]
    assert "4/4" in lines[1]
    assert lines[-1].split() == ["optimiser.lr", "0.002", "0.001"]


def test_the_command_prints_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs), "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["path"].endswith("fast")
    assert (second["state"], second["step"]) == ("finished", 4)
    assert second["settings"]["optimiser.lr"] == 1e-3


def test_the_command_writes_a_page(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "runs.html"
    assert main(["runs", str(runs), "--page", str(page)]) == 0
    html = page.read_text()
    assert "<script" not in html
    assert not re.search(r"https?:", html)
    assert html.count("<svg") == len(
        ["loss", "itc", "itm", "lm", "temperature", "grad_norm", "lr", "pairs", "util", "share"]
    )
    assert "fast, step 4: " in html
    assert "optimiser.lr" in html
    assert f"page: {page}" in capsys.readouterr().out


def test_what_happened_is_on_the_page(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    write_recipe(make_recipe(steps=9), tmp_path / "recipe.yaml")
    event = {"step": 2, "kind": "rewind", "text": "step 3 is not finite: back to step 2"}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    run = summarise(tmp_path)
    assert (run.rewinds, run.alarms) == (1, 0)
    assert main(["runs", str(tmp_path), "--page", str(tmp_path / "page.html")]) == 0
    assert "step 3 is not finite: back to step 2" in (tmp_path / "page.html").read_text()


def test_what_happens_a_hundred_times_is_one_row(tmp_path: Path) -> None:
    def alarm(step: int) -> dict[str, object]:
        text = f"the loss of step {step} is 1.2e+03, above {step / 7:.3f}"
        return {"step": step, "kind": "alarm", "text": text}

    back = {"step": 150, "kind": "rewind", "text": "step 151 is not finite: back to step 150"}
    lines = [*map(alarm, range(1, 101)), back, alarm(160), {"step": 170, "kind": "train"}]
    assert event_rows("fast", lines) == [
        ["fast", "1 to 100", "100", "alarm", alarm(1)["text"]],
        ["fast", "150", "1", "rewind", back["text"]],
        ["fast", "160", "1", "alarm", alarm(160)["text"]],
    ]


def test_without_runs_the_command_says_what_is_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(tmp_path)]) == 1
    assert "name what `openblip pretrain`" in capsys.readouterr().err


def test_runs_are_listed_without_torch(runs: Path) -> None:
    code = (
        "import sys; from openblip.cli import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'lance', 'pyarrow'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, "runs", str(runs)], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("recipe.yaml", "a: &a [*a]\n"),
        ("metrics.jsonl", "\0\udcff"),
        ("logs/rank-0.json", "[]"),
        ("logs/rank-0.json", '{"rank": "first"}'),
    ],
)
def test_a_damaged_run_does_not_hide_the_others(
    file: str, content: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs, tmp_path / "runs", symlinks=True)
    damaged = tmp_path / "runs" / "walls" / "fast" / file
    damaged.write_text(content, encoding="utf-8", errors="surrogateescape")
    assert main(["runs", str(tmp_path / "runs"), str(tmp_path / "absent")]) == 1
    told = capsys.readouterr()
    assert "slow" in told.out
    lines = told.err.splitlines()
    assert len(lines) == 2
    assert str(damaged) in lines[0]
    assert "absent is no folder" in lines[1]


@pytest.mark.parametrize("header", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", bytes(8) + b"{"])
def test_weights_whose_header_is_damaged_leave_their_number_open(
    header: bytes, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "walls" / "slow", tmp_path / "run", symlinks=True)
    weights = tmp_path / "run" / "checkpoints" / "last" / "model.safetensors"
    weights.write_bytes(header)
    assert summarise(tmp_path / "run").num_parameters is None


def test_weights_that_are_a_pipe_are_not_waited_for(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "walls" / "slow", tmp_path / "run", symlinks=True)
    weights = tmp_path / "run" / "checkpoints" / "last" / "model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    assert summarise(tmp_path / "run").num_parameters is None
