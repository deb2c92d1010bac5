"""Where the objects of a scene stand: on a lattice of four by four places.

A small object takes one place and a large one two by two, so a vision transformer whose patches
are a quarter of the picture wide sees every small object whole, and each quarter of a large one
in a patch of its own. That makes the world learnable from tens of thousands of pictures.
"""

from dataclasses import dataclass

from openblip.data.world.dice import Dice
from openblip.data.world.scene import ObjectGroup, Scene

LATTICE = 4

Slots = tuple[int, ...]

# Starts of the objects along the strip of their group. Groups beside each other stay about
# level, so that no second relation seems to hold between them.
_LEVEL_SLOTS: dict[tuple[str, int], tuple[Slots, ...]] = {
    ("large", 1): ((1,),),
    ("large", 2): ((0, 2),),
    ("small", 1): ((1,), (2,)),
    ("small", 2): ((0, 2), (1, 3), (0, 3), (1, 2)),
    ("small", 3): ((0, 1, 2), (1, 2, 3), (0, 1, 3), (0, 2, 3)),
}
_FREE_SLOTS = _LEVEL_SLOTS | {
    ("large", 1): ((0,), (1,), (2,)),
    ("small", 1): ((0,), (1,), (2,), (3,)),
}


@dataclass(frozen=True, slots=True)
class Place:
    """The square of lattice places that one object takes."""

    column: int
    row: int
    span: int
    """Places on a side: 1 for small objects, 2 for large ones."""


def place_objects(scene: Scene, dice: Dice) -> list[list[Place]]:
    """Places of the objects of each group; no two of them share a place.

    Each group has a strip of the lattice for itself, one or two places thick, and the strips
    follow each other along the axis of the scene.
    """
    alone = len(scene.groups) == 1
    # One group has no axis: its strip may lie either way.
    upright = dice.chance(0.5) if alone else scene.axis == "row"
    slots_of = _FREE_SLOTS if alone else _LEVEL_SLOTS
    places = []
    for group, start in zip(scene.groups, _strip_starts(scene, dice), strict=True):
        slots = dice.choose(slots_of[group.size, group.count])
        span = _span(group)
        pairs = [(start, slot) if upright else (slot, start) for slot in slots]
        places.append([Place(column, row, span) for column, row in pairs])
    return places


def _span(group: ObjectGroup) -> int:
    return 2 if group.size == "large" else 1


def _strip_starts(scene: Scene, dice: Dice) -> list[int]:
    """First place of the strip of each group; what is left over falls between them at random."""
    spare = LATTICE - sum(map(_span, scene.groups))
    assert spare >= 0, "sample_scene leaves room for every group"
    shifts = sorted(dice.below(spare + 1) for _ in scene.groups)
    starts, used = [], 0
    for group, shift in zip(scene.groups, shifts, strict=True):
        starts.append(used + shift)
        used += _span(group)
    return starts
