"""Scenes as pictures: objects with a white rim over a background, as an indexed PNG."""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from openblip.data.world.backgrounds import NUM_TONES, draw_background, tone_colours
from openblip.data.world.config import MAX_GROUPS
from openblip.data.world.dice import Dice
from openblip.data.world.glyphs import LEVELS, SAMPLES, TILTS, Glyph, draw_glyph
from openblip.data.world.layout import LATTICE, Place, place_objects
from openblip.data.world.png import encode_indexed_png
from openblip.data.world.scene import Scene

COLOUR_RGB = {
    "red": (218, 38, 46),
    "blue": (38, 92, 214),
    "yellow": (252, 206, 24),
    "green": (46, 158, 68),
    "black": (30, 30, 36),
    "orange": (245, 124, 22),
    "purple": (132, 54, 172),
    "pink": (250, 128, 182),
}
_RIM_RGB = (252, 252, 250)
# Palette: every tone under 0..LEVELS steps of rim, then the steps of each group's colour.
_FIRST_FILL = NUM_TONES * (LEVELS + 1)
# Largest change of a colour channel from picture to picture.
_COLOUR_JITTER = 14

# Rim in samples of a picture of 64 pixels or less, 4 samples per pixel.
_MIN_RIM = 6
# With full jitter the radius loses up to 4 of 16 parts, and the object may move as much.
_SHRINK_STEPS, _MAX_SHRINK = 16, 4


def draw_scene(scene: Scene, image_size: int, dice: Dice, jitter: float = 0.0) -> bytes:
    """A picture of a scene as a PNG file; the dice place, scale, tilt and tint.

    Args:
        scene: what to show.
        image_size: side in pixels, a multiple of 16.
        dice: equal dice give equal bytes on every machine.
        jitter: how far objects stray, in [0, 1]: at 0 they fill their places upright.
    """
    return encode_indexed_png(*draw_indexed(scene, image_size, dice, jitter))


def draw_indexed(
    scene: Scene, image_size: int, dice: Dice, jitter: float = 0.0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Palette indices (size, size) and palette (colours, 3) of a picture of a scene."""
    canvas = draw_background(scene.background, image_size, dice) * np.uint8(LEVELS + 1)
    places = place_objects(scene, dice)
    for index, (group, spots) in enumerate(zip(scene.groups, places, strict=True)):
        first_fill = np.uint8(_FIRST_FILL + index * LEVELS - 1)
        shrink = dice.between(0, math.floor(_MAX_SHRINK * jitter))
        for spot in spots:
            glyph = _glyph(group.kind, spot, image_size, shrink, jitter, dice)
            room = spot.span * image_size // LATTICE - glyph.side
            # Without jitter the object stands in the middle of its place.
            x, y = (room // 2 if jitter == 0 else dice.below(room + 1) for _ in range(2))
            x += spot.column * image_size // LATTICE
            y += spot.row * image_size // LATTICE
            _stamp(canvas[y : y + glyph.side, x : x + glyph.side], glyph, first_fill)
    return canvas, _palette(scene, dice)


def _glyph(
    kind: str, spot: Place, image_size: int, shrink: int, jitter: float, dice: Dice
) -> Glyph:
    """An object that fits its place; all measures in samples."""
    side = spot.span * image_size * SAMPLES // LATTICE
    rim = max(_MIN_RIM, image_size * SAMPLES * _MIN_RIM // 256)
    radius = (side // 2 - rim) * (_SHRINK_STEPS - shrink) // _SHRINK_STEPS
    tilt = dice.below(1 + math.floor((len(TILTS) - 1) * jitter))
    return draw_glyph(kind, radius, rim, tilt)


def _stamp(window: NDArray[np.uint8], glyph: Glyph, first_fill: np.uint8) -> None:
    window += glyph.rim
    np.copyto(window, glyph.fill + first_fill, where=glyph.inside)


def _palette(scene: Scene, dice: Dice) -> NDArray[np.uint8]:
    palette = np.zeros((_FIRST_FILL + MAX_GROUPS * LEVELS, 3), dtype=np.uint8)
    palette[:_FIRST_FILL] = _ground_palette(scene.background.colour)
    for index, group in enumerate(scene.groups):
        jitter = [dice.between(-_COLOUR_JITTER, _COLOUR_JITTER) for _ in range(3)]
        colour = np.clip(np.add(COLOUR_RGB[group.colour], jitter), 0, 255)
        start = _FIRST_FILL + index * LEVELS
        palette[start : start + LEVELS] = _blend(np.array(_RIM_RGB), colour)[1:]
    return palette


@cache
def _ground_palette(colour: str) -> NDArray[np.int64]:
    tones = tone_colours(colour)
    return np.concatenate([_blend(tone, np.array(_RIM_RGB)) for tone in tones])


def _blend(below: NDArray[np.int64], above: NDArray[np.int64]) -> NDArray[np.int64]:
    """Mixtures of two colours with 0..LEVELS steps of the upper one, (LEVELS + 1, 3)."""
    steps = np.arange(LEVELS + 1, dtype=np.int64)[:, None]
    return (below * (LEVELS - steps) + above * steps + LEVELS // 2) // LEVELS
