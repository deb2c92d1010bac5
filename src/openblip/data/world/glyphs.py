"""Anti-aliased masks of the kinds of objects, in integer arithmetic only.

Floating-point sine and cosine may differ in the last bit between machines and so move a pixel;
here outlines are integer constants and tilts are Pythagorean triples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Samples per pixel side: coverage of a pixel is counted over SAMPLES**2 points.
SAMPLES = 4
# Coverage is kept in this many steps, so that few colours suffice for a palette.
LEVELS = 4
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
