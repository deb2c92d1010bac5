"""Ranges of numbers on the command line, and one check of them for every command.

A command says `batch_size: Count`; what is out of range is wrong usage, and names the flag.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from openblip.errors import OpenBlipError

_Result = TypeVar("_Result")


class UsageError(OpenBlipError):
    """The words of a command line make no sense; the exit code is 2."""


@dataclass(frozen=True)
class Range:
    """What a finite number must be: from `least` to `most`, both included, or above `least`."""

    least: float = -math.inf
    most: float = math.inf
    is_open: bool = False
    """Whether `least` itself is too small."""

    def __contains__(self, value: float) -> bool:
        above = value > self.least if self.is_open else value >= self.least
        return math.isfinite(value) and above and value <= self.most

    def __str__(self) -> str:
        if self.most < 1 << 31:
            return f"from {self.least:g} to {self.most:g}"
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
Positive = Annotated[float, Range(0, is_open=True)]
"""Seconds, prices and the like, which nothing comes free of."""
NotNegative = Annotated[float, Range(0)]
"""A strength or a rate that may be nothing."""
Finite = Annotated[float, Range()]
"""Any number."""


def checked(run: Callable[..., _Result]) -> Callable[..., _Result]:
    """A command that refuses numbers out of their ranges before it begins.

    Raises:
        UsageError: a number is out of its range.
    """

    @functools.wraps(run)
    def command(*args: Any, **kwargs: Any) -> _Result:
        signature = inspect.signature(run)
        given = signature.bind(*args, **kwargs).arguments
        hints = get_type_hints(run, include_extras=True)
        _check(given, hints)
        return run(*args, **kwargs)

    return command


def _check(given: dict[str, Any], hints: dict[str, Any]) -> None:
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if is_dataclass(value):  # its fields are flags themselves
            own = get_type_hints(type(value), include_extras=True)
            _check(vars(value), own)
            continue
        for number in value if isinstance(value, tuple) else (value,):
            for allowed in _ranges(hints[name]):
                if isinstance(number, int | float) and number not in allowed:
                    raise UsageError(f"{flag} must be {allowed}, not {number}")


def _ranges(hint: Any) -> Iterator[Range]:
    """The ranges in an annotation, also in those of a union's or a tuple's members."""
    if get_origin(hint) is Annotated:
        yield from (part for part in hint.__metadata__ if isinstance(part, Range))
    for part in get_args(hint):
        yield from _ranges(part)
