"""Recipes by their names: ours, and `module:recipe` of anybody."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace

from openblip.runtime.errors import OpenBlipError, RecipeError
from openblip.runtime.references import find_object, told
from openblip.training.recipe import Recipe


def named_recipe(
    name: str, ours: Mapping[str, Callable[..., Recipe]], table: str, *others: str | int
) -> Recipe:
    """The recipe of a name for a table.

    Args:
        name: of one of ours; or `module:recipe`, a function as ours are or a `Recipe`.
        ours: functions by their names.
        table: the first thing that the function gets; a `Recipe` gets it as its `data.table`.
        others: what it gets besides.

    Raises:
        RecipeError: there is no such function, or it gives no recipe.
    """
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
