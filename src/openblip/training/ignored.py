"""Settings of a run that change nothing beside its other settings, and who is told of them.

Where a person gives them, as flags or in a comparison's file, they are refused. A recipe may have
them for what a person takes away from it: they are told as its run begins.
"""

import warnings
from collections.abc import Collection, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from openblip.objectives.settings import AlbefObjectives, PretrainObjectives
from openblip.runtime.errors import OpenBlipWarning, RecipeError
from openblip.runtime.ignored import without_effect
from openblip.table.scores import scores_without_effect

if TYPE_CHECKING:
    from openblip.training.recipe import Recipe

# Whose settings are known; another task may read what it likes.
_TASKS = ("pretrain", "filter", "albef")
# Of the contrast alone: its keys, its teacher, its targets and its temperature.
_CONTRAST = (
    *("queue_size", "momentum", "alpha", "alpha_ramp_epochs", "id_targets"),
    *("min_temperature", "max_temperature"),
)
# How hard negatives are found: by the contrast, for matching. Without it they are drawn uniformly.
_HARD_NEGATIVES = ("negative_features", "negative_floor")


class _Ignored(NamedTuple):
    """Fields of a part of a recipe that change nothing."""

    names: tuple[str, ...]
    why: str
    """As `without_effect` takes it."""
    is_usual: bool = False
    """Recipes of ours have other values than the default, for what a user may take away."""


def refuse_ignored(recipe: "Recipe", given: Collection[str]) -> None:
    """Nothing, if a person has given no setting that changes nothing.

    Args:
        recipe: of a run that shall begin.
        given: names of fields, such as `data.view.itm`, that a person has set in it.

    Raises:
        RecipeError: one was; names it, and the remedy.
    """
    for part, settings in _parts(recipe):
        for names, why, _ in _ignored(part, settings, recipe):
            if told := without_effect(settings, names, why, part=f"{part}.", given=given):
                raise RecipeError(told)


def tell_ignored(recipe: "Recipe") -> None:
    """Warn of what is not at its default and changes nothing, but for what recipes of ours have."""
    for part, settings in _parts(recipe):
        for names, why, is_usual in _ignored(part, settings, recipe):
            told = without_effect(settings, names, why, part=f"{part}.")
            if told and not is_usual:
                warnings.warn(told, OpenBlipWarning, stacklevel=2)


def _parts(recipe: "Recipe") -> Iterator[tuple[str, Any]]:
    """The parts of a recipe that have such settings, by their names with dots."""
    data = recipe.data
    yield "data", data
    yield "data.augmentation", data.augmentation
    yield "data.view", data.view
    yield from ((f"data.mix.{at}.view", table.view) for at, table in enumerate(data.mix))
    for name in ("objectives", "lora", "schedule", "train", "stability"):
        yield name, getattr(recipe, name)


def _ignored(part: str, settings: Any, recipe: "Recipe") -> Iterator[_Ignored]:
    if part.startswith("data"):
        yield from _of_data(part, settings, recipe)
    elif part != "objectives":
        yield from _of_training(part, settings, recipe)
    elif recipe.task in _TASKS:
        yield from _of_losses(settings)


def _of_data(part: str, settings: Any, recipe: "Recipe") -> Iterator[_Ignored]:
    if part == "data" and not settings.given:
        reader = "give it too" if recipe.task == "captioner" else "fine-tune a captioner with it"
        yield _Ignored(("given_tokens",), f"without data.given: {reader}")
    if part == "data.augmentation" and recipe.train.freeze:
        every = tuple(own.name for own in fields(settings))
        yield _Ignored(every, "with a frozen image encoder: leave train.freeze empty", True)
    elif part == "data.augmentation" and not settings.randaugment:
        yield _Ignored(("num_operations", "magnitude"), f"without {part}.randaugment: turn it on")
    if part.endswith(".view"):
        yield _Ignored(*scores_without_effect(settings))


def _of_training(part: str, settings: Any, recipe: "Recipe") -> Iterator[_Ignored]:
    if part == "lora" and not settings.rank:
        missing = "without lora.rank, for a model to start from: give it too"
        yield _Ignored(("alpha", "targets"), missing)
        yield _Ignored(("trained",), missing, True)
    if part == "schedule":
        yield from _of_other_schedules(settings)
    if part == "train" and recipe.data.validation_split is None:
        yield _Ignored(("validation_batches",), "without data.validation_split: give it too")
    if part == "stability" and not settings.rewinds:
        # A run that stops at the first bad loss can be resumed with rewinds.
        yield _Ignored(("skip_steps",), "without stability.rewinds: allow one or more", True)
    if part == "stability" and settings.spike_deviations is None:
        yield _Ignored(("spike_window",), "without stability.spike_deviations: give them too")


def _of_other_schedules(schedule: Any) -> Iterator[_Ignored]:
    """Settings of kinds of schedule that this one is not."""
    if schedule.kind != "step_decay":
        yield _Ignored(("decay_rate",), f"with {schedule.kind}: give schedule.kind step_decay")
    if schedule.kind == "epoch_cosine":
        other = "give schedule.kind warmup_cosine or step_decay"
        yield _Ignored(("warmup_steps", "warmup_lr"), f"with epoch_cosine: {other}")
    elif not schedule.warmup_steps:
        yield _Ignored(("warmup_lr",), "without schedule.warmup_steps: give them too", True)


def _of_losses(objectives: object) -> Iterator[_Ignored]:
    """Settings of losses that are not added up."""
    assert isinstance(objectives, PretrainObjectives | AlbefObjectives)
    losses = set(objectives.losses)
    for needed, names, is_usual in (
        ({"lm"}, ("label_smoothing",), False),
        ({"mlm"}, ("mask_probability",), False),
        ({"itc"}, _CONTRAST, True),
        ({"itc", "itm"}, _HARD_NEGATIVES, True),
        # Whose pairs are keys or negatives, and over whose tokens the mean is taken.
        (set() if losses & {"itm", "lm"} else {"itc"}, ("negatives",), True),
    ):
        if missing := sorted(needed - losses):
            told = f"with the losses {', '.join(objectives.losses)}: add {' and '.join(missing)}"
            yield _Ignored(names, told, is_usual)
