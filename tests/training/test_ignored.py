"""Settings that change nothing: refused where a person gives them, told where a recipe has them."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openblip.objectives.settings import AlbefObjectives, FilterObjectives, PretrainObjectives
from openblip.recipes.baselines import as_albef, as_clip, as_unimodal
from openblip.recipes.finetune import FINETUNE_RECIPES, nlvr
from openblip.recipes.pretrain import PRETRAIN_RECIPES, tiny
from openblip.runtime.errors import OpenBlipWarning, RecipeError
from openblip.table.views import CaptionView
from openblip.training.ignored import refuse_ignored, tell_ignored
from openblip.training.recipe import LoraConfig, MixedTable, Recipe, StabilityConfig
from openblip.training.recipe_file import read_recipe, write_recipe
from openblip.training.run import train
from openblip.world.demo import WORLD_FINETUNE_RECIPES, WORLD_PRETRAIN_RECIPES

MakeRecipe = Callable[..., Recipe]
FRESH = PRETRAIN_RECIPES | WORLD_PRETRAIN_RECIPES
SMOOTHING = {"objectives.losses", "objectives.label_smoothing"}
TUNED = FINETUNE_RECIPES | WORLD_FINETUNE_RECIPES


def with_part(recipe: Recipe, part: str, **settings: Any) -> Recipe:
    """The recipe with fields of one part changed, whose name may have a dot."""
    outer, _, inner = part.partition(".")
    own = getattr(recipe, outer)
    if inner:
        settings = {inner: replace(getattr(own, inner), **settings)}
    return replace(recipe, **{outer: replace(own, **settings)})


def told(recipe: Recipe) -> list[str]:
    """What is said of a recipe as its run begins."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        tell_ignored(recipe)
    assert all(issubclass(each.category, OpenBlipWarning) for each in found)
    return [str(each.message) for each in found]


@pytest.mark.parametrize("name", FRESH)
def test_a_recipe_of_ours_says_nothing_that_changes_nothing(name: str) -> None:
    recipe = FRESH[name]("pairs.lance")
    assert told(recipe) == []
    if recipe.task == "pretrain":
        assert [told(other(recipe)) for other in (as_clip, as_albef, as_unimodal)] == [[], [], []]


@pytest.mark.parametrize("name", TUNED)
def test_nor_does_one_that_starts_from_a_model(name: str) -> None:
    assert told(TUNED[name]("pairs.lance", "model", 64)) == []


# Part, setting and value; what gives it an effect; and what the message says is missing.
ALWAYS = [
    ("data", {"given_tokens": 8}, {"given": "web"}, "without data.given"),
    (
        "data.augmentation",
        {"magnitude": 7},
        {"randaugment": True},
        "without data.augmentation.randaugment",
    ),
    (
        "data.augmentation",
        {"num_operations": 1},
        {"randaugment": True},
        "without data.augmentation.randaugment",
    ),
    ("lora", {"alpha": 32.0}, {"rank": 8}, "without lora.rank"),
    ("lora", {"targets": ("text",)}, {"rank": 8}, "without lora.rank"),
    ("data.view", {"score": "right"}, {"itm": 0.5}, "without a threshold"),
    ("data.view", {"score": "right"}, {"itm_of": ("web=0.5",)}, "without a threshold"),
    ("data.view", {"score": "right"}, {"weights": "calibrated"}, "without a threshold"),
    ("schedule", {"decay_rate": 0.5}, {"kind": "step_decay"}, "with warmup_cosine"),
    ("stability", {"spike_window": 50}, {"spike_deviations": 8.0}, "without stability.spike_dev"),
]
# What it must be without for that.
OWNERS_OFF = {"stability": {"spike_deviations": None}}


@pytest.mark.parametrize(("part", "setting", "remedy", "missing"), ALWAYS)
def test_a_setting_without_the_one_that_it_belongs_to_is_refused(
    part: str, setting: dict[str, Any], remedy: dict[str, Any], missing: str
) -> None:
    recipe = replace(tiny("t.lance"), model=None, tokenizer=None, init_from="model")
    recipe = with_part(recipe, part, **OWNERS_OFF.get(part, {}))
    (name,) = setting
    given = with_part(recipe, part, **setting)
    with pytest.raises(RecipeError, match=rf"^{part}\.{name} is .*{missing}.*: .* or leave") as one:
        refuse_ignored(given, {f"{part}.{name}"})
    assert told(given) == [str(one.value)]
    helped = with_part(given, part, **remedy)
    refuse_ignored(helped, {f"{part}.{name}"})
    assert told(helped) == []
    # Whoever takes away what it belongs to has not given it.
    refuse_ignored(given, {f"{part}.{other}" for other in remedy})


def test_batches_of_a_validation_that_is_not_made_are_refused() -> None:
    recipe = with_part(tiny("t.lance"), "train", validation_batches=4)
    with pytest.raises(RecipeError, match=r"train\.validation_batches is 4.*data\.validation_spl"):
        refuse_ignored(recipe, {"train.validation_batches"})
    refuse_ignored(with_part(recipe, "data", validation_split="val"), {"train.validation_batches"})


