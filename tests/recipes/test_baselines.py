"""CLIP and ALBEF beside BLIP: the published settings, and equal means."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from openblip.evaluation.retrieval import evaluate_retrieval
from openblip.inference.loading import load
from openblip.recipes.baselines import as_albef, as_clip, as_unimodal
from openblip.recipes.pretrain import PRETRAIN_RECIPES
from openblip.table.table import PairTable
from openblip.training.recipe import Recipe
from openblip.training.run import train
from openblip.world import WorldConfig, create_world

CONVERSIONS = {"clip": as_clip, "albef": as_albef, "unimodal": as_unimodal}


def test_clip_is_the_papers_setting() -> None:
    recipe = PRETRAIN_RECIPES["clip"]("pairs.lance")
    assert (recipe.train.batch_size, recipe.train.epochs) == (32768, 32)
    assert (recipe.optimiser.lr, recipe.optimiser.betas) == (5e-4, (0.9, 0.98))
    assert (recipe.optimiser.eps, recipe.optimiser.weight_decay) == (1e-6, 0.2)
    assert recipe.objectives.min_temperature == 0.01


def test_albef_is_its_released_configuration() -> None:
    recipe = PRETRAIN_RECIPES["albef"]("pairs.lance")
    assert (recipe.train.batch_size, recipe.train.epochs) == (512, 30)
    assert (recipe.optimiser.lr, recipe.optimiser.weight_decay) == (1e-4, 0.02)
    assert not recipe.optimiser.decay_norms_and_biases
    assert (recipe.data.image_size, recipe.data.max_tokens) == (256, 25)
    assert recipe.objectives.queue_size == 65536
    assert (recipe.objectives.alpha, recipe.objectives.alpha_ramp_epochs) == (0.4, 1.0)
    assert recipe.model.fusion_layer == 6


@pytest.mark.parametrize("make", CONVERSIONS.values(), ids=CONVERSIONS)
def test_beside_blip_only_model_and_objectives_differ(make) -> None:
    blip = PRETRAIN_RECIPES["tiny"]("pairs.lance")
    other = make(blip)
    assert replace(other, task=blip.task, model=blip.model, objectives=blip.objectives) == blip
    assert other.model.vision == blip.model.vision
    assert other.model.embed_dim == blip.model.embed_dim
    assert other.objectives.min_temperature == blip.objectives.min_temperature


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = tmp_path_factory.mktemp("world") / "pairs.lance"
    create_world(uri, WorldConfig(web_rows=16, human_rows=24, val_rows=4, test_rows=6))
    return str(uri)


def small(world: str) -> Recipe:
    recipe = PRETRAIN_RECIPES["tiny"](world)
    return replace(
        recipe,
        tokenizer="train:300",
        data=replace(recipe.data, num_threads=1),
        objectives=replace(recipe.objectives, queue_size=8),
        train=replace(recipe.train, batch_size=8, steps=2, checkpoint_every=1, device="cpu"),
    )


@pytest.mark.parametrize("make", CONVERSIONS.values(), ids=CONVERSIONS)
def test_each_is_trained_resumed_and_evaluated(make, world: str, tmp_path: Path) -> None:
    recipe = make(small(world))
    first = replace(recipe, train=replace(recipe.train, steps=1))
    assert train(first, tmp_path / "first", quiet=True).steps == 1
    result = train(recipe, tmp_path / "run", quiet=True)
    assert train(recipe, tmp_path / "run", quiet=True).steps == result.steps == 2
    model = load(result.model_folder, device="cpu")
    image = Image.new("RGB", (32, 32))
    assert model.embed_images(image).norm().item() == pytest.approx(1.0, abs=1e-5)
    can_match = "itm" in model.model.config.heads
    found = evaluate_retrieval(model, PairTable.open(world), k=2, use_itm=can_match, batch_size=4)
    assert torch.isfinite(torch.tensor(list(found.metrics.values()))).all()
