"""Settings of the protocols: what would fail when a model is evaluated is refused before."""

from typing import Any

import pytest

from openblip.comparison.protocols import PROTOCOLS
from openblip.runtime.errors import RecipeError


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("retrieval", {"k": 0}, "k is 0; give at least 1"),
        ("retrieval", {"max_words": 0}, "max_words is 0"),
        ("caption", {"batch_size": 0}, "batch_size is 0"),
        ("classification", {"k": -1}, "k is -1; give at least 0"),
        ("classification", {"templates": ("a photo",)}, "write {} where the name"),
        ("classification", {"templates": ()}, "no template"),
        ("vqa", {"k": 0}, "k is 0"),
        ("vqa", {"candidates": ()}, "candidates is empty"),
        ("nlvr", {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_always_fail_are_refused(task: Any, settings: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        PROTOCOLS[task].settings(**settings)
