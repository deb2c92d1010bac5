"""Scenes as pictures: objects with a white rim over a background, the same bytes everywhere.

Floating-point sine and cosine may differ in the last bit between machines and so move a pixel:
anti-aliased masks are made in integer arithmetic only, from outlines that are integer constants and
tilts that are Pythagorean triples. Compressors differ between zlib versions and builds: the indexed
PNG has stored (uncompressed) blocks, which the formats fix fully (RFC 2083 for PNG, RFC 1950 and
1951 for zlib and deflate).
"""

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from openblip.world.scene import LATTICE, MAX_GROUPS, Background, Dice, Place, Scene, place_objects

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
# Tones run from 0, the dark end, to NUM_TONES - 1, the light end.
NUM_TONES = 24

# Coverage is kept in this many steps, so that few colours suffice for a palette.
LEVELS = 4

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


@dataclass(frozen=True)
class Glyph:
    """An object and its rim as pixel masks in a square box.

    `rim` holds the coverage (0..LEVELS) of the object grown by its rim, over the background,
    and is 0 where the object itself is; `fill` holds the coverage of the object over its rim.
    """

    rim: NDArray[np.uint8]
    fill: NDArray[np.uint8]
    inside: NDArray[np.bool_]

    @property
    def side(self) -> int:
        """Pixels on a side of the box."""
        return int(self.rim.shape[0])


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


# Samples per pixel side: coverage of a pixel is counted over SAMPLES**2 points.
SAMPLES = 4
# Outlines are given in a square of +-UNIT.
UNIT = 512
# Rotations by 0, +-6.0 and +-12.7 degrees, the least first, as (cosine, sine, common divisor).
TILTS = ((1, 0, 1), (180, 19, 181), (180, -19, 181), (40, 9, 41), (40, -9, 41))

Points = tuple[tuple[int, int], ...]
Grid = NDArray[np.int64]

_OUTLINES: dict[str, Points] = {
    "square": ((-362, -362), (362, -362), (362, 362), (-362, 362)),
    "triangle": ((0, -490), (440, 260), (-440, 260)),
    "diamond": ((0, -512), (345, 0), (0, 512), (-345, 0)),
    "star": (
        *((0, -512), (129, -178), (487, -158), (209, 68), (301, 414)),
        *((0, 220), (-301, 414), (-209, 68), (-487, -158), (-129, -178)),
    ),
    "cross": (
        *((-160, -486), (160, -486), (160, -160), (486, -160), (486, 160), (160, 160)),
        *((160, 486), (-160, 486), (-160, 160), (-486, 160), (-486, -160), (-160, -160)),
    ),
}


