"""Settings that change nothing: which were given, and what is said of them."""

from dataclasses import dataclass, field

import pytest

from openblip.runtime.errors import RecipeError
from openblip.runtime.ignored import changed_fields, refuse_without_effect, without_effect


@dataclass(frozen=True)
class Settings:
    """Some that may change nothing, and one that has no simple default."""

    size: int = 4
    kinds: tuple[str, ...] = ("a", "b")
    more: tuple[str, ...] = ()
    others: list[int] = field(default_factory=list)


def test_fields_that_are_not_at_their_defaults_are_known_with_these() -> None:
    assert changed_fields(Settings()) == []
    assert changed_fields(Settings(size=5, others=[1])) == ["size"]


def test_without_word_of_what_was_given_it_is_what_is_not_at_its_default() -> None:
    refuse_without_effect(Settings(), ["size", "kinds"], "without a use: give one")
    refuse_without_effect(Settings(size=5), ["kinds"], "without a use: give one")
    with pytest.raises(RecipeError) as error:
        refuse_without_effect(Settings(size=5), ["size", "kinds"], "without a use: give one")
    assert str(error.value) == (
        "size is 5, which changes nothing without a use: give one, or leave it out"
    )


def test_all_that_was_given_is_named() -> None:
    both = Settings(size=5, kinds=("b", "c"))
    assert without_effect(both, ["size", "kinds"], "here: go there", part="part.") == (
        "part.size is 5 and part.kinds is b c, which changes nothing here: go there, or leave "
        "them out"
    )


def test_a_default_may_be_given_and_another_value_not() -> None:
    for settings, given, told in (
        (Settings(), {"part.size"}, "part.size is 4, "),
        (Settings(size=5), {"part.size"}, "part.size is 5, "),
        (Settings(size=5), {"part.kinds"}, ""),
        (Settings(size=5), {"size"}, ""),
        # Whoever turns something off does not wait for its effect.
        (Settings(), {"part.more"}, ""),
        (Settings(more=("c",)), {"part.more"}, "part.more is c, "),
    ):
        found = without_effect(settings, ["size", "more"], "here", part="part.", given=given)
        assert found.startswith(told)
        assert bool(found) == bool(told)
