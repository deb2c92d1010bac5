"""What is done about losses that jump, and about those that are not finite."""

import json
import math
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save, torch_save_to_dcp

from openblip.batches.loader import Batch
from openblip.objectives.pretrain import PretrainTask
from openblip.objectives.task import StepOutput, StepPosition
from openblip.runtime.errors import OpenBlipWarning, TrainingError
from openblip.training.checkpoint import RUN_STATE_FILE, STATE_FOLDER
from openblip.training.guard import failed_window, is_skipped, joined, note_loss
from openblip.training.metrics_log import read_metrics
from openblip.training.recipe import Recipe, StabilityConfig
from openblip.training.recipe_file import read_recipe
from openblip.training.run import TrainResult, train

from .conftest import SignalInStep

MakeRecipe = Callable[..., Recipe]


def alarms(losses: list[float], recent: list[float], **changes: Any) -> list[int]:
    config = StabilityConfig(spike_window=32, **changes)
    return [n for n, x in enumerate(losses) if note_loss(recent, x, config) is not None]


def noisy_losses(count: int) -> list[float]:
    draw = random.Random(3)
    return [3.0 - 0.005 * n + draw.gauss(0.0, 0.1) for n in range(count)]


def test_noise_and_decline_raise_no_alarm() -> None:
    assert alarms(noisy_losses(500), []) == []


def test_the_first_step_of_a_spike_raises_an_alarm() -> None:
    losses = noisy_losses(100)
    for step in (60, 61, 62):
        losses[step] += 3.0
    assert alarms(losses, []) == [60]
    # The window still holds the spike, and is not misled by it.
    losses[80] += 3.0
    assert alarms(losses, []) == [60, 80]


def test_an_alarm_tells_by_how_many_deviations() -> None:
    recent = [1.0, 2.0, 3.0] * 6
    deviations = note_loss(recent, 20.0, StabilityConfig())
    assert deviations == pytest.approx((20.0 - 2.0) / 1.4826)
    assert recent[-1] == 20.0


def test_a_resumed_run_raises_the_same_alarms() -> None:
    losses = [*noisy_losses(60), 9.0]
    recent: list[float] = []
    assert alarms(losses[:50], recent) == []
    assert len(recent) == 32
    assert alarms(losses[50:], list(recent)) == [10]


def test_alarms_can_be_turned_off_and_need_some_losses() -> None:
    assert alarms([1.0] * 40 + [50.0], [], spike_deviations=None) == []
    assert alarms([1.0, 1.0, 50.0], []) == []
    assert alarms([1.0] * 40 + [1.0005], []) == []


def test_the_window_ends_with_the_failed_step() -> None:
    assert failed_window([], 20, 8) == (13, 21)
    assert failed_window([], 3, 8) == (0, 4)
    assert is_skipped([(13, 21)], 13)
    assert not is_skipped([(13, 21)], 21)


def test_failing_again_soon_doubles_the_window() -> None:
    assert failed_window([(13, 21)], 21, 8) == (6, 22)
    assert failed_window([(6, 22)], 25, 8) == (0, 26)
    assert failed_window([(13, 21)], 40, 8) == (33, 41)


def test_windows_are_joined() -> None:
    assert joined([(30, 38), (13, 21), (15, 22), (22, 24)]) == [(13, 24), (30, 38)]


def unstable(make_recipe: MakeRecipe, rewinds: int = 1, **train_settings: Any) -> Recipe:
    settings = {"steps": 12, "checkpoint_every": 3, "log_every": 1, **train_settings}
    return replace(
        make_recipe(**settings), stability=StabilityConfig(rewinds=rewinds, skip_steps=2)
    )


