"""Flags that change a recipe."""

import pytest

from openblip.cli.flags import changed
from openblip.recipes.finetune import FINETUNE_RECIPES
from openblip.recipes.pretrain import PRETRAIN_RECIPES
from openblip.runtime.errors import RecipeError


def test_steps_take_the_place_of_the_recipes_epochs() -> None:
    recipe = FINETUNE_RECIPES["captioner"]("pairs.lance", "model", 384)
    assert recipe.train.epochs is not None

    train = changed(recipe, ["--train.steps=7"], "openblip finetune").train

    assert (train.steps, train.epochs) == (7, None)


def test_epochs_take_the_place_of_the_recipes_steps() -> None:
    recipe = PRETRAIN_RECIPES["tiny"]("pairs.lance")
    assert recipe.train.steps is not None

    train = changed(recipe, ["--train.epochs", "2"], "openblip pretrain").train

    assert (train.steps, train.epochs) == (None, 2)


def test_without_either_the_recipe_counts_as_before() -> None:
    recipe = PRETRAIN_RECIPES["tiny"]("pairs.lance")
    assert changed(recipe, ["--train.batch-size", "8"], "openblip pretrain").train.steps == (
        recipe.train.steps
    )


def test_both_are_refused_with_the_remedy() -> None:
    recipe = PRETRAIN_RECIPES["tiny"]("pairs.lance")
    with pytest.raises(RecipeError, match=r"train\.steps is 1 and train\.epochs is 2.*None for"):
        changed(recipe, ["--train.steps=1", "--train.epochs=2"], "openblip pretrain")


def test_a_model_to_start_from_takes_the_place_of_fresh_weights() -> None:
    recipe = PRETRAIN_RECIPES["tiny"]("pairs.lance")
    begun = changed(recipe, ["--init-from", "runs/x"], "openblip pretrain")
    assert (begun.init_from, begun.model, begun.tokenizer) == ("runs/x", None, None)
    assert begun.objectives == recipe.objectives


def test_a_bert_to_begin_with_takes_the_place_of_the_tokenizer() -> None:
    recipe = changed(
        PRETRAIN_RECIPES["tiny"]("t"), ["--init-text", "bert", "--init-image", "vit"], "prog"
    )
    assert (recipe.init_text, recipe.init_image, recipe.tokenizer) == ("bert", "vit", None)
    assert recipe.model is not None


def test_a_backbone_is_a_flag() -> None:
    recipe = changed(
        PRETRAIN_RECIPES["tiny"]("t"), ["--model.vision.backbone", "my_encoders:Encoder"], "prog"
    )
    assert recipe.model is not None
    assert recipe.model.vision.backbone == "my_encoders:Encoder"
