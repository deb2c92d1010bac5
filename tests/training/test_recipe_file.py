"""Recipes as YAML, and what a recipe refuses."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from openblip.batches.augmentation import Augmentation
from openblip.model import TextConfig, VisionConfig
from openblip.objectives.settings import CaptionerObjectives, ClipObjectives, FilterObjectives
from openblip.runtime.errors import RecipeError
from openblip.table.views import CaptionView
from openblip.training.recipe import (
    LoraConfig,
    MixedTable,
    ModelOverrides,
    OptimiserConfig,
    Recipe,
    ScheduleConfig,
    TrainConfig,
)
from openblip.training.recipe_file import (
    difference,
    read_recipe,
    recipe_from_dict,
    recipe_to_dict,
    write_recipe,
)

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def plain(make_recipe: MakeRecipe) -> dict[str, Any]:
    return recipe_to_dict(make_recipe())


def test_a_written_recipe_is_read_back_equal(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(precision="bfloat16")
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe


def test_further_tables_are_written_and_read(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    web = MixedTable(table="web.lance", weight=0.5, view=CaptionView(sources=("web",), itm=0.5))
    recipe = replace(recipe, data=replace(recipe.data, mix=(web, MixedTable(table="more.lance"))))
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    assert [part.table for part in recipe.data.mixture[1:]] == ["web.lance", "more.lance"]


@pytest.mark.parametrize(
    ("task", "objectives"),
    [("captioner", CaptionerObjectives(label_smoothing=0.2)), ("filter", FilterObjectives())],
)
def test_each_task_reads_its_own_objectives(
    make_recipe: MakeRecipe, task: Any, objectives: Any
) -> None:
    recipe = replace(
        make_recipe(), task=task, objectives=objectives, model=None, tokenizer=None, init_from="x"
    )
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe


def test_what_is_not_given_takes_its_default(plain: dict[str, Any]) -> None:
    plain["train"] = {"epochs": 2}
    del plain["optimiser"]
    recipe = recipe_from_dict(plain)
    assert recipe.train == TrainConfig(epochs=2)
    assert recipe.optimiser.weight_decay == 0.05


def test_a_number_that_yaml_reads_as_text_is_a_number(plain: dict[str, Any]) -> None:
    plain["optimiser"] = yaml.safe_load("lr: 1e-4")
    assert recipe_from_dict(plain).optimiser.lr == 1e-4


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("train", "batchsize"), 4, "train.batchsize is unknown; did you mean train.batch_size"),
        (("data", "view", "itn"), 0.5, "data.view.itn is unknown; did you mean data.view.itm"),
        (
            ("objectives", "queue"),
            8,
            "objectives.queue is unknown; did you mean objectives.queue_size",
        ),
        (("objektives",), {}, "objektives is unknown; did you mean objectives"),
        (("train", "steps"), "ten", "train.steps is 'ten'; expected a whole number"),
        (("train", "steps"), True, "train.steps is True; expected a whole number"),
        (("optimiser", "lr"), "fast", "optimiser.lr is 'fast'; expected a number"),
        (("train", "precision"), "half", "train.precision is 'half'; expected one of float32"),
        (("data", "view", "sources"), "web", "data.view.sources is 'web'; expected a list"),
        (("optimiser", "betas"), [0.9], "optimiser.betas is \\[0.9\\]; expected a list of 2"),
        (("data", "table"), None, "data.table is None; expected text"),
        (("data", "mix"), [{"tabel": "x"}], "data.mix.0.tabel is unknown; did you mean"),
        (("data", "mix"), [{"table": "x", "weight": 0}], "weight of x is 0.0; give more than 0"),
        (("data", "weight"), -1, "data.weight is -1.0; give more than 0"),
        (("data",), {}, "data.table is missing"),
        (("train",), 7, "train is 7; expected fields"),
        (("task",), "pretrian", "task is 'pretrian'; choose one of pretrain"),
    ],
)
def test_a_wrong_field_is_named(
    plain: dict[str, Any], place: tuple[str, ...], value: Any, message: str
) -> None:
    part = plain
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    with pytest.raises(RecipeError, match=message):
        recipe_from_dict(plain)


def test_the_file_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("task: [")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: cannot be read as YAML"):
        read_recipe(path)
    path.write_text("just text")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: expected fields"):
        read_recipe(path)


def test_recipes_differ_in_the_first_field_that_does(make_recipe: MakeRecipe) -> None:
    assert difference(make_recipe(), make_recipe()) is None
    changed = difference(make_recipe(seed=1), make_recipe(seed=2, steps=9))
    assert changed == "train.steps (was 4, is 9)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "x"}, "either model .* or init_from"),
        ({"model": None, "init_from": "x"}, "none with init_from"),
        ({"tokenizer": None}, "give a file or train:N with model"),
        ({"task": "captioner"}, "needs CaptionerObjectives"),
        ({"schedule": ScheduleConfig(min_lr=0.1)}, "schedule.min_lr 0.1 is above optimiser.lr"),
    ],
)
def test_contradictions_are_refused(
    make_recipe: MakeRecipe, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(make_recipe(), **changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 1, "epochs": 2}, "train.steps is 1 and train.epochs is 2"),
        ({}, "train.steps is None and train.epochs is None"),
        ({"steps": 0}, "train.steps is 0; give at least 1"),
        ({"steps": 1, "accumulate": 0}, "train.accumulate is 0"),
        ({"steps": 1, "compile": True, "sharding": "full"}, "set one of them"),
    ],
)
def test_lengths_are_checked(settings: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(steps=1, seed=-1), "train.seed is -1; give at least 0"),
        (lambda: OptimiserConfig(lr=math.nan), "optimiser.lr is nan; give at least 0"),
        (lambda: OptimiserConfig(lr=math.inf), "optimiser.lr is inf; give at least 0"),
        (lambda: OptimiserConfig(betas=(0.9, 1.5)), "optimiser.betas is 1.5; give .* less than 1"),
        (lambda: OptimiserConfig(clip_norm=0.0), "optimiser.clip_norm is 0.0; give more than 0"),
        (lambda: ScheduleConfig(decay_rate=0.0), "schedule.decay_rate is 0.0; give more than 0"),
        (lambda: LoraConfig(alpha=math.nan), "lora.alpha is nan; give more than 0"),
        (lambda: ModelOverrides(drop_path=1.0), "overrides.drop_path is 1.0; give .* less than 1"),
        (lambda: ModelOverrides(dropout=3.0), "overrides.dropout is 3.0"),
        (lambda: ModelOverrides(text_checkpoint_layers=-1), "text_checkpoint_layers is -1"),
        (lambda: VisionConfig(drop_path=-0.1), "vision.drop_path is -0.1"),
        (lambda: TextConfig(dropout=math.nan), "text.dropout is nan"),
        (lambda: Augmentation(min_scale=-1), "data.augmentation.min_scale is -1; give more than 0"),
        (lambda: Augmentation(magnitude=99), "data.augmentation.magnitude is 99; give 0 to 10"),
        (lambda: Augmentation(num_operations=-2), "num_operations is -2; give at least 0"),
    ],
)
def test_ranges_are_checked(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_a_batch_is_divided_over_processes_and_parts() -> None:
    config = TrainConfig(steps=1, batch_size=12, accumulate=2)
    assert config.part_size(world_size=3) == 2
    with pytest.raises(RecipeError, match="not a multiple of 5 processes"):
        config.part_size(world_size=5)


def test_a_trained_vocabulary_needs_a_number(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    assert recipe.trained_vocabulary == 60
    assert replace(recipe, tokenizer="vocab.txt").trained_vocabulary is None
    with pytest.raises(RecipeError, match="write train:N"):
        _ = replace(recipe, tokenizer="train:many").trained_vocabulary


@pytest.mark.parametrize(
    ("task", "objectives", "view", "named"),
    [
        ("captioner", CaptionerObjectives(), {"contrast_text": "short"}, "data.view.contrast_text"),
        ("filter", FilterObjectives(), {"decoder_text": "long"}, r"decoder_text.*none that reads"),
    ],
)
def test_a_text_for_a_reader_that_the_task_lacks_is_refused(
    make_recipe: MakeRecipe, task: Any, objectives: Any, view: Any, named: str
) -> None:
    recipe = replace(
        make_recipe(), task=task, objectives=objectives, model=None, tokenizer=None, init_from="x"
    )
    data = replace(recipe.data, view=CaptionView(**view))
    with pytest.raises(RecipeError, match=named):
        replace(recipe, data=data)
    other = "decoder_text" if "contrast_text" in view else "contrast_text"
    replace(recipe, data=replace(recipe.data, view=CaptionView(**{other: "short"})))


def test_a_view_of_before_its_newer_fields_is_read(plain: dict[str, Any]) -> None:
    before = recipe_from_dict(plain).data.view
    newer = ("score", "weights", "weight_temperature", "weight_floor")
    for name in (*newer, "contrast_text", "decoder_text"):
        del plain["data"]["view"][name]
    assert recipe_from_dict(plain).data.view == before


@pytest.mark.parametrize("task", ["vqa", "nlvr"])
def test_what_chooses_captions_is_refused_where_questions_are_learnt_from(
    make_finetuning: MakeRecipe, task: str
) -> None:
    recipe = make_finetuning(task)
    for view, named in (
        ({"itm": 0.5}, "--data.view.itm: "),
        ({"sources": ("human",)}, "--data.view.sources: "),
        ({"without": ("leaks",), "split": "val"}, "--data.view.without: "),
        ({"weights": "calibrated", "score": "right"}, "--data.view.score, --data.view.weights: "),
        ({"decoder_text": "long"}, "--data.view.decoder-text: "),
    ):
        data = replace(recipe.data, view=CaptionView(**view))  # type: ignore[arg-type]
        with pytest.raises(RecipeError, match=f"^{named}the task '{task}'.* leave it out") as told:
            replace(recipe, data=data)
        assert "--data.view.split" in str(told.value)
    for name, value in (
        ("prefix", "a picture of "),
        ("weight", 2.0),
        ("given", "web"),
        ("given_tokens", 8),
        ("scaled_decoding", True),
    ):
        flag = f"--data.{name.replace('_', '-')}"
        with pytest.raises(RecipeError, match=f"^{flag}: the task '{task}'"):
            replace(recipe, data=replace(recipe.data, **{name: value}))
    # Its split is what a view says of questions; a mixture's views need no check of their own.
    replace(recipe, data=replace(recipe.data, view=CaptionView(split="val")))
    further = MixedTable(table="other.lance", view=CaptionView(itm=0.5))
    with pytest.raises(RecipeError, match="learns from one table"):
        replace(recipe, data=replace(recipe.data, mix=(further,)))


def test_a_prefix_is_refused_where_no_caption_is_written(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    data = replace(recipe.data, prefix="a picture of ")
    replace(recipe, data=data)
    contrast = replace(recipe.objectives, losses=("itc",))
    with pytest.raises(RecipeError, match=r"data\.prefix is 'a picture of '.*leave it out"):
        replace(recipe, data=data, objectives=contrast)
    with pytest.raises(RecipeError, match="the task 'clip' with the losses itc learns to write no"):
        replace(recipe, data=data, task="clip", objectives=ClipObjectives())
