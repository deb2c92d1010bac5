"""Two and four real processes do what one does: replicated and divided."""

import os
import random
import runpy
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
import transformers

from openblip.checkpoints.folder import read_folder
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.model.albef import AlbefConfig
from openblip.model.config import config_to_dict
from openblip.objectives.albef import AlbefObjectives
from openblip.objectives.clip import ClipObjectives
from openblip.objectives.settings import CaptionerObjectives
from openblip.runtime.errors import RecipeError
from openblip.training.metrics_log import read_metrics
from openblip.training.parallelism import Processes, join_processes
from openblip.training.recipe import LoraConfig, ModelOverrides, Recipe
from openblip.training.recipe_file import write_recipe
from openblip.training.run import train

SCRIPT = Path(__file__).parent / "rank_script.py"
ROWS = 8

MakeRecipe = Callable[..., Recipe]
ReadStored = Callable[[Path], dict[str, torch.Tensor]]
# The script is no module of a package, but its steps are those to compare with.
_SCRIPT = runpy.run_path(str(SCRIPT), run_name="rank_script")
step, gradients, part_of = _SCRIPT["step"], _SCRIPT["gradients"], _SCRIPT["part_of"]
SHARDING = ("replicate", "full")


def make_inputs() -> dict[str, Any]:
    """A model and a joint batch of all ranks, with unequal numbers of labels.

    The last layers recompute their activations: the first ones do not.
    """
    torch.manual_seed(0)
    vision = VisionConfig(
        image_size=16, patch_size=8, width=16, depth=2, heads=2, checkpoint_layers=1
    )
    text = TextConfig(
        vocab_size=30,
        width=16,
        depth=2,
        heads=2,
        ffn_width=32,
        max_positions=8,
        dropout=0.0,
        checkpoint_layers=1,
    )
    config = MedConfig(vision=vision, text=text, embed_dim=8)
    med = Med(config)
    for name, parameter in med.named_parameters():
        # Larger than fresh weights, so that attention and similarities are not flat.
        if name != "temperature":
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    mask = torch.arange(8) < torch.tensor([8, 7, 6, 5, 4, 4, 5, 3])[:, None]
    batch = {
        "images": torch.randn(ROWS, 3, 16, 16),
        "tokens": torch.randint(7, 30, (ROWS, 8)).masked_fill(~mask, 0),
        "mask": mask,
        "image_ids": torch.arange(ROWS) + 100,
        "text_ids": torch.arange(ROWS) + 200,
    }
    return {"model": config_to_dict(config), "weights": med.state_dict(), "batch": batch}


def plain_recipe(make_recipe: MakeRecipe, sharding: str = "replicate") -> Recipe:
    """A run in which no random number depends on the rank."""
    recipe = make_recipe(
        steps=8, batch_size=8, accumulate=2, log_every=1, checkpoint_every=3, sharding=sharding
    )
    return replace(
        recipe,
        overrides=ModelOverrides(dropout=0.0, drop_path=0.0),
        data=replace(recipe.data, validation_split="val"),
        objectives=replace(recipe.objectives, negatives="all_ranks"),
        optimiser=replace(recipe.optimiser, clip_norm=1.0),
    )


def captioner_recipe(make_recipe: MakeRecipe, sharding: str) -> Recipe:
    """A run that leaves the heads for contrast and matching untrained."""
    recipe = make_recipe(steps=2, sharding=sharding)
    return replace(recipe, task="captioner", objectives=CaptionerObjectives())


def adapting_recipe(make_finetuning: MakeRecipe, sharding: str) -> Recipe:
    """A filter of which low-rank changes are learnt; no random number depends on the rank."""
    recipe = make_finetuning("filter", steps=3)
    return replace(
        recipe,
        lora=LoraConfig(rank=2),
        objectives=replace(recipe.objectives, negatives="all_ranks"),
        optimiser=replace(recipe.optimiser, lr=1e-2),
        train=replace(recipe.train, log_every=1, sharding=sharding),
    )


