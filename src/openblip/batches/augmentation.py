"""What may happen to a training image; light, so that a recipe is read without torch."""

from dataclasses import dataclass

from openblip.runtime.errors import RecipeError

MAX_MAGNITUDE = 10
"""Magnitudes of RandAugment count from 0 to this."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What happens to a training image at random."""

    min_scale: float = 0.5
    """Smallest share of the image's area that a crop takes; 0.2 in BLIP's pre-training."""
    flip: bool = True
    """Whether half of the images are mirrored."""
    randaugment: bool = True
    """Whether RandAugment is applied."""
    num_operations: int = 2
    """N of RandAugment: operations drawn per image, each applied with probability 0.5."""
    magnitude: int = 5
    """M of RandAugment, 0 to 10; 5 in BLIP, 7 in ALBEF."""

    def __post_init__(self) -> None:
        """Checks every number."""
        for name, is_good, wanted in (
            ("min_scale", 0 < self.min_scale <= 1, "more than 0 and at most 1"),
            ("num_operations", self.num_operations >= 0, "at least 0"),
            ("magnitude", 0 <= self.magnitude <= MAX_MAGNITUDE, f"0 to {MAX_MAGNITUDE}"),
        ):
            if not is_good:
                raise RecipeError(
                    f"data.augmentation.{name} is {getattr(self, name)}; give {wanted}"
                )
