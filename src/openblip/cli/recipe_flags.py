"""Flags that change fields of a recipe, such as `--train.batch-size 64`."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openblip.training.config import Recipe


def changed(recipe: "Recipe", words: list[str], prog: str, about: str | None = None) -> "Recipe":
    """The recipe with the changes of a command line; prints its help where that is asked for.

    `--train.steps` alone takes the place of the recipe's epochs, `--train.epochs` of its steps, and
    `--init-from` of its fresh weights and their tokenizer.
    """
    import tyro

    from openblip.training.config import Recipe

    kind = tyro.conf.AvoidSubcommands[Recipe]
    flags = {word.split("=")[0] for word in words}
    recipe = _counting_as_in(flags, recipe)
    if "--init-from" in flags and recipe.init_from is None:
        # Any name: that of the command line takes its place.
        recipe = replace(recipe, model=None, tokenizer=None, init_from="MODEL")
    return tyro.cli(kind, default=recipe, args=words, prog=prog, description=about)


def _counting_as_in(flags: set[str], recipe: "Recipe") -> "Recipe":
    in_steps, in_epochs = "--train.steps" in flags, "--train.epochs" in flags
    if in_steps == in_epochs:
        return recipe
    # Any number: that of the command line takes its place.
    steps, epochs = (1, None) if in_steps else (None, 1)
    return replace(recipe, train=replace(recipe.train, steps=steps, epochs=epochs))