def test_settings_of_losses_that_are_not_added_up_are_refused() -> None:
    recipe = tiny("t.lance")
    smoothed = PretrainObjectives(losses=("itc", "itm"), label_smoothing=0.2)
    with pytest.raises(RecipeError, match=r"label_smoothing is 0\.2.* losses itc, itm: add lm"):
        refuse_ignored(replace(recipe, objectives=smoothed), SMOOTHING)
    refuse_ignored(replace(recipe, objectives=replace(smoothed, losses=("lm",))), SMOOTHING)

    filter_ = FINETUNE_RECIPES["filter"]("t.lance", "model", 64)
    with pytest.raises(RecipeError, match=r"label_smoothing is 0\.3.*add lm"):
        refuse_ignored(
            replace(filter_, objectives=FilterObjectives(label_smoothing=0.3)), SMOOTHING
        )

    albef = PRETRAIN_RECIPES["albef"]("t.lance")
    masked = AlbefObjectives(losses=("itc", "itm"), mask_probability=0.3)
    masking = {"objectives.losses", "objectives.mask_probability"}
    with pytest.raises(RecipeError, match=r"mask_probability is 0\.3.*add mlm"):
        refuse_ignored(replace(albef, objectives=masked), masking)
    refuse_ignored(replace(albef, objectives=replace(masked, losses=("itc", "mlm"))), masking)


CONTRAST = {
    "queue_size": 16,
    "momentum": 0.9,
    "alpha": 0.1,
    "alpha_ramp_epochs": 1.0,
    "min_temperature": 0.01,
    "max_temperature": 0.4,
    "id_targets": True,
}
HARD_NEGATIVES = {"negative_features": "online", "negative_floor": 0.1}
NEGATIVES = {"negatives": "all_ranks"}


@pytest.mark.parametrize(
    ("settings", "losses", "missing"),
    [
        (CONTRAST, ("lm",), "itc"),
        (CONTRAST, ("itm", "lm"), "itc"),
        (CONTRAST, ("itc", "lm"), None),
        (HARD_NEGATIVES, ("lm",), "itc and itm"),
        (HARD_NEGATIVES, ("itc", "lm"), "itm"),
        # Without a contrast they are drawn uniformly.
        (HARD_NEGATIVES, ("itm", "lm"), "itc"),
        (HARD_NEGATIVES, ("itc", "itm"), None),
        # The mean over the tokens of all processes, or of each.
        (NEGATIVES, ("lm",), None),
        (NEGATIVES, ("itm", "lm"), None),
        (NEGATIVES, ("itc", "lm"), None),
    ],
)
def test_settings_of_contrast_and_negatives_are_refused_where_a_user_gives_them(
    settings: dict[str, Any], losses: tuple[str, ...], missing: str | None
) -> None:
    begun = tiny("t.lance")
    fewer = with_part(begun, "objectives", losses=losses)
    # The recipe has them for losses that a user takes away.
    assert told(fewer) == []
    refuse_ignored(fewer, {"objectives.losses"})
    for name, value in settings.items():
        names = {"objectives.losses", f"objectives.{name}"}
        given = with_part(fewer, "objectives", **{name: value})
        if missing is None:
            refuse_ignored(given, names)
            continue
        why = rf"^objectives\.{name} is {value}, .*losses {', '.join(losses)}: add {missing}, or"
        with pytest.raises(RecipeError, match=why):
            refuse_ignored(given, names)
        # As part of a recipe it may be for others.
        assert told(given) == []


def test_a_task_from_outside_may_read_what_it_likes() -> None:
    smoothed = PretrainObjectives(losses=("itc", "itm"), label_smoothing=0.2)
    recipe = replace(tiny("t.lance"), objectives=smoothed)
    assert told(recipe) != []
    # With our settings, and a loss of its own that smooths labels.
    object.__setattr__(recipe, "task", "somewhere:Own")
    assert told(recipe) == []
    refuse_ignored(recipe, SMOOTHING)


def test_a_default_that_a_user_gives_in_place_of_the_recipes_value_is_refused_too() -> None:
    begun = tiny("t.lance")
    queue = PretrainObjectives().queue_size
    assert begun.objectives.queue_size != queue
    given = with_part(begun, "objectives", losses=("lm",), queue_size=queue)
    with pytest.raises(RecipeError, match=rf"queue_size is {queue}, .* or leave it out"):
        refuse_ignored(given, {"objectives.losses", "objectives.queue_size"})


def test_whoever_turns_something_off_does_not_wait_for_its_effect() -> None:
    frozen = with_part(tiny("t.lance"), "train", freeze=("image_encoder",))
    for part, name, value in (
        ("data.augmentation", "flip", False),
        ("data.augmentation", "magnitude", 0),
        ("lora", "trained", ()),
        ("objectives", "queue_size", 0),
    ):
        given = with_part(frozen, "objectives", losses=("lm",))
        refuse_ignored(with_part(given, part, **{name: value}), {f"{part}.{name}"})
    # A share of 0 is a wish: no negative shall be drawn uniformly.
    given = with_part(frozen, "objectives", losses=("itm",), negative_floor=0.0)
    with pytest.raises(RecipeError, match=r"negative_floor is 0\.0, .*add itc"):
        refuse_ignored(given, {"objectives.negative_floor"})


