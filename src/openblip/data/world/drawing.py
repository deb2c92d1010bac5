"""Scenes as pictures: objects with a white rim over a background, as an indexed PNG."""

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
_SMALL_RADII = (20, 21, 22, 23)
_LARGE_RADIUS_MIN = 32
_LARGE_RADIUS_MAX = 76

# Left, top, width, height in pixels.
Cell = tuple[int, int, int, int]


def draw_scene(scene: Scene, image_size: int, dice: Dice) -> bytes:
    """A picture of a scene as a PNG file; the dice place, scale, tilt and tint.

    Args:
        scene: what to show.
        image_size: side in pixels, a multiple of 16.
        dice: equal dice give equal bytes on every machine.
    """
    return encode_indexed_png(*draw_indexed(scene, image_size, dice))


def draw_indexed(
    scene: Scene, image_size: int, dice: Dice
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Palette indices (size, size) and palette (colours, 3) of a picture of a scene."""
    tones = draw_background(scene.background, image_size, dice)
    canvas = tones * np.uint8(LEVELS + 1)
    cells = _split((0, 0, image_size, image_size), len(scene.groups), scene.axis)
    for index, (group, cell) in enumerate(zip(scene.groups, cells, strict=True)):
        first_fill = np.uint8(_FIRST_FILL + index * LEVELS - 1)
        # Groups side by side stay roughly level, so that no second relation seems to hold.
        free = None if len(cells) == 1 else scene.axis
        _draw_group(canvas, group, cell, first_fill, image_size // 16, free, dice)
    return canvas, _palette(scene, dice)


def _split(cell: Cell, parts: int, axis: str) -> list[Cell]:
    left, top, width, height = cell
    if axis == "row":
        edges = [width * part // parts for part in range(parts + 1)]
        return [(left + start, top, end - start, height) for start, end in pairwise(edges)]
    edges = [height * part // parts for part in range(parts + 1)]
    return [(left, top + start, width, end - start) for start, end in pairwise(edges)]


def _draw_group(
    canvas: NDArray[np.uint8],
    group: ObjectGroup,
    cell: Cell,
    first_fill: np.uint8,
    scale: int,
    axis: str | None,
    dice: Dice,
) -> None:
    cells = _object_cells(cell, group.count, dice)
    half = min(min(width, height) for _, _, width, height in cells) // 2
    rim = max(_RIM, _RIM * scale // 4)
    radius = _radius(group.size, half * SAMPLES - rim, scale, dice)
    side = box_side(radius, rim)
    for left, top, width, height in cells:
        glyph = draw_glyph(group.kind, radius, rim, dice.below(len(TILTS)))
        x = left + _place(width - side, axis == "column", scale, dice)
        y = top + _place(height - side, axis == "row", scale, dice)
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


def _radius(size: str, largest: int, scale: int, dice: Dice) -> int:
    """Radius in samples. Small and large never overlap, whatever the room."""
    if size == "small":
        return dice.choose(_SMALL_RADII) * scale // 4
    largest = min(largest, _LARGE_RADIUS_MAX * scale // 4)
    return max(_LARGE_RADIUS_MIN * scale // 4, largest * dice.between(6, 8) // 8)


def _place(room: int, centred: bool, scale: int, dice: Dice) -> int:
    """Offset in [0, room], at most 6 pixels of 64 from the middle where centred."""
    middle = room // 2
    shift = min(middle, 3 * scale // 2) if centred else middle
    return middle + dice.between(-shift, shift)


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