def box_side(radius: int, rim: int) -> int:
    """Pixels on a side of the box of a glyph; radius and rim in samples."""
    return 2 * -(-(radius + rim) // SAMPLES)


@lru_cache(maxsize=4096)
def draw_glyph(kind: str, radius: int, rim: int, tilt: int) -> Glyph:
    """The masks of one object.

    Args:
        kind: one of `scene.KINDS`.
        radius: of the circle around the object, in samples (SAMPLES per pixel).
        rim: width of the rim in samples; at least the diagonal of a pixel, so that pixels on
            the edge of the object are all rim beneath and never show the background.
        tilt: index into `TILTS`.
    """
    assert rim * rim >= 2 * SAMPLES * SAMPLES
    num_samples = box_side(radius, rim) * SAMPLES
    # Sample centres lie at odd half-samples from the centre of the box.
    offsets = 2 * np.arange(num_samples, dtype=np.int64) + 1 - num_samples
    cosine, sine, divisor = TILTS[tilt]
    x, y = offsets[None, :], offsets[:, None]
    scale = 2 * radius * divisor
    u = np.clip((cosine * x + sine * y) * UNIT // scale, -2 * UNIT, 2 * UNIT)
    v = np.clip((cosine * y - sine * x) * UNIT // scale, -2 * UNIT, 2 * UNIT)
    shape = _inside(kind, u, v)
    fill = _coverage(shape)
    under = _coverage(_dilate(shape, rim))
    under[fill > 0] = 0
    return Glyph(rim=under, fill=fill, inside=fill > 0)


def _inside(kind: str, u: Grid, v: Grid) -> NDArray[np.bool_]:
    if kind in _OUTLINES:
        return _inside_polygon(_OUTLINES[kind], u, v)
    return _CURVES[kind](u, v)


def _inside_polygon(points: Points, u: Grid, v: Grid) -> NDArray[np.bool_]:
    """Even-odd rule: a ray to the right crosses the outline an odd number of times."""
    odd = np.zeros(np.broadcast_shapes(u.shape, v.shape), dtype=np.bool_)
    for (x1, y1), (x2, y2) in zip(points, (*points[1:], points[0]), strict=True):
        if y1 > y2:
            (x1, y1), (x2, y2) = (x2, y2), (x1, y1)
        crosses = (v >= y1) & (v < y2)
        odd ^= crosses & ((u - x1) * (y2 - y1) < (x2 - x1) * (v - y1))
    return odd


def _inside_circle(u: Grid, v: Grid) -> NDArray[np.bool_]:
    return u * u + v * v <= 470 * 470


def _inside_ring(u: Grid, v: Grid) -> NDArray[np.bool_]:
    squared = u * u + v * v
    return (squared <= 490 * 490) & (squared >= 260 * 260)


def _inside_heart(u: Grid, v: Grid) -> NDArray[np.bool_]:
    """The curve (x^2 + y^2 - 1)^3 = x^2 y^3, shrunk into the box; y points up."""
    x = u * 4 // 3
    y = 64 - v * 4 // 3
    # The quarter keeps the cube below 1e18 at the clipped corners, within 63 bits.
    left = (x * x + y * y - UNIT * UNIT) // 4
    return left**3 <= x * x * y**3 // 64 * UNIT


_CURVES: dict[str, Callable[[Grid, Grid], NDArray[np.bool_]]] = {
    "circle": _inside_circle,
    "ring": _inside_ring,
    "heart": _inside_heart,
}


def _dilate(shape: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """The shape grown by a disc, in samples."""
    side = shape.shape[0]
    grown = np.zeros_like(shape)
    padded = np.pad(shape.astype(np.int32), ((0, 0), (radius + 1, radius)))
    sums = np.cumsum(padded, axis=1)
    for shift in range(-radius, radius + 1):
        half = math.isqrt(radius * radius - shift * shift)
        # Any sample of the row within `half` columns.
        start = radius - half
        near = sums[:, radius + 1 + half :][:, :side] > sums[:, start : start + side]
        target = slice(max(0, shift), side + min(0, shift))
        source = slice(max(0, -shift), side + min(0, -shift))
        grown[target] |= near[source]
    return grown


def _coverage(shape: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Share of the samples of each pixel, in steps of 1 / LEVELS."""
    side = shape.shape[0] // SAMPLES
    blocks = shape.reshape(side, SAMPLES, side, SAMPLES)
    counts = blocks.sum(axis=(1, 3), dtype=np.int64)
    # A pixel with any sample keeps at least one step, so that edges stay closed.
    steps: NDArray[np.uint8] = (-(-counts * LEVELS // SAMPLES**2)).astype(np.uint8)
    return steps


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


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_BLOCK = 65535


def encode_indexed_png(indices: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """The PNG file of an image of palette indices.

    Args:
        indices: (height, width), every value below the number of colours.
        palette: (colours, 3) RGB, at most 256 colours.
    """
    height, width = indices.shape
    # Each row starts with its filter type, 0 = none.
    rows = np.zeros((height, width + 1), dtype=np.uint8)
    rows[:, 1:] = indices
    # 8 bits per pixel, colour type 3 = palette.
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", palette.tobytes()),
            _chunk(b"IDAT", _stored_zlib(rows.tobytes())),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _stored_zlib(data: bytes) -> bytes:
    parts = [b"\x78\x01"]
    for start in range(0, len(data), _MAX_BLOCK):
        block = data[start : start + _MAX_BLOCK]
        is_last = start + _MAX_BLOCK >= len(data)
        parts.append(struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF) + block)
    parts.append(struct.pack(">I", zlib.adler32(data)))
    return b"".join(parts)