def poison_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the loss of some steps be no number, as an overflow would."""
    forward = PretrainTask.forward

    def at(*steps: int) -> None:
        def poisoned(self: PretrainTask, batch: Batch, position: StepPosition) -> StepOutput:
            output = forward(self, batch, position)
            is_bad = self.training and position.step in steps
            return replace(output, loss=output.loss * (math.nan if is_bad else 1.0))

        monkeypatch.setattr(PretrainTask, "forward", poisoned)

    return at


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return poison_of(monkeypatch)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / "last" / "model.safetensors")


def equal(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def edit_state(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / RUN_STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil_weights(checkpoint: Path) -> None:
    folder, whole = checkpoint / STATE_FOLDER, checkpoint / "whole.pt"
    dcp_to_torch_save(folder, whole)
    values = torch.load(whole, weights_only=True)
    values["task.student.temperature"].fill_(math.nan)
    torch.save(values, whole)
    shutil.rmtree(folder)
    torch_save_to_dcp(whole, folder)
    whole.unlink()


@pytest.fixture(scope="module")
def rewound_once(
    make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, TrainResult]:
    """A run of 12 steps whose step 7 failed: back to step 6, without steps 6 and 7."""
    recipe = unstable(make_recipe)
    with pytest.MonkeyPatch.context() as patch:
        poison_of(patch)(7)
        with pytest.warns(OpenBlipWarning, match="step 7 is not finite"):
            result = train(recipe, tmp_path_factory.mktemp("rewound"), quiet=True)
    return recipe, result


@pytest.fixture
def rewound(
    rewound_once: tuple[Recipe, TrainResult], poison: Callable[..., None], tmp_path: Path
) -> tuple[Recipe, TrainResult]:
    """A copy of that run, whose step 7 still fails."""
    recipe, result = rewound_once
    poison(7)
    own = tmp_path / "rewound"
    shutil.copytree(result.run_dir, own, symlinks=True)
    return recipe, replace(result, run_dir=own)


def test_a_failed_step_is_left_out_with_those_before_it(
    rewound: tuple[Recipe, TrainResult],
) -> None:
    _, result = rewound
    assert (result.steps, result.skipped, result.interrupted) == (12, ((6, 8),), False)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(result.run_dir).values())
    lines = read_metrics(result.run_dir)
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5, 6, 9, 10, 11, 12]
    # Step 9, the 8th from 0, has batch, epoch and learning rate that it has in any run.
    assert trained[6]["epoch"] == 8 / 5
    (event,) = (line for line in lines if line["kind"] == "rewind")
    assert (event["step"], event["failed_step"], event["skipped"]) == (6, 7, [6, 8])
    assert len(event["ids"]) == 4
    assert event["text"].endswith("leaving out steps 6 to 7 (rewind 1 of 1)")
    assert "loss nan" in event["text"]
    log = (result.run_dir / "logs" / "rank-0.log").read_text()
    assert "warning: step 7 is not finite" in log


def test_it_is_the_run_that_leaves_those_steps_out_from_the_beginning(
    make_recipe: MakeRecipe, rewound: tuple[Recipe, TrainResult], tmp_path: Path
) -> None:
    recipe, result = rewound
    other = tmp_path / "other"
    train(replace(recipe, train=replace(recipe.train, steps=1)), other, quiet=True)
    first = other / "checkpoints" / "step-00000000"
    assert first.exists()
    for path in (other / "checkpoints").glob("step-*1"):
        path.rename(other / "checkpoints" / "failed")
    edit_state(first, skipped=[(6, 8)])
    (other / "recipe.yaml").write_text((result.run_dir / "recipe.yaml").read_text())
    # The loss of step 7 is still no number: nobody looks at it.
    train(recipe, other, quiet=True)
    assert equal(other, result.run_dir)


def test_a_resumed_run_leaves_out_the_same_steps(rewound: tuple[Recipe, TrainResult]) -> None:
    recipe, result = rewound
    checkpoints = result.run_dir / "checkpoints"
    # From a checkpoint after the window, which knows of it.
    (checkpoints / "step-00000012").rename(checkpoints / "failed-last")
    before = load_file(checkpoints / "failed-last" / "model.safetensors")
    again = train(recipe, result.run_dir, quiet=True)
    assert again.skipped == ((6, 8),)
    assert all(torch.equal(before[n], t) for n, t in weights(result.run_dir).items())


def test_a_run_that_stopped_may_go_on_without_the_failed_steps(
    make_recipe: MakeRecipe, rewound: tuple[Recipe, TrainResult], tmp_path: Path
) -> None:
    recipe, result = rewound
    with pytest.raises(TrainingError, match=r"step 7 is not finite.*stability.rewinds=1"):
        train(unstable(make_recipe, rewinds=0), tmp_path / "stopped", quiet=True)
    with pytest.warns(OpenBlipWarning, match="back to step 6, leaving out steps 6 to 7"):
        train(recipe, tmp_path / "stopped", quiet=True)
    assert equal(tmp_path / "stopped", result.run_dir)


def test_before_the_first_checkpoint_it_goes_back_to_the_start(
    make_recipe: MakeRecipe, poison: Callable[..., None], tmp_path: Path
) -> None:
    poison(1)
    with pytest.warns(OpenBlipWarning, match="back to step 0, leaving out steps 0 to 1"):
        result = train(unstable(make_recipe), tmp_path, quiet=True)
    assert result.skipped == ((0, 2),)


def test_failing_again_goes_further_back(
    make_recipe: MakeRecipe, poison: Callable[..., None], tmp_path: Path
) -> None:
    poison(7, 8)
    with pytest.warns(OpenBlipWarning) as warned:
        result = train(unstable(make_recipe, rewinds=2), tmp_path, quiet=True)
    told = [str(warning.message) for warning in warned]
    assert "back to step 6, leaving out steps 6 to 7 (rewind 1 of 2)" in told[0]
    assert "back to step 3, leaving out steps 5 to 8 (rewind 2 of 2)" in told[1]
    assert result.skipped == ((5, 9),)
    assert [line["step"] for line in read_metrics(tmp_path) if line["kind"] == "rewind"] == [6, 3]


def test_when_it_may_not_go_back_again_it_stops_and_may_be_allowed_more(
    make_recipe: MakeRecipe, poison: Callable[..., None], tmp_path: Path
) -> None:
    poison(7, 11)
    recipe = unstable(make_recipe)
    with (
        pytest.warns(OpenBlipWarning, match="step 7"),
        pytest.raises(TrainingError, match=r"step 11 is not finite.*stability.rewinds=2"),
    ):
        train(recipe, tmp_path, quiet=True)
    more = unstable(make_recipe, rewinds=2)
    with pytest.warns(OpenBlipWarning, match="step 11 is not finite"):
        result = train(more, tmp_path, quiet=True)
    assert result.skipped == ((6, 8), (10, 12))
    assert read_recipe(tmp_path / "recipe.yaml").stability.rewinds == 2


def test_a_checkpoint_that_is_not_finite_is_passed_by(
    make_recipe: MakeRecipe, poison: Callable[..., None], tmp_path: Path
) -> None:
    poison(7, 10)
    one, other = tmp_path / "one", tmp_path / "other"
    with pytest.warns(OpenBlipWarning), pytest.raises(TrainingError):
        train(unstable(make_recipe), one, quiet=True)
    spoil_weights(one / "checkpoints" / "step-00000009")
    shutil.copytree(one, other, symlinks=True)
    poison()
    more = unstable(make_recipe, rewinds=2)
    with pytest.warns(OpenBlipWarning, match="step 9 is not finite.*back to step 6"):
        result = train(more, one, quiet=True)
    assert result.skipped == ((6, 10),)
    spoil_weights(other / "checkpoints" / "step-00000006")
    with pytest.raises(TrainingError, match="neither is any checkpoint"):
        train(more, other, quiet=True)


def test_a_run_that_is_stopped_after_a_rewind_goes_on_from_there(
    make_recipe: MakeRecipe,
    poison: Callable[..., None],
    signal_in_step: SignalInStep,
    tmp_path: Path,
) -> None:
    poison(8, 13)
    recipe = unstable(make_recipe, steps=16, checkpoint_every=4)
    recipe = replace(recipe, stability=replace(recipe.stability, skip_steps=1))
    with pytest.warns(OpenBlipWarning), pytest.raises(TrainingError, match="step 13 is not"):
        train(recipe, tmp_path, quiet=True)
    left = tmp_path / "checkpoints" / "step-00000012"
    spoil_weights(left)
    edit_state(left, best_step=12)
    # The best of its time, which made room for that one.
    edit_state(tmp_path / "checkpoints" / "step-00000008", best_step=1)
    signal_in_step(9, signal.SIGTERM)
    more = replace(recipe, stability=replace(recipe.stability, rewinds=2))
    with pytest.warns(OpenBlipWarning, match="step 12 is not finite.*back to step 8"):
        result = train(more, tmp_path, quiet=True)
    assert (result.steps, result.interrupted, left.exists()) == (11, True, False)
    assert train(more, tmp_path, quiet=True).skipped == ((8, 9), (12, 13))


def test_a_jump_of_the_loss_is_told_and_written(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forward = PretrainTask.forward

    def jumping(self: PretrainTask, batch: Batch, position: StepPosition) -> StepOutput:
        output = forward(self, batch, position)
        return replace(output, loss=output.loss * (50.0 if position.step == 18 else 1.0))

    monkeypatch.setattr(PretrainTask, "forward", jumping)
    recipe = make_recipe(steps=20, checkpoint_every=20)
    with pytest.warns(OpenBlipWarning, match=r"of step 18 is .* standard deviations above"):
        train(recipe, tmp_path, quiet=True)
    (line,) = (line for line in read_metrics(tmp_path) if line["kind"] == "alarm")
    assert line["step"] == 19
    assert line["deviations"] > 10


@pytest.mark.parametrize("steps", [1, 3])
def test_a_last_step_that_explodes_fails_the_run(
    make_recipe: MakeRecipe, tmp_path: Path, steps: int
) -> None:
    """No further step is there to show in its loss what the last one has made of the weights."""
    recipe = make_recipe(steps=steps)
    small = replace(recipe.schedule, warmup_steps=steps - 1, warmup_lr=1e-6)
    recipe = replace(recipe, optimiser=replace(recipe.optimiser, lr=1e30), schedule=small)
    told = r"the weights after step \d are not finite or have exploded.*lower optimiser.lr"
    with pytest.raises(TrainingError, match=told):
        train(recipe, tmp_path, quiet=True)
    assert not (tmp_path / "checkpoints" / "last").exists()
    with pytest.raises(TrainingError):
        train(recipe, tmp_path, quiet=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, -1e7])
def test_weights_that_no_training_comes_to_are_no_good(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    finish_step = PretrainTask.finish_step

    def damage(task: PretrainTask, update: object) -> None:
        finish_step(task, update)
        with torch.no_grad():
            task.student.temperature.copy_(torch.tensor(value).clamp(max=1e30))

    monkeypatch.setattr(PretrainTask, "finish_step", damage)
    with pytest.raises(TrainingError, match="weights after step 0 are not finite or have exploded"):
        train(make_recipe(steps=1), tmp_path, quiet=True)
