"""One model that retrieves and captions: what it learns shows under the commands' defaults."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.blip import Blip
from openblip.inference.loading import load
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.recipes.finetune import PROMPT
from openblip.training.recipe import Recipe
from openblip.training.run import train

from .conftest import COLOURS

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def untrained(tmp_path: Path) -> str:
    """A model whose tokenizer knows the prompt."""
    tokenizer = TextTokenizer.train([f"{PROMPT} a wall {' '.join(COLOURS)}"], 100)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        width=32,
        depth=2,
        heads=2,
        ffn_width=64,
        max_positions=40,
        dropout=0.0,
    )
    vision = VisionConfig(image_size=16, patch_size=8, width=32, depth=1, heads=2)
    torch.manual_seed(0)
    med = Med(MedConfig(vision=vision, text=text, embed_dim=8))
    Blip(med, tokenizer, "pretrain", 16, 38).save(tmp_path / "untrained")
    return str(tmp_path / "untrained")


@pytest.mark.slow
def test_it_writes_behind_the_prompt_and_matches_without_it(
    untrained: str, make_finetuning: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_finetuning("shared", untrained, steps=150)
    recipe = replace(
        recipe,
        data=replace(
            recipe.data,
            max_tokens=38,
            augmentation=replace(recipe.data.augmentation, randaugment=False),
        ),
        objectives=replace(recipe.objectives, min_temperature=0.05),
        optimiser=replace(recipe.optimiser, lr=5e-3),
        train=replace(recipe.train, checkpoint_every=150),
    )

    blip = load(train(recipe, tmp_path / "run", quiet=True).model_folder, device="cpu")

    images = [Image.new("RGB", (20, 20), colour) for colour in COLOURS]
    texts = [f"a {colour} wall" for colour in COLOURS]
    assert [choices[0].text for choices in blip.caption(images, max_length=30)] == texts
    matches = blip.match_all(images, texts)
    assert matches.argmax(dim=1).tolist() == [0, 1, 2, 3]
    assert matches.diagonal().min() > 0.9
    cosines = blip.embed_images(images) @ blip.embed_texts(texts).T
    assert cosines.argmax(dim=1).tolist() == [0, 1, 2, 3]
