"""Settings of a protocol are the keywords of its function, with the same defaults."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import openblip
from openblip.evaluation import settings
from openblip.inference.decoding import Decoding
from openblip.runtime.errors import RecipeError


@pytest.mark.parametrize(
    ("evaluate", "kind"),
    [
        (openblip.evaluate_retrieval, settings.RetrievalSettings),
        (openblip.evaluate_caption, settings.CaptionSettings),
        (openblip.evaluate_classification, settings.ClassificationSettings),
        (openblip.evaluate_filter, settings.FilterSettings),
        (openblip.evaluate_vqa, settings.VqaSettings),
        (openblip.evaluate_nlvr, settings.NlvrSettings),
        (openblip.evaluate_video, settings.VideoSettings),
        (openblip.evaluate_videoqa, settings.VideoQaSettings),
    ],
)
def test_settings_are_keywords(evaluate: Callable[..., Any], kind: Callable[[], Any]) -> None:
    keywords = inspect.signature(evaluate).parameters
    defaults = {name: keywords[name].default for name in vars(kind())}
    if "decoding" in defaults:
        defaults["decoding"] = defaults["decoding"] or Decoding()
    assert defaults == vars(kind())


def test_a_number_out_of_its_range_is_refused() -> None:
    with pytest.raises(RecipeError, match="num_frames is 0; give at least 1"):
        settings.VideoSettings(num_frames=0)
    with pytest.raises(RecipeError, match="candidates is empty"):
        settings.VideoQaSettings(candidates=())
