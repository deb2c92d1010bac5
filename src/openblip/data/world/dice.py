"""Random choices that are equal on every machine and with every version of every library."""

import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1
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
