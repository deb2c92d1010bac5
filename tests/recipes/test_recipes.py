"""Recipes: the numbers of the paper and of the released configurations."""

from dataclasses import replace
from inspect import signature

import pytest

from openblip.evaluation.captioning import evaluate_caption
from openblip.inference.blip import Blip
from openblip.recipes.finetune import FINETUNE_RECIPES, PROMPT
from openblip.recipes.pretrain import PRETRAIN_RECIPES
from openblip.training.recipe_file import read_recipe, write_recipe


def test_base_is_the_papers_setting() -> None:
    recipe = PRETRAIN_RECIPES["base"]("pairs.lance")

    assert recipe.train.batch_size == 2880
    assert recipe.train.epochs == 20
    assert (recipe.optimiser.lr, recipe.optimiser.weight_decay) == (3e-4, 0.05)
    assert recipe.optimiser.decay_norms_and_biases
    assert recipe.optimiser.clip_norm is None
    assert recipe.schedule.warmup_steps == 3000
    assert recipe.objectives.queue_size == 57600
    assert (recipe.objectives.momentum, recipe.objectives.alpha) == (0.995, 0.4)
    assert recipe.data.augmentation.min_scale == 0.2
    assert (recipe.data.max_words, recipe.data.max_tokens) == (30, 30)


def test_large_differs_in_model_batch_learning_rate_and_sharding() -> None:
    recipe = PRETRAIN_RECIPES["large"]("pairs.lance")
    assert recipe.model is not None
    assert (recipe.model.vision.depth, recipe.model.vision.width) == (24, 1024)
    assert (recipe.train.batch_size, recipe.optimiser.lr) == (2400, 2e-4)
    assert recipe.train.sharding == "full"
    assert PRETRAIN_RECIPES["base"]("pairs.lance").train.sharding == "replicate"


@pytest.mark.parametrize(("task", "tokens", "words"), [("captioner", 40, 50), ("filter", 35, 30)])
def test_fine_tuning_sees_human_captions_alone(task: str, tokens: int, words: int) -> None:
    recipe = FINETUNE_RECIPES[task]("pairs.lance", "runs/noisy", 224)
    assert recipe.data.view.sources == ("human",)
    assert (recipe.data.max_tokens, recipe.data.max_words) == (tokens, words)
    assert recipe.optimiser.lr == 1e-5
    assert recipe.data.prefix == (PROMPT if task == "captioner" else "")


def test_retrieval_is_the_filters_training_as_it_was_released_for_coco() -> None:
    recipe = FINETUNE_RECIPES["retrieval"]("pairs.lance", "runs/noisy", 224)
    assert recipe.data.image_size == 384
    assert (recipe.train.epochs, recipe.train.batch_size) == (6, 256)
    assert (recipe.optimiser.lr, recipe.optimiser.weight_decay) == (1e-5, 0.05)
    assert recipe.objectives.negatives == "all_ranks"
    as_filter = FINETUNE_RECIPES["filter"]("pairs.lance", "runs/noisy", 384)
    assert replace(recipe, objectives=as_filter.objectives) == as_filter
    assert replace(recipe.objectives, negatives="rank") == as_filter.objectives


def test_one_model_retrieves_and_writes_behind_the_prompt_that_captions_begin_with() -> None:
    recipe = FINETUNE_RECIPES["shared"]("pairs.lance", "runs/noisy", 224)
    assert recipe.objectives.losses == ("itc", "itm", "lm")
    alone = FINETUNE_RECIPES["filter"]("pairs.lance", "runs/noisy", 224)
    assert recipe.data.max_tokens == alone.data.max_tokens + 3
    for function in (Blip.caption, evaluate_caption):
        assert recipe.data.prefix == signature(function).parameters["prompt"].default


@pytest.mark.parametrize("name", sorted(PRETRAIN_RECIPES))
def test_a_recipe_survives_its_file(name: str, tmp_path) -> None:
    recipe = PRETRAIN_RECIPES[name]("pairs.lance")
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
