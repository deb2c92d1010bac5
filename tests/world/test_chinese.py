"""The world in Chinese: the same pictures and truth, other words."""

import json
import re
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openblip.runtime.errors import RecipeError
from openblip.world import (
    NoiseRates,
    WorldConfig,
    build_world,
    create_world,
    is_true_caption,
    truth_of,
)
from openblip.world.chinese import CHINESE
from openblip.world.claims import Claim, Mention, make_claim
from openblip.world.english import (
    caption_errors,
    parse_caption,
    write_human_caption,
    write_web_caption,
)
from openblip.world.scene import Background, Dice, ObjectGroup, Scene, config_to_dict

from .test_english import claims

SCENE = Scene(
    (ObjectGroup("circle", "orange", "large", 1), ObjectGroup("cross", "red", "small", 3)),
    "row",
    Background("striped", "gray"),
)
WORLD = WorldConfig(
    seed=7, language="zh", web_rows=300, human_rows=60, val_rows=9, test_rows=9,
    group_weights=(5, 5, 2),
)  # fmt: skip
HAN = re.compile(r"[\u4e00-\u9fff]")


# A busy machine is no failure.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(claims(), st.integers(0, 2**32))
def test_every_caption_is_parsed_back_to_its_claim(claim: Claim, seed: int) -> None:
    for write in (write_human_caption, write_web_caption):
        text = write(claim, Dice(seed), "zh")
        assert HAN.search(text)
        assert not re.search("[a-z]", text)
        assert parse_caption(text) == claim


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("一个大橙色圆形在三个小号红色十字左边", ()),
        ("三个红色十字在一个橙色圆盘的右侧，在条纹背景上", ()),
        ("【特价橙色圆形和三个小红色十字 | 包邮】", ()),
        ("一个红色圆形挨着三个红色十字", ("colour",)),
        ("两个红色十字", ("count",)),
        ("一个橙色方块和三个红色十字", ("object",)),
        ("左边是三个红色十字、右边是一个橙色圆形", ("relation",)),
        ("纯色底子上有一个橙色圆形", ("background",)),
    ],
)
def test_errors_are_named(text: str, errors: tuple[str, ...]) -> None:
    assert caption_errors(text, SCENE) == errors


@pytest.mark.parametrize("text", ["一只绿色的大象", "红色", "一个圆形在背景上", "圆形圆形", "狗"])
def test_what_is_no_sentence_of_the_grammar_is_neither_true_nor_false(text: str) -> None:
    assert is_true_caption(text, SCENE) is None


def test_boilerplate_has_no_meaning() -> None:
    for seed in range(100):
        assert parse_caption(CHINESE.write_nothing(Dice(seed))) is None


def test_one_claim_has_many_sentences() -> None:
    circle, cross = Mention("circle", "red", None, 1), Mention("cross", "blue", "large", 1)
    claim = make_claim((circle, cross), "left_of", "striped", None)
    assert len({write_human_caption(claim, Dice(seed), "zh") for seed in range(300)}) > 80


def test_pictures_are_those_of_the_english_world_and_captions_are_true() -> None:
    for chinese, english in zip(
        build_world(WORLD), build_world(replace(WORLD, language="en")), strict=True
    ):
        assert (chinese.id, chinese.image) == (english.id, english.image)
        truth = truth_of(chinese.meta)
        assert truth == truth_of(english.meta)
        verdicts = {is_true_caption(text, truth.scene) for text in chinese.captions}
        if truth.noise == "boilerplate":
            assert verdicts == {None}
        else:
            assert verdicts == {truth.noise in (None, "true")}


def test_noise_is_false_in_each_way() -> None:
    rates = NoiseRates(
        true=0.0, wrong_attribute=0.4, wrong_object=0.3, other_image=0.3, boilerplate=0.0
    )
    for row in islice(build_world(replace(WORLD, noise=rates, val_rows=0, test_rows=0)), 300):
        assert is_true_caption(row.captions[0], truth_of(row.meta).scene) is False


def test_a_table_says_its_language(tmp_path) -> None:
    few = WorldConfig(language="zh", web_rows=2, human_rows=1, val_rows=1, test_rows=1)
    table = create_world(tmp_path / "zh", few)
    assert json.loads(table.metadata["world"])["language"] == "zh"
    # As before there was a second one.
    assert "language" not in config_to_dict(WorldConfig())


def test_another_language_is_refused() -> None:
    with pytest.raises(RecipeError, match="language must be en or zh, got 'fr'"):
        WorldConfig(language="fr")
