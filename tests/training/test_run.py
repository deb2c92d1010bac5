"""Whole runs: what they leave behind, and that stopping them changes nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.folder import read_folder
from openblip.model import kernels
from openblip.objectives.settings import CaptionerObjectives, FilterObjectives
from openblip.runtime.errors import DataError, MissingHead, RecipeError, TrainingError
from openblip.training.metrics_log import read_metrics
from openblip.training.recipe import LoraConfig, MixedTable, ModelOverrides, Recipe
from openblip.training.recipe_file import read_recipe, write_recipe
from openblip.training.run import TrainResult, train

from .conftest import SignalInStep

MakeRecipe = Callable[..., Recipe]
ReadStored = Callable[[Path], dict[str, torch.Tensor]]

# What `openblip pretrain` does, without its start-up.
SCRIPT = """
import sys
from pathlib import Path
from openblip.training.recipe_file import read_recipe
from openblip.training.run import train
train(read_recipe(Path(sys.argv[1])), sys.argv[2], quiet=True)
"""
# On a busy machine it may get to the end before it is killed.
WAITING = f"{SCRIPT}\nimport time; time.sleep(300)"


def weights(run_dir: Path, link: str = "last") -> bytes:
    return (run_dir / "checkpoints" / link / "model.safetensors").read_bytes()


def run_state(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "checkpoints" / "last" / "run_state.json"
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def finished(
    make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, TrainResult]:
    """A pre-training run of 4 steps that several tests look at."""
    recipe = make_recipe()
    return recipe, train(recipe, tmp_path_factory.mktemp("finished"), quiet=True)


def test_a_run_leaves_a_model_and_a_record(finished: tuple[Recipe, TrainResult]) -> None:
    _, result = finished
    assert (result.steps, result.interrupted) == (4, False)
    assert result.model_folder == result.run_dir / "checkpoints" / "last"
    loaded = read_folder(result.model_folder)
    assert (loaded.kind, loaded.image_size, loaded.max_tokens) == ("pretrain", 16, 30)
    lines = read_metrics(result.run_dir)
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[-1]["epoch"] == 3 / 5
    assert lines[-1]["itm"] == result.terms["itm"]
    assert {"lr", "loss", "grad_norm", "pairs_per_second", "utilisation", "loader_share"} <= set(
        lines[-1]
    )


def test_the_recorded_recipe_is_resolved_and_trains(
    finished: tuple[Recipe, TrainResult], tmp_path: Path
) -> None:
    recipe, result = finished
    recorded = read_recipe(result.run_dir / "recipe.yaml")
    tokenizer = TextTokenizer.from_file(result.run_dir / "tokenizer")
    assert recorded.model is not None
    assert recorded.model.text.vocab_size == tokenizer.vocab_size <= 60
    assert recorded.model.vision.image_size == recipe.data.image_size
    train(recorded, tmp_path, quiet=True)
    assert weights(tmp_path) == weights(result.run_dir)


def test_without_tensorboard_a_run_says_once_what_it_does_not_write(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openblip.training.metrics_log.find_spec", lambda name: None)
    train(make_recipe(steps=2), tmp_path, quiet=True)
    notes = [line["text"] for line in read_metrics(tmp_path) if line["kind"] == "note"]
    told = "no files for TensorBoard: for them pip install 'openblip[tensorboard]'"
    assert notes.count(told) == 1
    assert not (tmp_path / "tensorboard").exists()


def test_a_finished_run_is_not_trained_again(finished: tuple[Recipe, TrainResult]) -> None:
    recipe, result = finished
    before = (result.model_folder / "model.safetensors").stat().st_mtime_ns
    again = train(recipe, result.run_dir, quiet=True)
    assert (again.steps, again.terms) == (result.steps, result.terms)
    assert (result.model_folder / "model.safetensors").stat().st_mtime_ns == before


def test_another_recipe_is_refused(finished: tuple[Recipe, TrainResult]) -> None:
    recipe, result = finished
    other = replace(recipe, optimiser=replace(recipe.optimiser, lr=2e-3))
    with pytest.raises(TrainingError, match=r"optimiser.lr \(was 0.001, is 0.002\)"):
        train(other, result.run_dir, quiet=True)
    with pytest.raises(TrainingError, match="stands at step-00000004: choose another"):
        train(recipe, result.run_dir, resume=False, quiet=True)


def killed_at(recipe: Recipe, run_dir: Path, step: int) -> None:
    """Start a process that trains, and kill it when it has made so many steps."""
    write_recipe(recipe, run_dir.with_suffix(".yaml"))
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(run_dir.with_suffix(".yaml")), str(run_dir)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while len(read_metrics(run_dir)) < step:
        assert process.poll() is None, "the run has failed"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_ends_as_if_it_had_not_been(
    make_recipe: MakeRecipe, read_stored: ReadStored, tmp_path: Path
) -> None:
    recipe = make_recipe(steps=12, checkpoint_every=3, log_every=1, accumulate=2)
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    train(recipe, uninterrupted, quiet=True)
    killed_at(recipe, killed, step=random.randrange(1, 11))
    result = train(recipe, killed, quiet=True)
    assert result.steps == 12
    assert weights(killed) == weights(uninterrupted)
    assert weights(killed, "best") == weights(uninterrupted, "best")
    assert checkpoints(killed) == checkpoints(uninterrupted)
    before, after = (read_stored(run / "checkpoints" / "last") for run in (uninterrupted, killed))
    assert {tuple(name.split(".")[:2]) for name in before} == {
        ("task", "student"),
        ("task", "teacher"),
        ("task", "queue"),
        ("optimiser", "student"),
    }
    assert all(torch.equal(before[name], after[name]) for name in before)
    numbers = ("step", "lr", "loss", "itc", "itm", "lm")
    first, second = (
        [{name: line[name] for name in numbers} for line in read_metrics(run)]
        for run in (uninterrupted, killed)
    )
    assert first == second


@pytest.mark.slow
def test_many_kills_at_any_moment(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Kills also while checkpoints are written: there is one after every step."""
    recipe = make_recipe(steps=40, checkpoint_every=1, log_every=1)
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    train(recipe, uninterrupted, quiet=True)
    for step in sorted(random.sample(range(1, 39), 8)):
        killed_at(recipe, killed, step)
        time.sleep(random.random() * 0.05)
    train(recipe, killed, quiet=True)
    assert weights(killed) == weights(uninterrupted)
    assert weights(killed, "best") == weights(uninterrupted, "best")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_after_its_step(
    make_recipe: MakeRecipe, signal_in_step: SignalInStep, tmp_path: Path, number: signal.Signals
) -> None:
    signal_in_step(1, number)
    result = train(make_recipe(checkpoint_every=100), tmp_path, quiet=True)
    # The processes agree on it in the step after.
    assert (result.steps, result.interrupted) == (3, True)
    assert checkpoints(tmp_path) == ["last", "step-00000003"]
    run = run_state(tmp_path)
    assert (run["step"], run["window_steps"]) == (3, 3)


