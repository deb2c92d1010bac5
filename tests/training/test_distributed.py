"""Two real processes, started by torchrun, do what one does."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.errors import RecipeError
from openblip.interop.folder import read_folder
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.model.config import config_to_dict
from openblip.tasks.captioner import CaptionerObjectives
from openblip.training.config import ModelOverrides, Recipe
from openblip.training.distributed import Processes, join_processes
from openblip.training.metrics_log import read_metrics
from openblip.training.recipe_file import write_recipe
from openblip.training.run import train

SCRIPT = Path(__file__).parent / "rank_script.py"
ROWS = 4

MakeRecipe = Callable[..., Recipe]
# The script is no module of a package, but its steps are those to compare with.
_SCRIPT = runpy.run_path(str(SCRIPT), run_name="rank_script")
step, gradients, part_of = _SCRIPT["step"], _SCRIPT["gradients"], _SCRIPT["part_of"]


def make_inputs() -> dict[str, Any]:
    """A model and a joint batch of both ranks, with unequal numbers of labels."""
    torch.manual_seed(0)
    config = MedConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2),
        text=TextConfig(
            vocab_size=30, width=16, depth=1, heads=2, ffn_width=32, max_positions=8, dropout=0.0
        ),
        embed_dim=8,
    )
    med = Med(config)
    for name, parameter in med.named_parameters():
        # Larger than fresh weights, so that attention and similarities are not flat.
        if name != "temperature":
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    mask = torch.arange(8) < torch.tensor([8, 7, 6, 5, 4, 4, 5, 3])[: 2 * ROWS, None]
    batch = {
        "images": torch.randn(2 * ROWS, 3, 16, 16),
        "tokens": torch.randint(7, 30, (2 * ROWS, 8)).masked_fill(~mask, 0),
        "mask": mask,
        "image_ids": torch.arange(2 * ROWS) + 100,
        "text_ids": torch.arange(2 * ROWS) + 200,
    }
    return {"model": config_to_dict(config), "weights": med.state_dict(), "batch": batch}


def plain_recipe(make_recipe: MakeRecipe) -> Recipe:
    """A run in which no random number depends on the rank."""
    recipe = make_recipe(steps=8, log_every=1, checkpoint_every=8)
    return replace(
        recipe,
        overrides=ModelOverrides(dropout=0.0, drop_path=0.0),
        objectives=replace(recipe.objectives, negatives="all_ranks"),
    )


def captioner_recipe(make_recipe: MakeRecipe) -> Recipe:
    """A run that leaves the heads for contrast and matching untrained."""
    return replace(make_recipe(steps=2), task="captioner", objectives=CaptionerObjectives())


@pytest.fixture(scope="module")
def folder(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left what they computed."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(make_inputs(), folder / "inputs.pt")
    write_recipe(plain_recipe(make_recipe), folder / "recipe.yaml")
    write_recipe(captioner_recipe(make_recipe), folder / "captioner.yaml")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(SCRIPT), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def test_collectives(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        known = rank["gathered"]
        assert known["gather"].tolist() == [0, 10, 1, 11]
        assert known["joined"].tolist() == [[1.0], [2.0]]
        assert torch.isnan(known["mean"][1])
        assert known["mean"][0] == 0.5
        assert known["objects"] == [["id-0"], ["id-1"]]
    # Both ranks weigh rank 0's part by 1 and 10, and rank 1's by 2 and 20.
    assert [rank["gathered"]["gradient"].item() for rank in ranks] == [11.0, 22.0]


def test_with_negatives_of_the_rank_each_computes_as_if_alone(ranks: list[dict[str, Any]]) -> None:
    inputs = make_inputs()
    alone = []
    for rank in range(2):
        # The forward sends nothing, so that one process can stand in for a rank.
        place, batch = Processes(rank=rank, world_size=2), part_of(inputs["batch"], rank, 2)
        alone.append(step(inputs, "rank", place, batch, averages_gradients=False))
    for (_, output), rank in zip(alone, ranks, strict=True):
        for name, term in output.terms.items():
            torch.testing.assert_close(rank["rank"]["terms"][name], term)
    for name, first in gradients(alone[0][0]).items():
        mean = (first + gradients(alone[1][0])[name]) / 2
        for rank in ranks:
            torch.testing.assert_close(rank["rank"]["gradients"][name], mean, atol=1e-6, rtol=1e-5)


def test_the_queue_receives_the_features_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    inputs = make_inputs()
    for negatives in ("rank", "all_ranks"):
        task, output = step(inputs, negatives, Processes(), part_of(inputs["batch"], 0, 1))
        task.finish_step(output.update)
        for rank in ranks:
            for name, tensor in task.queue.state_dict().items():
                torch.testing.assert_close(rank[negatives]["queue"][name], tensor)


def test_with_negatives_of_all_ranks_they_compute_as_one(ranks: list[dict[str, Any]]) -> None:
    inputs = make_inputs()
    task, output = step(inputs, "all_ranks", Processes(), part_of(inputs["batch"], 0, 1))
    results = [rank["all_ranks"] for rank in ranks]
    for name, term in output.terms.items():
        mean = (results[0]["terms"][name] + results[1]["terms"][name]) / 2
        torch.testing.assert_close(mean, term, atol=1e-5, rtol=0)
    expected = gradients(task)
    for result in results:
        assert result["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(
                result["gradients"][name], gradient, atol=1e-5, rtol=1e-5, msg=name
            )


def test_a_run_of_two_processes_goes_on_in_one(
    folder: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """One of the two was asked to stop: both stopped after the same step, and it was saved."""
    recipe = plain_recipe(make_recipe)
    (saved,) = (folder / "run" / "checkpoints").glob("step-*")
    assert 1 <= int(saved.name.removeprefix("step-")) < 8
    train(recipe, folder / "run", quiet=True)
    train(recipe, tmp_path, quiet=True)
    together, alone = read_metrics(folder / "run"), read_metrics(tmp_path)
    assert [line["step"] for line in together] == list(range(1, 9))
    for name in ("epoch", "lr", "loss", "itc", "itm", "lm"):
        assert [line[name] for line in together] == pytest.approx(
            [line[name] for line in alone], rel=1e-3
        )


def test_heads_without_a_loss_stay_as_they_are(
    folder: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    result = train(captioner_recipe(make_recipe), tmp_path, quiet=True)
    alone = read_folder(result.model_folder).med
    together = read_folder(folder / "captioner" / "checkpoints" / "last").med
    assert torch.equal(together.itm_head.weight, alone.itm_head.weight)
    assert torch.equal(together.temperature, alone.temperature)
    assert together.text.lm_head.bias.abs().max() > 0


def test_one_process_needs_no_launcher() -> None:
    processes = join_processes()
    assert (processes.rank, processes.world_size, processes.is_first) == (0, 1, True)
    tensor = torch.ones(2, requires_grad=True)
    assert processes.gather(tensor) is processes.gather_with_gradient(tensor) is tensor
    assert processes.mean(tensor) is tensor
    assert processes.gather_objects("x") == ["x"]


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match="set it to 'auto'"):
        join_processes("xpu")
