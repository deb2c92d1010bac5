"""Scenes as pictures: objects with a white rim over a background, as an indexed PNG."""

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from openblip.data.world.backgrounds import NUM_TONES, draw_background, tone_colours
from openblip.data.world.config import MAX_GROUPS
from openblip.data.world.dice import Dice
from openblip.data.world.glyphs import LEVELS, SAMPLES, TILTS, Glyph, box_side, draw_glyph
from openblip.data.world.png import encode_indexed_png
from openblip.data.world.scene import ObjectGroup, Scene

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

# Design sizes in samples of a 64-pixel picture, 4 per pixel.
_RIM = 6
_SMALL_RADIUS = 24
_LARGE_RADIUS_MIN = 32
_LARGE_RADIUS_MAX = 76

# Left, top, width, height in pixels.
Cell = tuple[int, int, int, int]


def draw_scene(scene: Scene, image_size: int, dice: Dice, jitter: float = 1.0) -> bytes:
    """A picture of a scene as a PNG file; the dice place, scale, tilt and tint.

    Args:
        scene: what to show.
        image_size: side in pixels, a multiple of 16.
        dice: equal dice give equal bytes on every machine.
        jitter: how far objects stray, in [0, 1]: at 0 they stand upright in the middle of
            their places, at their largest.
    """
    return encode_indexed_png(*draw_indexed(scene, image_size, dice, jitter))


def draw_indexed(
    scene: Scene, image_size: int, dice: Dice, jitter: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Palette indices (size, size) and palette (colours, 3) of a picture of a scene."""
    tones = draw_background(scene.background, image_size, dice)
    canvas = tones * np.uint8(LEVELS + 1)
    cells = _split((0, 0, image_size, image_size), len(scene.groups), scene.axis)
    for index, (group, cell) in enumerate(zip(scene.groups, cells, strict=True)):
        # Groups side by side stay roughly level, so that no second relation seems to hold.
        level = None if len(cells) == 1 else scene.axis
        placing = _Placing(image_size // 16, level, jitter, dice)
        _draw_group(canvas, group, cell, np.uint8(_FIRST_FILL + index * LEVELS - 1), placing)
    return canvas, _palette(scene, dice)


@dataclass(frozen=True)
class _Placing:
    """How the objects of a group are put into their cells."""

    scale: int  # samples per design pixel
    level: str | None  # axis along which the groups follow each other
    jitter: float
    dice: Dice

    def radius(self, size: str, room: int) -> int:
        """Radius in samples. Small and large never overlap, whatever the room."""
        spread = round(4 * self.jitter)
        if size == "small":
            return (_SMALL_RADIUS - self.dice.between(0, spread)) * self.scale // 4
        largest = min(room, _LARGE_RADIUS_MAX * self.scale // 4)
        shrunk = largest * (16 - self.dice.between(0, spread)) // 16
        return max(_LARGE_RADIUS_MIN * self.scale // 4, shrunk)

    def tilt(self) -> int:
        """Index of a tilt, of those up to the jitter."""
        return self.dice.below(1 + round((len(TILTS) - 1) * self.jitter))

    def offset(self, room: int, across: str) -> int:
        """Place in [0, room], at most 6 pixels of 64 from the middle across the groups' axis."""
        middle = room // 2
        shift = min(middle, 3 * self.scale // 2) if self.level == across else middle
        shift = math.floor(shift * self.jitter)
        return middle + self.dice.between(-shift, shift)


def _split(cell: Cell, parts: int, axis: str) -> list[Cell]:
    left, top, width, height = cell
    if axis == "row":
        edges = [width * part // parts for part in range(parts + 1)]
        return [(left + start, top, end - start, height) for start, end in pairwise(edges)]
    edges = [height * part // parts for part in range(parts + 1)]
    return [(left, top + start, width, end - start) for start, end in pairwise(edges)]


def _draw_group(
    canvas: NDArray[np.uint8], group: ObjectGroup, cell: Cell, first_fill: np.uint8, place: _Placing
) -> None:
    cells = _object_cells(cell, group.count, place.dice)
    half = min(min(width, height) for _, _, width, height in cells) // 2
    rim = max(_RIM, _RIM * place.scale // 4)
    radius = place.radius(group.size, half * SAMPLES - rim)
    side = box_side(radius, rim)
    for left, top, width, height in cells:
        glyph = draw_glyph(group.kind, radius, rim, place.tilt())
        x = left + place.offset(width - side, across="column")
        y = top + place.offset(height - side, across="row")
        _stamp(canvas[y : y + side, x : x + side], glyph, first_fill)


def _object_cells(cell: Cell, count: int, dice: Dice) -> list[Cell]:
    _, _, width, height = cell
    if count == 1:
        return [cell]
    if width != height:
        return _split(cell, count, "column" if height > width else "row")
    layout = dice.choose(("row", "column", "quarters"))
    if layout != "quarters":
        return _split(cell, count, layout)
    quarters = [quarter for half in _split(cell, 2, "row") for quarter in _split(half, 2, "column")]
    return dice.sample(quarters, count)


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
