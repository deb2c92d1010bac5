"""Background patterns as maps of tones between the dark and the light end of one colour."""

import numpy as np
from numpy.typing import NDArray

from openblip.data.world.dice import Dice
from openblip.data.world.scene import Background

# Tones run from 0, the dark end, to NUM_TONES - 1, the light end.
NUM_TONES = 24

GROUND_RGB: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "gray": ((160, 166, 174), (210, 214, 220)),
    "beige": ((214, 188, 148), (242, 226, 198)),
    "teal": ((84, 160, 160), (154, 210, 204)),
    "navy": ((38, 50, 92), (76, 93, 146)),
}

ToneMap = NDArray[np.uint8]


def draw_background(background: Background, size: int, dice: Dice) -> ToneMap:
    """The tones of a background, (size, size); place and width of the pattern vary."""
    if background.pattern == "plain":
        return np.full((size, size), dice.below(NUM_TONES), dtype=np.uint8)
    if background.pattern == "speckled":
        return _speckles(size, dice)
    if background.pattern == "gradient":
        return _gradient(size, dice)
    tones = np.array((dice.below(5), NUM_TONES - 1 - dice.below(5)), dtype=np.uint8)
    is_light = _stripes(size, dice) if background.pattern == "striped" else _checks(size, dice)
    return np.take(tones, is_light)


def tone_colours(colour: str) -> NDArray[np.int64]:
    """RGB of every tone of a ground colour, (NUM_TONES, 3)."""
    dark, light = (np.array(end, dtype=np.int64) for end in GROUND_RGB[colour])
    steps = np.arange(NUM_TONES, dtype=np.int64)[:, None]
    return dark + (light - dark) * steps // (NUM_TONES - 1)


def _ramp(size: int, down: int, right: int) -> NDArray[np.int64]:
    """Row times `down` plus column times `right`, (size, size)."""
    line = np.arange(size, dtype=np.int64)
    return line[:, None] * down + line * right


def _stripes(size: int, dice: Dice) -> NDArray[np.int64]:
    width = dice.between(size // 16, size // 8)
    down, right = dice.choose(((1, 0), (0, 1), (1, 1), (1, -1)))
    if down and right:
        # Diagonals are closer by sqrt(2), about 7 / 5.
        width = width * 7 // 5
    return (_ramp(size, down, right) + dice.below(2 * width)) // width & 1


def _checks(size: int, dice: Dice) -> NDArray[np.int64]:
    width = dice.between(size // 12, size // 7)
    line = np.arange(size, dtype=np.int64)
    rows = (line + dice.below(2 * width)) // width
    columns = (line + dice.below(2 * width)) // width
    return (rows[:, None] + columns) & 1


def _gradient(size: int, dice: Dice) -> ToneMap:
    down, right = dice.choose(((1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1), (1, -1)))
    along = _ramp(size, down, right)
    along -= along.min()
    tones: ToneMap = (along * (NUM_TONES - 1) // along.max()).astype(np.uint8)
    return tones


def _speckles(size: int, dice: Dice) -> ToneMap:
    """Square grains of four tones, each drawn by a 64-bit mix of its number."""
    grain = size // 32
    side = -(-size // grain)
    # SplitMix64 over an array; unsigned products wrap around, as intended.
    value = np.arange(side * side, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    value += np.uint64(dice.bits())
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    # Neighbouring tones rather than the extremes: small objects must stand out.
    grains = (value >> np.uint64(62)).astype(np.uint8) * np.uint8(5)
    grains += np.uint8(dice.below(NUM_TONES - 15))
    tones = grains.reshape(side, side).repeat(grain, axis=0).repeat(grain, axis=1)
    return tones[:size, :size]
