"""What a picture of the embedded world shows: groups of equal objects over a background."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openblip.data.world.config import MAX_GROUPS, WorldConfig
from openblip.data.world.dice import Dice

# The first entries look least alike: a world of few kinds or colours takes those.
KINDS = ("circle", "square", "star", "triangle", "cross", "heart", "ring", "diamond")
COLOURS = ("red", "blue", "yellow", "green", "black", "orange", "purple", "pink")
SIZES = ("large", "small")
AXES = ("row", "column")
PATTERNS = ("plain", "striped", "checkered", "gradient", "speckled")
GROUND_COLOURS = ("gray", "beige", "teal", "navy")


@dataclass(frozen=True, slots=True)
class ObjectGroup:
    """One to three equal objects, drawn close together."""

    kind: str
    colour: str
    size: str
    count: int


@dataclass(frozen=True, slots=True)
class Background:
    """A pattern in two tones of one colour."""

    pattern: str
    colour: str


@dataclass(frozen=True, slots=True)
class Scene:
    """Groups in order, left to right (`row`) or top to bottom (`column`), over a background.

    The kinds of the groups differ, so naming a kind picks at most one group: whether a caption
    is true never depends on how its words are matched with the groups.
    """

    groups: tuple[ObjectGroup, ...]
    axis: str
    background: Background

    @property
    def core(self) -> frozenset[tuple[str, str, int]]:
        """(kind, colour, count) of every group: what each human caption states in full."""
        return frozenset((group.kind, group.colour, group.count) for group in self.groups)

    def group_of(self, kind: str) -> int | None:
        """Position of the group of that kind, None where the scene has none."""
        for index, group in enumerate(self.groups):
            if group.kind == kind:
                return index
        return None


def sample_scene(dice: Dice, config: WorldConfig) -> Scene:
    """A random scene of the world."""
    num_groups = dice.weighted(config.group_weights) + 1
    groups: list[ObjectGroup] = []
    room_for_large = 2 if num_groups < MAX_GROUPS else 1
    for kind in dice.sample(KINDS[: config.num_kinds], num_groups):
        colour = COLOURS[dice.below(config.num_colours)]
        count = dice.weighted(config.count_weights) + 1
        size = dice.choose(SIZES)
        # Pictures have room for two large objects in a row, and for so many rows of them.
        if count > 2 or room_for_large == 0:
            size = "small"
        room_for_large -= size == "large"
        groups.append(ObjectGroup(kind, colour, size, count))
    # One group lies on no axis; a fixed word keeps equal scenes equal.
    axis = dice.choose(AXES) if num_groups > 1 else "row"
    background = Background(dice.choose(PATTERNS), dice.choose(GROUND_COLOURS))
    return Scene(tuple(groups), axis, background)


def scene_to_dict(scene: Scene) -> dict[str, Any]:
    """Plain JSON values of a scene, as the rows' `meta` carries them."""
    return {
        "groups": [
            {"kind": g.kind, "colour": g.colour, "size": g.size, "count": g.count}
            for g in scene.groups
        ],
        "axis": scene.axis,
        "background": {"pattern": scene.background.pattern, "colour": scene.background.colour},
    }


def scene_from_dict(plain: Mapping[str, Any]) -> Scene:
    """The scene that `scene_to_dict` wrote."""
    return Scene(
        groups=tuple(ObjectGroup(**group) for group in plain["groups"]),
        axis=plain["axis"],
        background=Background(**plain["background"]),
    )
