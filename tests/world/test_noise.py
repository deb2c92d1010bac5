"""False captions are certain to be false, each in its own way, at the rates asked for."""

from collections import Counter

import pytest

from openblip.world.build import (
    claim_of_other_image,
    noisy_caption,
    with_wrong_attribute,
    with_wrong_object,
)
from openblip.world.claims import Claim, claim_errors, describe, is_true_of
from openblip.world.english import is_true_caption
from openblip.world.scene import NOISE_KINDS, Dice, NoiseRates, Scene, WorldConfig, sample_scene

CONFIG = WorldConfig(group_weights=(5.0, 5.0, 2.0))
NUM_TRIALS = 800


def trials(config: WorldConfig = CONFIG) -> list[tuple[Scene, Claim, Dice]]:
    made = []
    for index in range(NUM_TRIALS):
        dice = Dice(21, index)
        scene = sample_scene(dice, config)
        made.append((scene, describe(scene, dice, config, config.web_partial), dice))
    return made


def test_kinds_come_at_their_rates():
    counts = Counter(
        noisy_caption(sample_scene(Dice(seed), CONFIG), Dice(22, seed), CONFIG)[1]
        for seed in range(5000)
    )
    for kind, rate in zip(NOISE_KINDS, CONFIG.noise.as_tuple(), strict=True):
        assert counts[kind] / 5000 == pytest.approx(rate, abs=0.025)


def test_a_wrong_attribute_is_one_wrong_attribute():
    errors = Counter(
        claim_errors(with_wrong_attribute(claim, scene, dice, CONFIG), scene)
        for scene, claim, dice in trials()
    )
    assert set(errors) == {("colour",), ("size",), ("count",), ("background",)}
    assert min(errors.values()) / NUM_TRIALS > 0.18


def test_a_wrong_object_is_not_in_the_image():
    for scene, claim, dice in trials():
        wrong = with_wrong_object(claim, scene, dice, CONFIG)
        assert claim_errors(wrong, scene) == ("object",)
        absent = [m for m in wrong.mentions if scene.group_of(m.kind) is None]
        assert len(absent) == 1


def test_a_caption_of_another_image_is_false_of_this_one():
    for scene, _, dice in trials():
        assert not is_true_of(claim_of_other_image(scene, dice, CONFIG), scene)


@pytest.mark.parametrize(
    "narrow",
    [
        {"num_colours": 1},
        {"count_weights": (1.0,)},
        {"num_colours": 1, "count_weights": (1.0,)},
        {"group_weights": (1.0,), "num_kinds": 2, "mention_background": 0.0},
    ],
)
def test_noise_is_false_in_narrow_worlds_too(narrow):
    rates = NoiseRates(
        true=0.0, wrong_attribute=0.4, wrong_object=0.3, other_image=0.3, boilerplate=0.0
    )
    config = WorldConfig(noise=rates, **narrow)
    for seed in range(300):
        scene = sample_scene(Dice(seed), config)
        text, _ = noisy_caption(scene, Dice(23, seed), config)
        assert is_true_caption(text, scene) is False


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_a_world_may_be_of_one_kind(kind):
    rates = NoiseRates(**{name: float(name == kind) for name in NOISE_KINDS})
    config = WorldConfig(noise=rates)
    for seed in range(50):
        scene = sample_scene(Dice(seed), config)
        assert noisy_caption(scene, Dice(24, seed), config)[1] == kind
