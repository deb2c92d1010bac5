"""Settings that change nothing: which were given, and what is said of them."""

from dataclasses import dataclass, field

import pytest

from openblip.runtime.errors import RecipeError
from openblip.runtime.ignored import changed_fields, refuse_without_effect


@dataclass(frozen=True)
class Settings:
    """Two that may change nothing, and one that has no simple default."""

    size: int = 4
    kinds: tuple[str, ...] = ("a", "b")
    others: list[int] = field(default_factory=list)


def test_fields_that_are_not_at_their_defaults_are_known_with_these() -> None:
    assert changed_fields(Settings()) == {}
    assert changed_fields(Settings(size=5, others=[1])) == {"size": 4}


def test_what_is_at_its_default_was_not_given() -> None:
    refuse_without_effect(Settings(), ["size", "kinds"], "without a use: give one")
    refuse_without_effect(Settings(size=5), ["kinds"], "without a use: give one")


def test_what_was_given_is_named_with_the_remedy() -> None:
    with pytest.raises(RecipeError) as one:
        refuse_without_effect(Settings(size=5), ["size", "kinds"], "without a use: give one")
    assert str(one.value) == (
        "size is 5, which changes nothing without a use: give one, or leave size at 4"
    )
    both = Settings(size=5, kinds=())
    with pytest.raises(RecipeError) as two:
        refuse_without_effect(both, ["size", "kinds"], "here: go there", part="part.")
    assert str(two.value) == (
        "part.size is 5 and part.kinds is none, which changes nothing here: go there, or leave "
        "part.size at 4 and part.kinds at a b"
    )


def test_what_a_user_has_not_changed_was_not_given() -> None:
    before = Settings(size=5)
    refuse_without_effect(before, ["size"], "here: go there", before=before)
    # Nobody waits for the effect of a default.
    refuse_without_effect(Settings(), ["size"], "here: go there", before=before)
    with pytest.raises(RecipeError, match=r"size is 6, .* or leave size at 5$"):
        refuse_without_effect(Settings(size=6), ["size"], "here: go there", before=before)
    # Of settings of another kind nothing is known.
    with pytest.raises(RecipeError, match=r"size is 6, .* or leave size at 4$"):
        refuse_without_effect(Settings(size=6), ["size"], "here: go there", before=object())