def launch_command(ranks: int, folder: Path, *work: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc-per-node={ranks}", str(SCRIPT), str(folder), *work]


def launch(ranks: int, folder: Path, *work: str) -> None:
    carry_out(launch_command(ranks, folder, *work))


def carry_out(command: list[str]) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def prepared(
    make_recipe: MakeRecipe,
    make_finetuning: MakeRecipe,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What processes read: a model with a batch, and recipes."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(make_inputs(), folder / "inputs.pt")
    divided = plain_recipe(make_recipe, "full")
    recipes = {
        "four-to-two": divided,
        "fails": replace(divided, optimiser=replace(divided.optimiser, lr=1e30)),
    }
    for sharding in SHARDING:
        recipes |= {
            f"two-to-one-{sharding}": plain_recipe(make_recipe, sharding),
            f"captioner-{sharding}": captioner_recipe(make_recipe, sharding),
            f"adapting-{sharding}": adapting_recipe(make_finetuning, sharding),
        }
    for name, recipe in recipes.items():
        write_recipe(recipe, folder / f"{name}.yaml")
    return folder


def runs_of(sharding: str) -> list[str]:
    return [
        f"begin:two-to-one-{sharding}",
        f"train:captioner-{sharding}",
        f"train:adapting-{sharding}",
    ]


@pytest.fixture(scope="module")
def by_two(prepared: Path) -> Path:
    """Where two processes have left what they did: a step of each kind, and divided runs."""
    # One interpreter, whose forks stand in for those that torchrun starts.
    two = ["ranks:2", "steps", *runs_of("full"), "fail:fails"]
    carry_out([sys.executable, str(SCRIPT), str(prepared), *two])
    return prepared


@pytest.fixture(scope="module")
def by_four(prepared: Path) -> Path:
    """Where four, and then two, have left the same steps, and replicated runs."""
    four = ["ranks:4", "steps", "begin:four-to-two"]
    two = ["ranks:2", "train:four-to-two", *runs_of("replicate")]
    carry_out([sys.executable, str(SCRIPT), str(prepared), *four, *two])
    return prepared


@pytest.fixture(scope="module", params=["full", pytest.param("replicate", marks=pytest.mark.slow)])
def runs(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """How two processes have shared the model in their runs, and where those are."""
    name = "by_two" if request.param == "full" else "by_four"
    return request.param, request.getfixturevalue(name)


@pytest.fixture(
    scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids=["two", "four"]
)
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each of so many processes computed."""
    folder = request.getfixturevalue("by_two" if request.param == 2 else "by_four")
    files = [folder / f"{request.param}-ranks-{rank}.pt" for rank in range(request.param)]
    return [torch.load(file, weights_only=True) for file in files]


@pytest.fixture(scope="module")
def alone(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nobody interrupted."""
    run_dir = tmp_path_factory.mktemp("alone")
    train(plain_recipe(make_recipe), run_dir, quiet=True)
    return run_dir


def test_collectives(ranks: list[dict[str, Any]]) -> None:
    count = len(ranks)
    for rank in ranks:
        known = rank["gathered"]
        assert known["gather"].tolist() == [n for r in range(count) for n in (r, r + 10)]
        assert known["joined"].tolist() == [[1.0 + r] for r in range(count)]
        assert torch.isnan(known["mean"][1])
        assert known["mean"][0] == (count - 1) / 2
        assert known["first"].tolist() == [5]
        assert known["objects"] == [[f"id-{r}"] for r in range(count)]
    # Every rank weighs rank r's part by r + 1, times 1, 10, 100 ...
    ones = float("1" * count)
    assert [r["gathered"]["gradient"].item() for r in ranks] == [
        ones * (n + 1) for n in range(count)
    ]


@pytest.mark.parametrize("sharding", SHARDING)
def test_with_negatives_of_the_rank_each_computes_as_if_alone(
    ranks: list[dict[str, Any]], sharding: str
) -> None:
    inputs, count = make_inputs(), len(ranks)
    own_gradients = []
    for rank, results in enumerate(ranks):
        # The forward sends nothing, so that one process can stand in for a rank.
        place, batch = Processes(rank, count), part_of(inputs["batch"], rank, count)
        task, output = step(inputs, place, batch, negatives="rank")
        own_gradients.append({n: p.grad for n, p in task.student.named_parameters()})
        for name, term in output.terms.items():
            torch.testing.assert_close(
                results["steps"][sharding, "rank", "float32"]["terms"][name], term
            )
    found = ranks[0]["steps"][sharding, "rank", "float32"]["gradients"]
    for name, gradient in found.items():
        mean = sum(own[name] for own in own_gradients) / count
        torch.testing.assert_close(gradient, mean, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("sharding", SHARDING)
def test_the_queue_receives_the_features_of_all_ranks(
    ranks: list[dict[str, Any]], sharding: str
) -> None:
    inputs = make_inputs()
    for negatives in ("rank", "all_ranks"):
        batch = part_of(inputs["batch"], 0, 1)
        task, output = step(inputs, Processes(), batch, negatives=negatives)
        task.finish_step(output.update)
        for rank in ranks:
            queue = rank["steps"][sharding, negatives, "float32"]["queue"]
            for name, tensor in task.queue.state_dict().items():
                torch.testing.assert_close(queue[name], tensor)


@pytest.mark.parametrize("sharding", SHARDING)
def test_with_negatives_of_all_ranks_they_compute_as_one(
    ranks: list[dict[str, Any]], sharding: str
) -> None:
    inputs, one = make_inputs(), Processes()
    batch = part_of(inputs["batch"], 0, 1)
    task, output = step(inputs, one, batch, negatives="all_ranks")
    results = [rank["steps"][sharding, "all_ranks", "float32"] for rank in ranks]
    for name, term in output.terms.items():
        mean = sum(result["terms"][name] for result in results) / len(ranks)
        torch.testing.assert_close(mean, term, atol=1e-5, rtol=0)
    expected = gradients(task, one)
    assert results[0]["gradients"].keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            results[0]["gradients"][name], gradient, atol=1e-5, rtol=1e-5, msg=name
        )
    norm = torch.nn.utils.get_total_norm(expected.values())
    for result in results:
        torch.testing.assert_close(result["norm"], norm)
        torch.testing.assert_close(result["clipped_norm"], torch.tensor(0.5))


def test_in_bfloat16_a_divided_model_computes_as_a_replicated_one(
    ranks: list[dict[str, Any]],
) -> None:
    replicated, divided = (
        [rank["steps"][sharding, "all_ranks", "bfloat16"] for rank in ranks]
        for sharding in SHARDING
    )
    for first, second in zip(replicated, divided, strict=True):
        for name, term in first["terms"].items():
            torch.testing.assert_close(second["terms"][name], term)
    for name, gradient in replicated[0]["gradients"].items():
        torch.testing.assert_close(
            divided[0]["gradients"][name], gradient, atol=1e-4, rtol=1e-2, msg=name
        )


def test_a_divided_model_is_held_once_by_all_ranks_together(ranks: list[dict[str, Any]]) -> None:
    key = ("all_ranks", "float32")
    whole = ranks[0]["steps"]["replicate", *key]["elements"]
    parts = [rank["steps"]["full", *key]["elements"] for rank in ranks]
    # Every rank has the temperature, of student and teacher.
    assert sum(parts) == whole + 2 * (len(ranks) - 1)
    assert max(parts) < 1.4 * whole / len(ranks)


def assert_same_run(run_dir: Path, alone: Path, read_stored: ReadStored) -> None:
    """The curves of a run are those of another, and its last checkpoint is in one piece."""
    compared = {
        "train": ("step", "epoch", "lr", "loss", "itc", "itm", "lm", "grad_norm"),
        "validation": ("step", "loss", "itc", "itm", "lm"),
    }
    for kind, numbers in compared.items():
        together, by_one = (
            [line for line in read_metrics(run) if line["kind"] == kind] for run in (run_dir, alone)
        )
        # There may be more checkpoints, each with its validation.
        steps = {line["step"] for line in by_one}
        together = [line for line in together if line["step"] in steps]
        for number in numbers:
            assert [line[number] for line in together] == pytest.approx(
                [line[number] for line in by_one], rel=2e-3
            )
    last = run_dir / "checkpoints" / "last"
    stored, student = read_stored(last), read_folder(last).med.state_dict()
    assert stored.keys() == read_stored(alone / "checkpoints" / "last").keys()
    assert all(torch.equal(stored[f"task.student.{n}"], student[n]) for n in student)


def test_a_run_of_two_processes_goes_on_in_one(
    runs: tuple[str, Path], alone: Path, make_recipe: MakeRecipe, read_stored: ReadStored
) -> None:
    """One of the two was asked to stop: both stopped after the same step, and it was saved."""
    sharding, folder = runs
    run_dir = folder / f"two-to-one-{sharding}"
    saved = (run_dir / "checkpoints" / "last").readlink().name
    assert 1 <= int(saved.removeprefix("step-")) < 8
    train(plain_recipe(make_recipe, sharding), run_dir, quiet=True)
    assert_same_run(run_dir, alone, read_stored)


@pytest.mark.slow
def test_a_divided_run_of_four_processes_goes_on_in_two(
    by_four: Path, alone: Path, read_stored: ReadStored
) -> None:
    assert_same_run(by_four / "four-to-two", alone, read_stored)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDING)
def test_a_run_of_two_processes_goes_on_in_four(
    sharding: str, alone: Path, make_recipe: MakeRecipe, read_stored: ReadStored, tmp_path: Path
) -> None:
    write_recipe(plain_recipe(make_recipe, sharding), tmp_path / "run.yaml")
    launch(2, tmp_path, "begin:run")
    launch(4, tmp_path, "train:run")
    assert_same_run(tmp_path / "run", alone, read_stored)


@pytest.mark.slow
def test_the_other_models_can_be_divided_too(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    plain = plain_recipe(make_recipe)
    assert plain.model is not None
    albef = AlbefConfig(
        vision=plain.model.vision,
        text=replace(plain.model.text, depth=2, dropout=0.0),
        embed_dim=8,
        fusion_layer=1,
    )
    recipes = {
        "clip": replace(
            plain,
            task="clip",
            model=replace(plain.model, heads=("itc",)),
            objectives=ClipObjectives(),
        ),
        "albef": replace(
            plain, task="albef", model=albef, objectives=AlbefObjectives(queue_size=8)
        ),
    }
    runs = {(task, sharding): f"{task}-{sharding}" for task in recipes for sharding in SHARDING}
    for (task, sharding), name in runs.items():
        recipe = recipes[task]
        recipe = replace(recipe, train=replace(recipe.train, sharding=sharding))
        write_recipe(recipe, tmp_path / f"{name}.yaml")
    launch(2, tmp_path, *(f"train:{name}" for name in runs.values()))
    for task in recipes:
        replicated, divided = (read_metrics(tmp_path / runs[task, s]) for s in SHARDING)
        assert len(divided) == 11
        assert [line["loss"] for line in divided] == pytest.approx(
            [line["loss"] for line in replicated], rel=1e-3
        )


@pytest.mark.slow
def test_a_model_with_a_backbone_can_be_divided_too(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    # It keeps the numbers of its positions besides its state.
    sizes = {"hidden_size": 16, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
    config = transformers.SiglipVisionConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path / "siglip")
    vision = VisionConfig(backbone=f"transformers:{tmp_path / 'siglip'}", checkpoint_layers=1)
    for sharding in SHARDING:
        recipe = plain_recipe(make_recipe, sharding)
        assert isinstance(recipe.model, MedConfig)
        recipe = replace(recipe, model=replace(recipe.model, vision=vision))
        write_recipe(recipe, tmp_path / f"{sharding}.yaml")
    launch(2, tmp_path, *(f"train:{sharding}" for sharding in SHARDING))
    replicated, divided = (read_metrics(tmp_path / sharding) for sharding in SHARDING)
    assert len(divided) == 11
    assert [line["loss"] for line in divided] == pytest.approx(
        [line["loss"] for line in replicated], rel=1e-3
    )


@pytest.mark.slow
def test_processes_killed_while_they_write_go_on_as_one_whole(
    alone: Path, make_recipe: MakeRecipe, read_stored: ReadStored, tmp_path: Path
) -> None:
    """All are killed at random moments; there is a checkpoint after every step."""
    recipe = plain_recipe(make_recipe, "full")
    recipe = replace(recipe, train=replace(recipe.train, checkpoint_every=1))
    write_recipe(recipe, tmp_path / "run.yaml")
    checkpoints = tmp_path / "run" / "checkpoints"
    for kills in range(3):
        command = launch_command(2, tmp_path, "train:run")
        process = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True
        )
        while len(read_metrics(tmp_path / "run")) < 1 + 2 * kills:
            assert process.poll() is None, "the run ended before it was killed"
            time.sleep(0.01)
        time.sleep(random.random() * 0.2)
        # The launcher gives every process a session of its own: each is killed by its number.
        for child in [process.pid, *children_of(process.pid)]:
            os.kill(child, signal.SIGKILL)
        process.wait()
        for checkpoint in checkpoints.glob("step-*"):
            assert {path.name for path in checkpoint.iterdir()} == {
                "config.json",
                "model.safetensors",
                "run_state.json",
                "tokenizer.json",
                "training_state",
            }
            read_stored(checkpoint)
    launch(2, tmp_path, "train:run")
    assert_same_run(tmp_path / "run", alone, read_stored)
    assert not list(checkpoints.glob(".*"))


def children_of(process: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def test_heads_without_a_loss_stay_as_they_are(
    runs: tuple[str, Path], make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    sharding, folder = runs
    result = train(captioner_recipe(make_recipe, sharding), tmp_path, quiet=True)
    alone = read_folder(result.model_folder).med
    together = read_folder(folder / f"captioner-{sharding}" / "checkpoints" / "last").med
    assert torch.equal(together.itm_head.weight, alone.itm_head.weight)
    assert torch.equal(together.temperature, alone.temperature)
    assert together.text.lm_head.bias.abs().max() > 0


def test_low_rank_changes_are_learnt_by_all(
    runs: tuple[str, Path], make_finetuning: MakeRecipe, tmp_path: Path
) -> None:
    sharding, folder = runs
    result = train(adapting_recipe(make_finetuning, sharding), tmp_path, quiet=True)
    alone = read_folder(result.model_folder).med.state_dict()
    run_dir = folder / f"adapting-{sharding}"
    together = read_folder(run_dir / "checkpoints" / "last").med.state_dict()
    assert together.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    for number in ("loss", "itc", "itm"):
        assert [line[number] for line in read_metrics(run_dir)] == pytest.approx(
            [line[number] for line in read_metrics(tmp_path)], rel=1e-4
        )


def test_a_failed_step_of_a_divided_model_is_told_and_kept_by_all(by_two: Path) -> None:
    told = {(by_two / "fails" / f"rank-{rank}.txt").read_text() for rank in range(2)}
    assert len(told) == 1
    assert "is not finite" in told.pop()
    (failed,) = (by_two / "fails" / "checkpoints").glob("failed-step-*")
    assert all(t.isfinite().all() for t in read_folder(failed).med.state_dict().values())


def test_one_process_needs_no_launcher() -> None:
    processes = join_processes()
    assert (processes.rank, processes.world_size, processes.is_first) == (0, 1, True)
    tensor = torch.ones(2, requires_grad=True)
    assert processes.gather(tensor) is processes.gather_with_gradient(tensor) is tensor
    assert processes.mean(tensor) is tensor
    assert processes.from_first(tensor) is tensor
    assert processes.gather_objects("x") == ["x"]


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match="set it to 'auto'"):
        join_processes("xpu")
    with pytest.raises(RecipeError, match=r"train.device is 'cudaa', which is no device: give"):
        join_processes("cudaa")
