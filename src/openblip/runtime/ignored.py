"""Settings that change nothing: whoever gives one would wait for an effect in vain.

Which these are is said where the settings are; how they are refused, and in which words, here.
"""

from collections.abc import Collection
from dataclasses import MISSING, fields
from typing import Any

from openblip.runtime.errors import RecipeError


def changed_fields(settings: Any) -> dict[str, Any]:
    """Fields of a dataclass that are not at their defaults, among those that have simple ones.

    Returns:
        the default of each.
    """
    return {
        own.name: own.default
        for own in fields(settings)
        if own.default is not MISSING and getattr(settings, own.name) != own.default
    }


def refuse_without_effect(
    settings: Any, names: Collection[str], why: str, *, part: str = "", before: Any = None
) -> None:
    """Nothing, if of these fields, which change nothing, none was given another value.

    Args:
        settings: a dataclass.
        names: its fields that change nothing.
        why: as the message goes on after "which changes nothing", with the remedy: "without given:
            give it too".
        part: what stands before a field's name, such as `data.`.
        before: the settings that a user began with. What is as it was there was not given; nor
            was what is at its default, in any case.

    Raises:
        RecipeError: one was; the message names all of them, with what to leave them at.
    """
    # What the former settings lack, as those of another task may, is measured by its default.
    usual = {
        name: getattr(before, name, default)
        for name, default in changed_fields(settings).items()
        if name in names
    }
    given = {name: value for name, value in usual.items() if getattr(settings, name) != value}
    if not given:
        return
    told = " and ".join(f"{part}{name} is {_shown(getattr(settings, name))}" for name in given)
    at = " and ".join(f"{part}{name} at {_shown(value)}" for name, value in given.items())
    raise RecipeError(f"{told}, which changes nothing {why}, or leave {at}")


def _shown(value: Any) -> str:
    """A value as a person writes it behind a flag.

    Of several there are no brackets, which a flag does not take.
    """
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
