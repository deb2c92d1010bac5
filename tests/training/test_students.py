"""Models for questions and for two images are trained from a pre-trained MED, and go on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from openblip.inference.loading import load
from openblip.model import MedConfig
from openblip.runtime.errors import CheckpointError, RecipeError
from openblip.training.recipe import Recipe
from openblip.training.run import train

MakeRecipe = Callable[..., Recipe]


@pytest.mark.parametrize("task", ["vqa", "nlvr"])
def test_each_is_trained_goes_on_and_is_used(
    task: str, make_finetuning: MakeRecipe, tmp_path: Path
) -> None:
    result = train(make_finetuning(task), tmp_path / "run", quiet=True)
    assert result.steps == 2
    blip = load(result.model_folder, device="cpu")
    image = Image.new("RGB", (20, 20), "red")
    if task == "vqa":
        (answer,) = blip.ask(image, "what colour is it?", candidates=["red", "dark"])
        assert answer.text in ("red", "dark")
    else:
        assert 0.0 <= blip.compare(image, image, "one is red").item() <= 1.0
    # A model of its own kind is what a further run may start from.
    further = make_finetuning(task, str(result.model_folder), steps=1)
    assert train(further, tmp_path / "further", quiet=True).steps == 1


def test_a_model_of_another_kind_is_refused(make_finetuning: MakeRecipe, tmp_path: Path) -> None:
    vqa = train(make_finetuning("vqa", steps=1), tmp_path / "vqa", quiet=True).model_folder
    with pytest.raises(CheckpointError, match="vqa model"):
        train(make_finetuning("nlvr", str(vqa)), tmp_path / "nlvr", quiet=True)


def test_fresh_weights_are_refused(make_finetuning: MakeRecipe) -> None:
    recipe = make_finetuning("vqa")
    with pytest.raises(RecipeError, match="init_from"):
        replace(recipe, model=MedConfig(), init_from=None, tokenizer="train:100")
