"""Fine-tuning by low-rank changes: every task, stopped and continued, saved as a plain model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openblip.checkpoints.folder import read_folder
from openblip.model.lowrank import low_rank_layers
from openblip.objectives.contrastive import ContrastiveTask
from openblip.objectives.task import StepPosition
from openblip.runtime.errors import RecipeError
from openblip.training.build import build_model, build_task
from openblip.training.checkpoint import read_checkpoint
from openblip.training.optimiser import build_optimiser, trained_parameters
from openblip.training.parallelism import Processes
from openblip.training.recipe import LoraConfig, Recipe
from openblip.training.run import train

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def make_adapting(make_finetuning: MakeRecipe) -> MakeRecipe:
    """`make_adapting(task, steps)`: the same by changes of rank 2, fast enough to be seen."""

    def make(task: str, steps: int = 2) -> Recipe:
        recipe = make_finetuning(task, steps=steps)
        return replace(
            recipe,
            lora=replace(recipe.lora, rank=2, alpha=4.0),
            optimiser=replace(recipe.optimiser, lr=1e-2),
        )

    return make


@pytest.mark.parametrize("task", ["captioner", "filter", "shared", "vqa", "nlvr"])
def test_only_the_targets_change_and_the_saved_model_is_plain(
    task: str,
    make_adapting: MakeRecipe,
    tmp_path: Path,
) -> None:
    recipe = make_adapting(task)
    begun = build_model(recipe, Processes())
    adapted = {f"{name}.weight" for name, _ in low_rank_layers(begun)}

    result = train(recipe, tmp_path / "run", quiet=True)

    after = read_folder(result.model_folder).model.state_dict()
    before = {n: p for n, p in begun.state_dict().items() if n in after}
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    heads = {name for name in after if task == "nlvr" and ("merge" in name or "classif" in name)}
    assert changed <= adapted | heads
    # Cross-attention of a text layer that the task does not reach stays; much else does not.
    assert len(changed) > len(adapted | heads) / 2
    trained = sum(p.numel() for p in begun.parameters() if p.requires_grad)
    assert result.trained_weights == trained < sum(t.numel() for t in after.values()) / 2


def test_the_saved_model_computes_what_the_trained_one_did(
    make_adapting: MakeRecipe,
    tmp_path: Path,
) -> None:
    recipe = make_adapting("shared", steps=4)
    result = train(recipe, tmp_path / "run", quiet=True)
    loaded = read_folder(result.model_folder)
    adapted = build_model(recipe, Processes()).eval()
    task = build_task(recipe, adapted, loaded.tokenizer, Processes()).eval()
    optimiser = build_optimiser(trained_parameters(task), recipe.optimiser)
    read_checkpoint(result.model_folder, task, optimiser)
    assert any(layer.up.abs().max() > 1e-3 for _, layer in low_rank_layers(task.student))
    plain = loaded.med.eval()
    images = torch.randn(2, 3, 16, 16)
    texts = loaded.tokenizer.encode(["a red wall", "a blue wall is dark"], 16)
    found, expected = (
        (
            model.embed_texts(texts.ids, texts.mask),
            model.match(texts.ids, texts.mask, model.text.remember(model.encode_images(images))),
        )
        for model in (plain, task.student)
    )
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    make_adapting: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_adapting("filter", steps=4)
    whole = train(recipe, tmp_path / "whole", quiet=True)

    def fail(self: object, position: StepPosition) -> None:
        if position.step == 2:
            raise KeyboardInterrupt
        begin(self, position)

    begin = ContrastiveTask.begin_step
    monkeypatch.setattr(ContrastiveTask, "begin_step", fail)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "stopped", quiet=True)
    monkeypatch.undo()
    again = train(recipe, tmp_path / "stopped", quiet=True)

    first, second = (
        (result.model_folder / "model.safetensors").read_bytes() for result in (whole, again)
    )
    assert first == second


def test_the_teacher_follows_the_changed_student(
    make_adapting: MakeRecipe,
) -> None:
    recipe = make_adapting("filter")
    recipe = replace(recipe, objectives=replace(recipe.objectives, momentum=0.5))
    tokenizer = read_folder(Path(recipe.init_from)).tokenizer
    task = build_task(recipe, build_model(recipe, Processes()), tokenizer, Processes())
    name, layer = next(iter(low_rank_layers(task.student)))
    with torch.no_grad():
        layer.up.fill_(0.1)
    before = task.teacher.get_parameter(f"{name}.weight").clone()

    task.begin_step(StepPosition(0, 0.0))

    change = 2.0 * layer.up @ layer.down
    found = task.teacher.get_parameter(f"{name}.weight")
    torch.testing.assert_close(found, before + 0.5 * change)
    assert change.abs().max() > 1e-3


def test_fresh_weights_and_settings_without_sense_are_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"lora.rank is for a model to start from"):
        replace(make_recipe(), lora=LoraConfig(rank=4))
    with pytest.raises(RecipeError, match=r"lora.alpha is 0"):
        LoraConfig(rank=4, alpha=0.0)
    with pytest.raises(RecipeError, match=r"lora.targets is empty"):
        LoraConfig(rank=4, targets=())
