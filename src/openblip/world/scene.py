"""What a picture of the embedded world shows: groups of equal objects over a background.

Scenes are drawn by dice that fall alike on every machine and with every version of every library.
Objects stand on a lattice of four by four places. A small one takes one place and a large one two
by two, so a vision transformer whose patches are a quarter of the picture wide sees every small
object whole, and each quarter of a large one in a patch of its own. That makes the world learnable
from tens of thousands of pictures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

from openblip.runtime.errors import RecipeError

MAX_GROUPS = 3
MAX_COUNT = 3
NUM_KINDS = 8
NUM_COLOURS = 8

Language = Literal["en", "zh"]
"""Of captions: English or Chinese."""

NOISE_KINDS = ("true", "wrong_attribute", "wrong_object", "other_image", "boilerplate")

_SHARES = (
    "mention_size",
    "mention_background",
    "mention_relation",
    "web_partial",
    "names",
    "jitter",
)


@dataclass(frozen=True, kw_only=True)
class NoiseRates:
    """Share of each kind of web caption; the five shares add up to 1."""

    true: float = 0.45
    """Captions that are true of their image, though often brief and in web style."""
    wrong_attribute: float = 0.10
    """Captions with one false colour, size, count or background."""
    wrong_object: float = 0.10
    """Captions that name a kind of object which is not in the image."""
    other_image: float = 0.25
    """Captions of another image, false of this one."""
    boilerplate: float = 0.10
    """Texts that say nothing of any image: file names, shop phrases."""

    def __post_init__(self) -> None:
        rates = self.as_tuple()
        # Shares such as 0.1 are no exact binary numbers.
        if min(rates) < 0 or not math.isclose(sum(rates), 1.0, abs_tol=1e-6):
            raise RecipeError(f"noise rates must be >= 0 and add up to 1, got {rates}")

    def as_tuple(self) -> tuple[float, ...]:
        """The rates in the order of `NOISE_KINDS`."""
        return tuple(float(getattr(self, kind)) for kind in NOISE_KINDS)


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """One embedded world: the same config gives the same rows, byte for byte, everywhere."""

    seed: int = 0
    """Selects the world; any integer >= 0."""
    language: Language = "en"
    """Of all captions; the pictures, their truth and the kinds of noise are the same in each."""
    image_size: int = 64
    """Side of the square images in pixels; a multiple of 16, at least 48."""
    web_rows: int = 10_000
    """Training images with one web caption each."""
    human_rows: int = 1_000
    """Training images with human captions."""
    val_rows: int = 200
    """Validation images with human captions; their core descriptions are pairwise distinct."""
    test_rows: int = 250
    """Test images with human captions; their core descriptions are pairwise distinct."""
    captions_per_image: int = 5
    """Human captions per image (web images have one caption)."""
    num_kinds: int = NUM_KINDS
    """How many kinds of objects exist, 2 to 8."""
    num_colours: int = NUM_COLOURS
    """How many object colours exist, 1 to 8."""
    group_weights: tuple[float, ...] = (0.45, 0.5, 0.05)
    """Relative frequency of scenes with one, two, three groups of objects (1 to 3 entries)."""
    count_weights: tuple[float, ...] = (0.6, 0.25, 0.15)
    """Relative frequency of one, two, three equal objects in a group (1 to 3 entries)."""
    mention_size: float = 0.35
    """Probability that a caption states the size of a group."""
    mention_background: float = 0.5
    """Probability that a caption states the background."""
    mention_relation: float = 0.75
    """Probability that a caption of several groups says how they lie."""
    web_partial: float = 0.15
    """Probability that a web caption leaves out some of the groups of its scene."""
    names: float = 0.0
    """Probability that a web caption names somebody or a place: facts that no human caption has. A
    caption of another image has the names of that one."""
    jitter: float = 0.0
    """How far objects stray from their places on the lattice, in scale and tilt, in [0, 1].

    A small vision transformer learns shapes several times slower even at 0.25."""
    noise: NoiseRates = field(default_factory=NoiseRates)
    """Shares of the kinds of web captions."""

    def __post_init__(self) -> None:
        self._check_sizes()
        _check_weights("group_weights", self.group_weights, MAX_GROUPS)
        _check_weights("count_weights", self.count_weights, MAX_COUNT)
        for name in _SHARES:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RecipeError(f"{name} must lie in [0, 1], got {getattr(self, name)}")

    def _check_sizes(self) -> None:
        if self.language not in get_args(Language):
            raise RecipeError(f"language must be en or zh, got {self.language!r}")
        if self.image_size < 48 or self.image_size % 16:
            raise RecipeError(
                f"image_size must be a multiple of 16 and at least 48, got {self.image_size}"
            )
        for name in ("seed", "web_rows", "human_rows", "val_rows", "test_rows"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.captions_per_image < 1:
            raise RecipeError(f"captions_per_image must be >= 1, got {self.captions_per_image}")
        # A wrong object is a kind that the scene lacks, so one kind must be left over.
        if not self.max_groups < self.num_kinds <= NUM_KINDS:
            raise RecipeError(
                f"num_kinds must lie in [{self.max_groups + 1}, {NUM_KINDS}], got {self.num_kinds}"
            )
        if not 1 <= self.num_colours <= NUM_COLOURS:
            raise RecipeError(f"num_colours must lie in [1, {NUM_COLOURS}], got {self.num_colours}")

    @property
    def max_groups(self) -> int:
        """Largest number of groups of objects in a scene."""
        return len(self.group_weights)

    @property
    def num_counts(self) -> int:
        """Largest number of equal objects in a group."""
        return len(self.count_weights)


def _check_weights(name: str, weights: Sequence[float], most: int) -> None:
    if not 1 <= len(weights) <= most or min(weights) < 0 or sum(weights) <= 0:
        raise RecipeError(f"{name} needs 1 to {most} numbers >= 0, not all 0, got {weights}")


def config_to_dict(config: WorldConfig) -> dict[str, object]:
    """Plain JSON values of a config, kept in the metadata of its table."""
    plain: dict[str, object] = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    if config.language == "en":
        # Tables of the English world have the same bytes as before there was another.
        del plain["language"]
    if not config.names:
        del plain["names"]
    plain["group_weights"] = list(config.group_weights)
    plain["count_weights"] = list(config.count_weights)
    plain["noise"] = dict(zip(NOISE_KINDS, config.noise.as_tuple(), strict=True))
    return plain


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


T = TypeVar("T")

_MASK = (1 << 64) - 1
# Odd (the golden ratio in 64 bits): a stream passes all states before one comes again.
_STEP = 0x9E3779B97F4A7C15


def mix64(value: int) -> int:
    """A well-mixed 64-bit number of a 64-bit number (the finaliser of SplitMix64)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Dice:
    """A stream of random choices named by integers: `Dice(seed, stream, row)`.

    SplitMix64 (Steele et al. 2014) in plain integers: NumPy and the standard library do not
    promise that their derived draws stay equal from version to version.
    """

    def __init__(self, *key: int) -> None:
        state = 0
        for part in key:
            state = mix64((state + _STEP + part) & _MASK)
        self._state = state

    def bits(self) -> int:
        """A uniform integer in [0, 2**64)."""
        self._state = (self._state + _STEP) & _MASK
        return mix64(self._state)

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound)."""
        return (self.bits() * bound) >> 64

    def between(self, low: int, high: int) -> int:
        """A uniform integer in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._unit() < probability

    def choose(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self.below(len(options))]

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, drawn in proportion to the weights (>= 0, not all 0)."""
        # Correctly rounded, where `sum` differs between versions of Python.
        point = self._unit() * math.fsum(weights)
        last = 0
        for index, weight in enumerate(weights):
            if weight > 0:
                last = index
                if point < weight:
                    return index
                point -= weight
        return last  # rounding may leave the point at the very end

    def sample(self, options: Sequence[T], num: int) -> list[T]:
        """`num` different options in random order (Fisher-Yates)."""
        pool = list(options)
        for index in range(num):
            other = self.between(index, len(pool) - 1)
            pool[index], pool[other] = pool[other], pool[index]
        return pool[:num]

    def _unit(self) -> float:
        # 53 bits make an exact float in [0, 1) on every machine.
        return float(self.bits() >> 11) * 2.0**-53


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
