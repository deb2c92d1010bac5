"""Runs as functions that return one typed `Recipe`; numbers from the paper stand here.

The names below are loaded when they are first used. `named_recipe` finds a recipe by its name:
ours, and `module:recipe` of anybody.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from openblip.runtime.errors import OpenBlipError, RecipeError
from openblip.runtime.references import find_object, told

if TYPE_CHECKING:
    from openblip.recipes.baselines import albef, clip
    from openblip.recipes.finetune import captioner, filter_, nlvr, retrieval, shared, vqa
    from openblip.recipes.pretrain import base, large, small, tiny
    from openblip.training.recipe import Recipe

__all__ = [
    "albef",
    "base",
    "captioner",
    "clip",
    "filter_",
    "large",
    "named_recipe",
    "nlvr",
    "retrieval",
    "shared",
    "small",
    "tiny",
    "vqa",
]

_HOMES = {
    **dict.fromkeys(("albef", "clip"), "baselines"),
    **dict.fromkeys(("captioner", "filter_", "nlvr", "retrieval", "shared", "vqa"), "finetune"),
    **dict.fromkeys(("base", "large", "small", "tiny"), "pretrain"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"openblip.recipes.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'openblip.recipes' has no attribute {name!r}")


def named_recipe(
    name: str, ours: "Mapping[str, Callable[..., Recipe]]", table: str, *others: str | int
) -> "Recipe":
    """The recipe of a name for a table.

    Args:
        name: of one of ours; or `module:recipe`, a function as ours are or a `Recipe`.
        ours: functions by their names.
        table: the first thing that the function gets; a `Recipe` gets it as its `data.table`.
        others: what it gets besides.

    Raises:
        RecipeError: there is no such function, or it gives no recipe.
    """
    from openblip.training.recipe import Recipe

    found = ours[name] if name in ours else find_object(name)
    if isinstance(found, Recipe):
        return replace(found, data=replace(found.data, table=table))
    if not callable(found):
        raise RecipeError(f"{name}: this is no recipe and no function that gives one")
    try:
        inspect.signature(found).bind(table, *others)
    except TypeError as why:
        raise RecipeError(
            f"{name}: cannot be called with {', '.join(map(repr, (table, *others)))} ({why})"
        ) from why
    try:
        recipe = found(table, *others)
    except OpenBlipError:
        raise
    except Exception as why:
        raise RecipeError(f"{name}: {told(why)}") from why
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{name}: gives {recipe!r:.80}, no openblip.Recipe")
    return recipe
