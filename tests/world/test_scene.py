"""Settings of a world that make sense, and refusals of those that do not."""

import json

import pytest

from openblip.runtime.errors import RecipeError
from openblip.world.scene import NOISE_KINDS, NoiseRates, WorldConfig, config_to_dict


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"image_size": 40}, "image_size"),
        ({"image_size": 32}, "image_size"),
        ({"web_rows": -1}, "web_rows"),
        ({"captions_per_image": 0}, "captions_per_image"),
        ({"num_kinds": 3}, "num_kinds"),
        ({"num_colours": 9}, "num_colours"),
        ({"group_weights": ()}, "group_weights"),
        ({"group_weights": (1.0, 1.0, 1.0, 1.0)}, "group_weights"),
        ({"count_weights": (0.0, 0.0)}, "count_weights"),
        ({"mention_size": 1.5}, "mention_size"),
        ({"jitter": -0.1}, "jitter"),
    ],
)
def test_impossible_settings_are_named(wrong, named):
    with pytest.raises(RecipeError, match=named):
        WorldConfig(**wrong)


def test_noise_rates_add_up_to_one():
    with pytest.raises(RecipeError, match="add up to 1"):
        NoiseRates(true=0.9)
    with pytest.raises(RecipeError, match=">= 0"):
        NoiseRates(true=0.55, boilerplate=0.2, wrong_object=-0.1)


def test_a_config_is_plain_json():
    plain = json.loads(json.dumps(config_to_dict(WorldConfig(seed=3))))
    assert plain["seed"] == 3
    assert list(plain["noise"]) == list(NOISE_KINDS)
    rebuilt = WorldConfig(
        **plain
        | {
            "noise": NoiseRates(**plain["noise"]),
            "group_weights": tuple(plain["group_weights"]),
            "count_weights": tuple(plain["count_weights"]),
        }
    )
    assert rebuilt == WorldConfig(seed=3)
