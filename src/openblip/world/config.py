"""How large, how rich and how noisy an embedded world is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

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
