"""Objects share no place, stay inside the lattice, and lie as their scene says."""

import itertools

from openblip.world.scene import (
    LATTICE,
    Background,
    Dice,
    ObjectGroup,
    Place,
    Scene,
    WorldConfig,
    place_objects,
    sample_scene,
)

CONFIG = WorldConfig(group_weights=(1.0, 1.0, 1.0), count_weights=(1.0, 1.0, 1.0))


def cells(place: Place) -> set[tuple[int, int]]:
    span = range(place.span)
    return {(place.column + x, place.row + y) for x, y in itertools.product(span, span)}


def test_objects_have_places_of_their_own():
    for index in range(1000):
        dice = Dice(1, index)
        scene = sample_scene(dice, CONFIG)
        places = place_objects(scene, dice)
        assert [len(group) for group in places] == [group.count for group in scene.groups]
        taken = [cell for group in places for place in group for cell in cells(place)]
        assert len(taken) == len(set(taken))
        assert all(0 <= x < LATTICE and 0 <= y < LATTICE for x, y in taken)


def test_groups_follow_each_other_along_the_axis():
    for index in range(1000):
        dice = Dice(2, index)
        scene = sample_scene(dice, CONFIG)
        places = place_objects(scene, dice)
        along = 0 if scene.axis == "row" else 1
        for first, second in itertools.pairwise(places):
            ends = max(cell[along] for place in first for cell in cells(place))
            assert ends < min(cell[along] for place in second for cell in cells(place))


def test_a_lone_object_may_stand_anywhere():
    scene = Scene((ObjectGroup("star", "red", "small", 1),), "row", Background("plain", "gray"))
    found = {place_objects(scene, Dice(seed))[0][0] for seed in range(400)}
    assert len(found) == LATTICE * LATTICE


def test_scenes_leave_room_for_every_group():
    """At most two objects are large side by side, and at most one group of three."""
    for index in range(1000):
        scene = sample_scene(Dice(3, index), CONFIG)
        large = [group for group in scene.groups if group.size == "large"]
        assert all(group.count <= 2 for group in large)
        assert len(large) <= (1 if len(scene.groups) == 3 else 2)
