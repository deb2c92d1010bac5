"""Settings that change nothing: whoever gives one would wait for an effect in vain.

Which these are is said where the settings are; how they are told, and in which words, here.
"""

from collections.abc import Collection
from dataclasses import MISSING, fields
from typing import Any

from openblip.runtime.errors import RecipeError


def changed_fields(settings: Any) -> list[str]:
    """Fields of a dataclass that are not at their defaults, among those that have simple ones."""
    return [
        own.name
        for own in fields(settings)
        if own.default is not MISSING and getattr(settings, own.name) != own.default
    ]


def without_effect(
    settings: Any,
    names: Collection[str],
    why: str,
    *,
    part: str = "",
    given: Collection[str] | None = None,
) -> str:
    """What is said of the fields that were given and change nothing; empty if none was.

    Args:
        settings: a dataclass.
        names: its fields that change nothing.
        why: as the message goes on after "which changes nothing", with the remedy: "without given:
            give it too".
        part: what stands before a field's name, such as `data.`.
        given: names, with what stands before them, that a person has given; by default those of
            all fields that are not at their defaults. What turns something off is never meant.
    """
    changed = changed_fields(settings)
    found = {
        f"{part}{name}": getattr(settings, name)
        for name in names
        if (name in changed if given is None else f"{part}{name}" in given)
        and not _is_off(getattr(settings, name))
    }
    if not found:
        return ""
    told = " and ".join(f"{name} is {_shown(value)}" for name, value in found.items())
    left = "it" if len(found) == 1 else "them"
    return f"{told}, which changes nothing {why}, or leave {left} out"


def refuse_without_effect(settings: Any, names: Collection[str], why: str) -> None:
    """Nothing, if none of these fields, which change nothing, was given; else see `without_effect`.

    Raises:
        RecipeError: one was; the message names all of them, with the remedy.
    """
    if told := without_effect(settings, names, why):
        raise RecipeError(told)


def _is_off(value: Any) -> bool:
    """Whether a setting asks for nothing, as a switch or a count; a share of 0 asks for that."""
    return not value and not isinstance(value, float)


def _shown(value: Any) -> str:
    """A value as a person writes it behind a flag.

    Of several there are no brackets, which a flag does not take.
    """
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
