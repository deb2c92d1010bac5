"""Settings of a run that change nothing beside its other settings, and who is told of them.

A recipe of ours sets some in advance, for losses that a user may take away: the queue of a
contrast, the new heads beside low-rank changes. These are refused only where a user gives them
himself, as a flag or in a comparison's file. All others are refused wherever a run begins.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from openblip.objectives.settings import AlbefObjectives, FilterObjectives, PretrainObjectives
from openblip.runtime.ignored import refuse_without_effect
from openblip.table.scores import scores_without_effect

if TYPE_CHECKING:
    from openblip.training.recipe import Recipe

# Of the contrast alone: its keys, its teacher, its targets and its temperature.
_CONTRAST = (
    *("queue_size", "momentum", "alpha", "alpha_ramp_epochs", "id_targets"),
    *("min_temperature", "max_temperature"),
)
# How hard negatives are found: by the contrast, for matching. Without it they are drawn uniformly.
_HARD_NEGATIVES = ("negative_features", "negative_floor")
_SET_IN_ADVANCE = {
    "objectives": (*_CONTRAST, *_HARD_NEGATIVES, "negatives"),
    "lora": ("trained",),
    # So that a run that stops at the first bad loss can be resumed with rewinds.
    "stability": ("skip_steps",),
}


def refuse_ignored(recipe: "Recipe", before: "Recipe | None" = None) -> None:
    """Nothing, if no setting was given that changes nothing.

    Args:
        recipe: of a run that shall begin.
        before: the recipe that a user has changed: all that differs from it was given. Without it,
            what is at its default was not, and what our recipes set in advance is left out.

    Raises:
        RecipeError: one was; names it, and the remedy.
    """
    others = {} if before is None else dict(_parts(before))
    for part, settings in _parts(recipe):
        in_advance = _SET_IN_ADVANCE.get(part, ()) if before is None else ()
        for names, why in _ignored(part, settings, recipe):
            asked = [name for name in names if name not in in_advance]
            refuse_without_effect(settings, asked, why, part=f"{part}.", before=others.get(part))


def _parts(recipe: "Recipe") -> Iterator[tuple[str, Any]]:
    """The parts of a recipe that have such settings, by their names with dots."""
    data = recipe.data
    yield "data", data
    yield "data.augmentation", data.augmentation
    yield "data.view", data.view
    yield from ((f"data.mix.{at}.view", table.view) for at, table in enumerate(data.mix))
    for name in ("objectives", "lora", "train", "stability"):
        yield name, getattr(recipe, name)


def _ignored(part: str, settings: Any, recipe: "Recipe") -> Iterator[tuple[tuple[str, ...], str]]:
    """Fields of a part that change nothing, and why, as `refuse_without_effect` takes them."""
    if part == "data" and not settings.given:
        yield ("given_tokens",), "without data.given: give it too"
    if part == "data.augmentation" and not settings.randaugment:
        yield ("num_operations", "magnitude"), f"without {part}.randaugment: turn it on"
    if part.endswith(".view"):
        yield scores_without_effect(settings)
    if part == "objectives":
        yield from _of_losses(settings)
    if part == "lora" and not settings.rank:
        yield ("alpha", "targets", "trained"), "without lora.rank: give it too"
    if part == "train" and recipe.data.validation_split is None:
        yield ("validation_batches",), "without data.validation_split: give it too"
    if part == "stability" and not settings.rewinds:
        yield ("skip_steps",), "without stability.rewinds: allow one or more"


def _of_losses(objectives: object) -> Iterator[tuple[tuple[str, ...], str]]:
    """Settings of losses that are not added up."""
    # A task from outside may read what it likes: its own classes are not asked.
    kind = type(objectives)
    if kind not in (PretrainObjectives, FilterObjectives, AlbefObjectives):
        return
    assert isinstance(objectives, PretrainObjectives | AlbefObjectives)
    losses: tuple[str, ...] = objectives.losses
    for needed, names in (
        ({"lm"}, ("label_smoothing",)),
        ({"mlm"}, ("mask_probability",)),
        ({"itc"}, _CONTRAST),
        ({"itc", "itm"}, _HARD_NEGATIVES),
        # Whose pairs are keys or negatives: either loss reads it.
        ({"itc"} if "itm" not in losses else set(), ("negatives",)),
    ):
        if missing := sorted(needed - set(losses)):
            yield names, f"with the losses {', '.join(losses)}: add {' and '.join(missing)}"
