"""Models for questions and for two images are trained from a pre-trained MED, and go on."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from openblip.data.table import PairRow, PairTable
from openblip.data.tokenizer import TextTokenizer
from openblip.errors import CheckpointError, RecipeError
from openblip.inference import Blip, load
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.recipes.finetune import FINETUNE_RECIPES
from openblip.training.config import Recipe
from openblip.training.run import train

COLOURS = ("red", "green", "blue", "white")


def row(number: int) -> PairRow:
    colour = COLOURS[number % 4]
    file = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(file, "PNG")
    meta = {
        "questions": [{"question": "what colour is it?", "answers": [colour, "dark"]}],
        "pairs": [
            {"second": f"r{(number + 1) % 12}", "sentence": "one is red", "label": number % 2 == 0}
        ],
    }
    split = "val" if number >= 10 else "train"
    return PairRow(
        f"r{number}", file.getvalue(), captions=[f"a {colour} wall"], split=split, meta=meta
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = tmp_path_factory.mktemp("students") / "pairs.lance"
    PairTable.create(uri, [row(number) for number in range(12)])
    return str(uri)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = "what colour is it one is dark a wall " + " ".join(COLOURS)
    tokenizer = TextTokenizer.train([words], 100)
    config = MedConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            width=16,
            depth=2,
            heads=2,
            ffn_width=32,
            max_positions=32,
            dropout=0.0,
        ),
        embed_dim=8,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "pretrained"
    Blip(Med(config), tokenizer, "pretrain", 16, 30).save(folder)
    return str(folder)


def recipe_of(task: str, table: str, init_from: str, steps: int = 2) -> Recipe:
    recipe = FINETUNE_RECIPES[task](table, init_from, 16)
    return replace(
        recipe,
        data=replace(
            recipe.data, image_size=16, max_tokens=16, num_threads=1, validation_split="val"
        ),
        train=replace(
            recipe.train, batch_size=4, epochs=None, steps=steps, checkpoint_every=1, device="cpu"
        ),
    )


@pytest.mark.parametrize("task", ["vqa", "nlvr"])
def test_each_is_trained_goes_on_and_is_used(
    task: str, table: str, pretrained: str, tmp_path: Path
) -> None:
    result = train(recipe_of(task, table, pretrained), tmp_path / "run", quiet=True)
    assert result.steps == 2
    blip = load(result.model_folder, device="cpu")
    image = Image.new("RGB", (20, 20), "red")
    if task == "vqa":
        (answer,) = blip.ask(image, "what colour is it?", candidates=["red", "dark"])
        assert answer.text in ("red", "dark")
    else:
        assert 0.0 <= blip.compare(image, image, "one is red").item() <= 1.0
    # A model of its own kind is what a further run may start from.
    further = recipe_of(task, table, str(result.model_folder), steps=1)
    assert train(further, tmp_path / "further", quiet=True).steps == 1


def test_a_model_of_another_kind_is_refused(table: str, pretrained: str, tmp_path: Path) -> None:
    vqa = train(recipe_of("vqa", table, pretrained, 1), tmp_path / "vqa", quiet=True).model_folder
    with pytest.raises(CheckpointError, match="vqa model"):
        train(recipe_of("nlvr", table, str(vqa)), tmp_path / "nlvr", quiet=True)


def test_fresh_weights_are_refused(table: str, pretrained: str) -> None:
    recipe = recipe_of("vqa", table, pretrained)
    with pytest.raises(RecipeError, match="init_from"):
        replace(recipe, model=MedConfig(), init_from=None, tokenizer="train:100")
