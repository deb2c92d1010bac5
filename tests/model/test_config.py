"""Configurations check themselves and survive JSON."""

import json
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from openblip.checkpoints.assembly import build_empty
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.model import config as config_module
from openblip.model.config import PresetName, config_from_dict, config_to_dict
from openblip.runtime.errors import RecipeError


@pytest.fixture
def unchecked(without_type_checks: Callable[[ModuleType], ModuleType]) -> ModuleType:
    return without_type_checks(config_module)


def num_parameters(config: MedConfig) -> int:
    return sum(p.numel() for p in build_empty(lambda: Med(config)).parameters())


@pytest.mark.parametrize("name", ["tiny", "small", "base", "large"])
def test_a_configuration_survives_json(name: PresetName) -> None:
    config = replace(MedConfig.preset(name, vocab_size=300, image_size=96), heads=("lm", "itm"))
    assert config_from_dict(MedConfig, json.loads(json.dumps(config_to_dict(config)))) == config


def test_what_a_file_leaves_out_has_its_default() -> None:
    assert config_from_dict(MedConfig, {}) == MedConfig()
    shallow = MedConfig(text=TextConfig(depth=2))
    assert config_from_dict(MedConfig, {"text": {"depth": 2}}) == shallow


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 3}, "model: unknown depth; known are embed_dim"),
        ({"vision": {"size": 3, "side": 2}}, "vision: unknown side, size; known are"),
        ({"text": {"layers": 3}}, "text: unknown layers"),
        ({"heads": []}, "name at least one of itc, itm, lm"),
        ({"heads": ["mlm"]}, r"model.heads \('mlm',\)"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_known_ones(
    unchecked: ModuleType, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        unchecked.config_from_dict(unchecked.MedConfig, values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: m.VisionConfig(width=100, heads=3), "vision.width 100 is not a multiple of v"),
        (lambda m: m.TextConfig(width=100, heads=3), "text.width 100 is not a multiple of text.h"),
        (lambda m: m.VisionConfig(image_size=100), "vision.image_size 100 is not a multiple of"),
        (lambda m: m.TextConfig(sharing="some"), "text.sharing 'some' is not one of all_but_self"),
        (lambda m: m.VisionConfig(backbone=3), "vision.backbone is 3; give a name"),
        (lambda m: m.MedConfig.preset("huge"), "no preset 'huge'; there are tiny, small, base, "),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(
    unchecked: ModuleType, make: Callable[[ModuleType], object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make(unchecked)


@pytest.mark.parametrize("backbone", [7, 0, True, [], {}, ["timm:vit"]])
def test_a_backbone_is_a_name(unchecked: ModuleType, backbone: object) -> None:
    with pytest.raises(RecipeError, match=r"vision\.backbone is .*; give a name, or none"):
        unchecked.VisionConfig(backbone=backbone)


def test_patches_include_the_class_token() -> None:
    assert VisionConfig(image_size=384, patch_size=16).num_patches == 24 * 24 + 1


# Base and large: shapes of the released checkpoints at 224 px, tied weights counted once.
@pytest.mark.parametrize(("name", "expected"), [("base", 252_441_919), ("large", 474_729_023)])
def test_the_released_sizes(name: PresetName, expected: int) -> None:
    image_positions = MedConfig.preset(name).vision.num_patches
    assert image_positions == 197
    assert num_parameters(MedConfig.preset(name)) == expected


@pytest.mark.parametrize(("name", "millions"), [("tiny", (1, 3)), ("small", (30, 60))])
def test_the_small_presets_are_small(name: PresetName, millions: tuple[int, int]) -> None:
    least, most = millions
    assert least * 1e6 < num_parameters(MedConfig.preset(name, vocab_size=1000)) < most * 1e6


def test_a_preset_takes_vocabulary_and_image_size() -> None:
    config = MedConfig.preset("tiny", vocab_size=77, image_size=64)
    assert (config.text.vocab_size, config.vision.image_size) == (77, 64)