def test_a_rise_without_steps_is_refused_where_a_user_gives_it() -> None:
    recipe = with_part(tiny("t.lance"), "schedule", warmup_steps=0, warmup_lr=1e-5)
    assert told(recipe) == []
    with pytest.raises(RecipeError, match=r"schedule\.warmup_lr is 1e-05, .*warmup_steps: give"):
        refuse_ignored(recipe, {"schedule.warmup_lr"})
    refuse_ignored(with_part(recipe, "schedule", warmup_steps=4), {"schedule.warmup_lr"})


def test_an_epoch_cosine_does_not_rise() -> None:
    recipe = with_part(tiny("t.lance"), "schedule", kind="epoch_cosine", warmup_steps=9)
    with pytest.raises(
        RecipeError, match=r"schedule\.warmup_steps is 9, .*with epoch_cosine: give"
    ):
        refuse_ignored(recipe, {"schedule.warmup_steps"})
    refuse_ignored(recipe, {"schedule.kind"})


def test_augmentation_of_images_that_a_frozen_encoder_has_read_before_is_refused() -> None:
    begun = FINETUNE_RECIPES["captioner"]("t.lance", "model", 64)
    frozen = with_part(begun, "train", freeze=("image_encoder",))
    refuse_ignored(frozen, {"train.freeze"})
    given = with_part(frozen, "data.augmentation", min_scale=0.1)
    with pytest.raises(
        RecipeError, match=r"augmentation\.min_scale is 0\.1, .*train\.freeze empty"
    ):
        refuse_ignored(given, {"data.augmentation.min_scale"})
    # The run says so itself, in one line.
    assert told(given) == []


def test_more_that_recipes_set_in_advance_is_refused_where_a_user_gives_it() -> None:
    begun = nlvr("t.lance", "model", 64)
    assert begun.lora == LoraConfig(trained=("merge", "classifier"))
    refuse_ignored(begun, ())
    given = with_part(begun, "lora", trained=("text",))
    with pytest.raises(RecipeError, match=r"lora\.trained is text, .*lora\.rank.* or leave it out"):
        refuse_ignored(given, {"lora.trained"})
    refuse_ignored(with_part(given, "lora", rank=8), {"lora.trained"})

    # A run that stops at the first bad loss can be resumed with rewinds.
    begun = tiny("t.lance")
    given = replace(begun, stability=StabilityConfig(skip_steps=4))
    assert told(given) == []
    with pytest.raises(RecipeError, match=r"stability\.skip_steps is 4.*stability\.rewinds: allow"):
        refuse_ignored(given, {"stability.skip_steps"})
    refuse_ignored(with_part(given, "stability", rewinds=1), {"stability.skip_steps"})


@pytest.mark.parametrize(
    "setting", [{"itm": 0.5}, {"itm_of": ("web=0.5",)}, {"weights": "calibrated"}]
)
def test_what_cuts_by_scores_is_refused_where_no_text_has_one(setting: dict[str, Any]) -> None:
    recipe = FINETUNE_RECIPES["captioner"]("t.lance", "model", 64)
    (name,) = setting
    for sources in (("human",), ("human", "reviewed")):
        given = with_part(recipe, "data.view", sources=sources, **setting)
        why = rf"^data\.view\.{name} is .*sources {', '.join(sources)}.*add web or synthetic"
        with pytest.raises(RecipeError, match=why):
            refuse_ignored(given, {f"data.view.{name}"})
    more = with_part(recipe, "data.view", sources=("human", "web"), **setting)
    refuse_ignored(more, {f"data.view.{name}"})


def test_views_of_further_tables_are_looked_at_too() -> None:
    recipe = tiny("t.lance")
    mix = tuple(
        MixedTable(table="more.lance", view=CaptionView(sources=("human", source), itm=0.5))
        for source in ("web", "reviewed")
    )
    names = {"data.mix.0.view.itm", "data.mix.1.view.itm"}
    refuse_ignored(with_part(recipe, "data", mix=mix[:1]), names)
    with pytest.raises(RecipeError, match=r"^data\.mix\.1\.view\.itm is 0\.5"):
        refuse_ignored(with_part(recipe, "data", mix=mix), names)


def test_it_is_told_once_as_the_run_begins(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(validation_batches=4)
    with pytest.warns(OpenBlipWarning, match=r"train\.validation_batches is 4") as found:
        assert train(recipe, tmp_path, quiet=True).steps == 4
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(recipe, tmp_path, quiet=True).steps == 4


def test_what_was_trained_before_is_still_read(tmp_path: Path) -> None:
    recipe = with_part(tiny("t.lance"), "data.augmentation", magnitude=7)
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
