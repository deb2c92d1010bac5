"""Ranges of numbers, written as types: `batch_size: Count`.

Where a number comes from decides how it is refused: a command names the flag, a settings object the
field (`check_ranges`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from openblip.runtime.errors import RecipeError


@dataclass(frozen=True)
class Range:
    """What a finite number must be: from `least` to `most`, both included if `least` is."""

    least: float = -math.inf
    most: float = math.inf
    is_open: bool = False
    """Whether `least` itself is too small."""

    def __contains__(self, value: float) -> bool:
        above = value > self.least if self.is_open else value >= self.least
        # NaN fails each comparison, but infinity is above every `least`.
        return math.isfinite(value) and above and value <= self.most

    def __str__(self) -> str:
        # A bound that nobody comes near would only hide what was wrong.
        if self.least == -math.inf:
            return "a finite number"
        if self.most < 1 << 31:
            begin = f"above {self.least:g} and up" if self.is_open else f"from {self.least:g}"
            return f"{begin} to {self.most:g}"
        return f"above {self.least:g}" if self.is_open else f"at least {self.least:g}"


Count = Annotated[int, Range(1, 1 << 53)]
"""How many of something that there must be: rows of a batch, beams, images."""
CountOrNone = Annotated[int, Range(0, 1 << 53)]
"""How many of something, none included."""
Workers = Annotated[int, Range(1, 4096)]
"""Threads or processes."""
Seed = Annotated[int, Range(0, (1 << 63) - 1)]
"""What draws begin with."""
Share = Annotated[float, Range(0, 1)]
"""A probability, or a part of a whole."""
PositiveShare = Annotated[float, Range(0, 1, is_open=True)]
"""A probability that is not zero."""
Positive = Annotated[float, Range(0, is_open=True)]
"""Seconds, prices and the like, which nothing comes free of."""
NotNegative = Annotated[float, Range(0)]
"""A strength or a rate that may be nothing."""
Finite = Annotated[float, Range()]
"""Any number."""


def check_ranges(settings: Any) -> None:
    """Nothing, if every number among the fields of a dataclass is in its range.

    Raises:
        RecipeError: one is not; names the field.
    """
    # The ranges are what is dropped from the hints without the extras.
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if wrong := broken_range(hint, value):
            raise RecipeError(f"{name} is {value}; give {wrong}")


def broken_range(hint: Any, value: Any) -> Range | None:
    """The range in an annotation, or in that of a union's or tuple's member, that a number breaks.

    None where there is no such range, and where the value is no number.
    """
    if not isinstance(value, int | float):
        return None
    return next((allowed for allowed in _ranges(hint) if value not in allowed), None)


def _ranges(hint: Any) -> Iterator[Range]:
    if get_origin(hint) is Annotated:
        yield from (part for part in hint.__metadata__ if isinstance(part, Range))
    for part in get_args(hint):
        yield from _ranges(part)