def test_a_run_goes_on_with_the_products_that_it_began_with(
    make_recipe: MakeRecipe,
    signal_in_step: SignalInStep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another library rounds otherwise: what is learnt would be another model."""
    monkeypatch.setattr(kernels, "_given", [])
    monkeypatch.setenv("OPENBLIP_PRODUCTS", "torch")
    signal_in_step(1, signal.SIGTERM)
    assert train(make_recipe(), tmp_path, quiet=True).interrupted
    kept = {kernels.machine_key(): "torch,torch,torch,torch"}
    assert run_state(tmp_path)["products"] == kept
    # A new process, on a machine whose choice has become another one.
    monkeypatch.setattr(kernels, "_given", [])
    monkeypatch.setenv("OPENBLIP_PRODUCTS", "onednn")
    assert not train(make_recipe(), tmp_path, quiet=True).interrupted
    assert kernels.products() == kernels.Products.of("torch")
    assert run_state(tmp_path)["products"] == kept


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    signal_in_step: SignalInStep, finished: tuple[Recipe, TrainResult], tmp_path: Path
) -> None:
    recipe, result = finished
    signal_in_step(0, signal.SIGINT)
    assert train(recipe, tmp_path, quiet=True).steps == 2
    train(recipe, tmp_path, quiet=True)
    assert weights(tmp_path) == weights(result.run_dir)
    assert weights(tmp_path, "best") == weights(result.run_dir, "best")


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    # A learning rate this high makes every later checkpoint worse than the first.
    recipe = make_recipe(steps=3, checkpoint_every=1)
    recipe = replace(
        recipe,
        data=replace(recipe.data, validation_split="val"),
        optimiser=replace(recipe.optimiser, lr=1.0),
    )
    train(recipe, tmp_path, quiet=True)
    lines = [line for line in read_metrics(tmp_path) if line["kind"] == "validation"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    best = min(lines, key=lambda line: line["loss"])
    assert (tmp_path / "checkpoints" / "best").readlink().name == f"step-{best['step']:08d}"
    assert run_state(tmp_path)["best_loss"] == best["loss"]


def test_validation_does_not_change_the_weights(
    make_recipe: MakeRecipe, finished: tuple[Recipe, TrainResult], tmp_path: Path
) -> None:
    recipe, result = finished
    recipe = replace(recipe, data=replace(recipe.data, validation_split="val"))
    train(recipe, tmp_path, quiet=True)
    assert weights(tmp_path) == weights(result.run_dir)


def test_a_loss_that_is_not_finite_stops_the_run(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    # Weights are judged where they are saved: until then the loss shows that they are no good.
    recipe = make_recipe(steps=20, checkpoint_every=20)
    recipe = replace(recipe, optimiser=replace(recipe.optimiser, lr=1e30))
    with pytest.raises(TrainingError, match=r"is not finite.*Its pairs: row-.*init_from") as error:
        train(recipe, tmp_path / "run", quiet=True)
    (failed,) = (tmp_path / "run" / "checkpoints").glob("failed-step-*")
    report = json.loads((failed / "failed_batch.json").read_text())
    assert len(report["ids"]) == 4
    assert all(row in str(error.value) for row in report["ids"])
    assert f"step {report['step']} " in str(error.value)
    shorter = replace(recipe, train=replace(recipe.train, steps=report["step"]))
    with pytest.raises(TrainingError, match=r"the weights after step .* have exploded"):
        train(shorter, tmp_path / "shorter", quiet=True)
    (exploded,) = (tmp_path / "shorter" / "checkpoints").glob("failed-step-*")
    before = read_folder(exploded).med.state_dict()
    after = read_folder(failed).med.state_dict()
    # A step begins with clamping the temperature.
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {"temperature"}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda r: replace(r, train=replace(r.train, batch_size=24)),
            DataError,
            "20 rows.*lower train.batch_size",
        ),
        (
            lambda r: replace(r, train=replace(r.train, batch_size=24, accumulate=2)),
            RecipeError,
            "--train.batch-size 20",
        ),
        # Each accumulated part has more than there are, and 20 is no multiple of 8.
        (
            lambda r: replace(r, train=replace(r.train, batch_size=256, accumulate=8)),
            RecipeError,
            "--train.batch-size 16",
        ),
        (
            lambda r: replace(r, data=replace(r.data, view=replace(r.data.view, sources=("web",)))),
            DataError,
            "none has an admitted text",
        ),
        (
            lambda r: replace(r, data=replace(r.data, validation_split="test")),
            DataError,
            "no row in the split 'test'",
        ),
        (
            lambda r: replace(r, data=replace(r.data, max_tokens=33)),
            RecipeError,
            "data.max_tokens is 33, 40 with padding.*--data.max-tokens 32 fits",
        ),
        (
            lambda r: replace(r, train=replace(r.train, device="xpu")),
            RecipeError,
            "train.device is 'xpu'",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    make_recipe: MakeRecipe,
    tmp_path: Path,
    change: Callable[[Recipe], Recipe],
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        train(change(make_recipe()), tmp_path, quiet=True)
    assert not (tmp_path / "metrics.jsonl").exists()
    # The corrected recipe may use the same directory.
    train(make_recipe(steps=1), tmp_path, quiet=True)


def mixed(recipe: Recipe, *mix: MixedTable) -> Recipe:
    return replace(recipe, data=replace(recipe.data, mix=mix))


def test_a_run_on_several_tables_goes_on_where_it_stopped(
    make_recipe: MakeRecipe, signal_in_step: SignalInStep, other_table: str, tmp_path: Path
) -> None:
    # An epoch is 20 + 3 pairs: batches of 4 span epochs.
    recipe = mixed(
        make_recipe(steps=14, checkpoint_every=3, log_every=1),
        MixedTable(table=other_table, weight=0.5),
    )
    train(recipe, tmp_path / "uninterrupted", quiet=True)
    signal_in_step(3, signal.SIGINT)
    assert train(recipe, tmp_path / "stopped", quiet=True).steps == 5
    train(recipe, tmp_path / "stopped", quiet=True)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "uninterrupted")
    assert read_metrics(tmp_path / "stopped")[-1]["epoch"] == pytest.approx(13 * 4 / 23)


def fine_tuning(
    finished: tuple[Recipe, TrainResult], task: Any, objectives: Any, **changes: Any
) -> Recipe:
    recipe, result = finished
    return replace(
        recipe,
        task=task,
        objectives=objectives,
        model=None,
        tokenizer=None,
        init_from=str(result.model_folder),
        **changes,
    )


def test_a_captioner_is_trained_from_a_pretrained_model(
    finished: tuple[Recipe, TrainResult], tmp_path: Path
) -> None:
    recipe = fine_tuning(finished, "captioner", CaptionerObjectives())
    recipe = replace(recipe, data=replace(recipe.data, prefix="this wall is "))
    result = train(recipe, tmp_path, quiet=True)
    before, after = read_folder(finished[1].model_folder), read_folder(result.model_folder)
    assert after.kind == "captioner"
    assert after.med.config == before.med.config
    # All heads stay; those that take no part stay as they were.
    assert torch.equal(after.med.itm_head.weight, before.med.itm_head.weight)
    assert not torch.equal(
        after.med.text.lm_head.transform.weight, before.med.text.lm_head.transform.weight
    )


def test_a_filter_is_trained_at_another_image_size(
    finished: tuple[Recipe, TrainResult], tmp_path: Path
) -> None:
    recipe = fine_tuning(
        finished,
        "filter",
        FilterObjectives(queue_size=8),
        overrides=ModelOverrides(dropout=0.0, drop_path=0.0, vision_checkpoint_layers=1),
    )
    recipe = replace(recipe, data=replace(recipe.data, image_size=24))
    result = train(recipe, tmp_path, quiet=True)
    loaded = read_folder(result.model_folder)
    assert (loaded.kind, loaded.image_size) == ("filter", 24)
    assert loaded.med.image_encoder.positions.shape == (1, 10, 16)
    assert loaded.med.config.text.dropout == loaded.med.config.vision.drop_path == 0.0
    assert loaded.med.config.vision.checkpoint_layers == 1


def test_a_model_without_the_head_cannot_be_fine_tuned(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(steps=1)
    assert recipe.model is not None
    recipe = replace(
        recipe,
        model=replace(recipe.model, heads=("lm",)),
        objectives=replace(recipe.objectives, losses=("lm",)),
    )
    base = recipe, train(recipe, tmp_path / "lm", quiet=True)
    with pytest.raises(MissingHead, match="no itc head"):
        train(
            fine_tuning(base, "filter", FilterObjectives(queue_size=8)),
            tmp_path / "filter",
            quiet=True,
        )


def test_activation_checkpointing_changes_no_weight(
    make_recipe: MakeRecipe, finished: tuple[Recipe, TrainResult], tmp_path: Path
) -> None:
    overrides = ModelOverrides(vision_checkpoint_layers=2, text_checkpoint_layers=1)
    train(replace(make_recipe(), overrides=overrides), tmp_path, quiet=True)
    assert weights(tmp_path) == weights(finished[1].run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_compiled_model_learns_the_same(
    rank: int, make_recipe: MakeRecipe, make_finetuning: MakeRecipe, tmp_path: Path
) -> None:
    """In a process of its own: run-time checks of shapes cannot be compiled."""
    plain = make_recipe(log_every=1)
    if rank:
        plain = make_finetuning("captioner", steps=4)
        plain = replace(
            plain,
            lora=LoraConfig(rank=rank),
            optimiser=replace(plain.optimiser, lr=1e-2),
            data=replace(plain.data, validation_split=None),
            train=replace(plain.train, log_every=1),
        )
    # Compiled dropout draws other numbers.
    plain = replace(plain, overrides=ModelOverrides(dropout=0.0, drop_path=0.0))
    compiled = replace(plain, train=replace(plain.train, compile=True))
    train(plain, tmp_path / "plain", quiet=True)
    write_recipe(compiled, tmp_path / "compiled.yaml")
    arguments = [str(tmp_path / "compiled.yaml"), str(tmp_path / "compiled")]
    subprocess.run([sys.executable, "-c", SCRIPT, *arguments], check=True)
    expected, seen = (read_metrics(tmp_path / name) for name in ("plain", "compiled"))
    assert len(seen) == 4
    assert [line["loss"] for line in seen] == pytest.approx(
        [line["loss"] for line in expected], rel=1e-4
    )


def test_bfloat16_comes_near_float32(
    make_recipe: MakeRecipe, finished: tuple[Recipe, TrainResult], tmp_path: Path
) -> None:
    result = train(make_recipe(precision="bfloat16"), tmp_path, quiet=True)
    assert result.terms["lm"] == pytest.approx(finished[1].terms["lm"], rel=0.05)
    assert read_folder(result.model_folder).med.temperature.dtype == torch.float32


@pytest.mark.parametrize(("asked", "told"), [(1, "1, as train.threads"), (None, "1, for products")])
def test_the_log_says_how_many_threads_compute(
    make_recipe: MakeRecipe, tmp_path: Path, asked: int | None, told: str
) -> None:
    recipe = make_recipe(steps=1)
    train(replace(recipe, train=replace(recipe.train, threads=asked)), tmp_path / "run", quiet=True)
    assert f"threads: {told}" in next(tmp_path.glob("run/logs/*.log")).read_text()


def test_progress_shows_losses_and_rates(
    make_recipe: MakeRecipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(make_recipe(steps=2), tmp_path)
    shown = capfd.readouterr().err
    assert "walls.lance: 20 pairs per epoch (100 %), weight 1 x 20 rows; human: 40 of 40" in shown
    assert "training pretrain: 2 of 2 steps" in shown
    assert all(
        name in shown for name in ("loss", "itc", "pairs/s", "utilisation", "waiting for data")
    )
