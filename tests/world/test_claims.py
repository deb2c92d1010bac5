"""When a claim is true of a scene, and what is wrong with it otherwise."""

import pytest

from openblip.world.claims import Mention, claim_errors, describe, is_true_of, make_claim
from openblip.world.scene import (
    Background,
    Dice,
    ObjectGroup,
    Scene,
    WorldConfig,
    sample_scene,
    scene_from_dict,
    scene_to_dict,
)

STAR = ObjectGroup("star", "red", "large", 1)
RINGS = ObjectGroup("ring", "blue", "small", 2)
HEART = ObjectGroup("heart", "red", "small", 1)
ROW = Scene((STAR, RINGS, HEART), "row", Background("striped", "gray"))
COLUMN = Scene((STAR, RINGS), "column", Background("plain", "navy"))

A_STAR = Mention("star", None, None, 1)
TWO_RINGS = Mention("ring", "blue", None, 2)
A_HEART = Mention("heart", "red", None, 1)


@pytest.mark.parametrize(
    ("mention", "errors"),
    [
        (Mention("star", "red", "large", 1), ()),
        (Mention("star", None, None, 1), ()),
        (Mention("star", "blue", None, 1), ("colour",)),
        (Mention("star", "red", "small", 1), ("size",)),
        (Mention("star", "red", None, 2), ("count",)),
        (Mention("ring", "blue", None, 1), ("count",)),
        (Mention("cross", "red", None, 1), ("object",)),
        (Mention("ring", "red", "large", 3), ("colour", "count", "size")),
    ],
)
def test_each_attribute_is_checked_and_silence_is_true(mention, errors):
    assert claim_errors(make_claim((mention,)), ROW) == errors


@pytest.mark.parametrize(
    ("mentions", "relation", "scene", "holds"),
    [
        ((A_STAR, TWO_RINGS), "left_of", ROW, True),
        ((TWO_RINGS, A_STAR), "left_of", ROW, False),
        ((A_STAR, A_HEART), "left_of", ROW, True),
        ((A_STAR, TWO_RINGS), "above", ROW, False),
        ((A_STAR, TWO_RINGS), "above", COLUMN, True),
        ((TWO_RINGS, A_STAR), "above", COLUMN, False),
        ((A_STAR, TWO_RINGS), "left_of", COLUMN, False),
        ((TWO_RINGS, A_STAR), "beside", ROW, True),
        ((A_STAR, A_HEART), "beside", ROW, False),
        ((A_STAR, TWO_RINGS), "beside", COLUMN, False),
        ((A_STAR, TWO_RINGS, A_HEART), "between", ROW, True),
        ((A_HEART, TWO_RINGS, A_STAR), "between", ROW, True),
        ((A_STAR, A_HEART, TWO_RINGS), "between", ROW, False),
        ((A_STAR, TWO_RINGS, A_HEART), "left_of", ROW, True),
        ((A_HEART, TWO_RINGS, A_STAR), "left_of", ROW, False),
    ],
)
def test_relations(mentions, relation, scene, holds):
    errors = claim_errors(make_claim(mentions, relation), scene)
    assert errors == (() if holds else ("relation",))


def test_background_pattern_and_colour_are_checked():
    assert is_true_of(make_claim((A_STAR,), None, "striped", "gray"), ROW)
    assert claim_errors(make_claim((A_STAR,), None, "plain", None), ROW) == ("background",)
    assert claim_errors(make_claim((A_STAR,), None, "striped", "teal"), ROW) == ("background",)


def test_naming_one_group_twice_is_false():
    assert claim_errors(make_claim((A_STAR, A_STAR)), ROW) == ("object",)


def test_equal_meanings_are_equal_claims():
    assert make_claim((A_STAR, TWO_RINGS)) == make_claim((TWO_RINGS, A_STAR))
    assert make_claim((A_STAR, TWO_RINGS), "beside") == make_claim((TWO_RINGS, A_STAR), "beside")
    ends_swapped = make_claim((A_HEART, TWO_RINGS, A_STAR), "between")
    assert make_claim((A_STAR, TWO_RINGS, A_HEART), "between") == ends_swapped
    assert make_claim((A_STAR, TWO_RINGS), "left_of") != make_claim((TWO_RINGS, A_STAR), "left_of")


@pytest.mark.parametrize("partial", [0.0, 1.0])
def test_descriptions_are_true(partial):
    config = WorldConfig(group_weights=(1.0, 1.0, 1.0))
    for index in range(1000):
        dice = Dice(11, index)
        scene = sample_scene(dice, config)
        claim = describe(scene, dice, config, partial)
        assert is_true_of(claim, scene)
        if partial == 0.0:
            assert {(m.kind, m.colour, m.count) for m in claim.mentions} == scene.core
        elif len(scene.groups) > 1:
            assert len(claim.mentions) < len(scene.groups)


def test_scenes_survive_the_way_through_json():
    assert scene_from_dict(scene_to_dict(ROW)) == ROW


def test_groups_of_a_scene_differ_in_kind():
    config = WorldConfig(group_weights=(0.0, 0.0, 1.0), num_kinds=4)
    for index in range(300):
        scene = sample_scene(Dice(12, index), config)
        assert len({group.kind for group in scene.groups}) == 3
