"""Pictures: the same bytes everywhere, legible objects, nothing cut off."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from openblip.world.drawing import (
    COLOUR_RGB,
    TILTS,
    draw_glyph,
    draw_indexed,
    draw_scene,
    encode_indexed_png,
)
from openblip.world.scene import (
    COLOURS,
    KINDS,
    PATTERNS,
    Background,
    Dice,
    ObjectGroup,
    Scene,
    WorldConfig,
    sample_scene,
)


def rgb_of(scene: Scene, size: int = 64, seed: int = 0, jitter: float = 1.0) -> np.ndarray:
    file = draw_scene(scene, size, Dice(seed), jitter)
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(np.int64)


def near(picture: np.ndarray, colour: str) -> np.ndarray:
    """Pixels of an object colour, its tint included."""
    return (np.abs(picture - np.array(COLOUR_RGB[colour])) <= 14).all(axis=2)


@pytest.mark.parametrize("size", [48, 64, 96])
def test_pictures_decode_in_pillow(size):
    config = WorldConfig(image_size=size, group_weights=(1.0, 1.0, 1.0))
    for index in range(40):
        dice = Dice(1, index)
        file = draw_scene(sample_scene(dice, config), size, dice, jitter=index % 2)
        with Image.open(io.BytesIO(file)) as image:
            image.load()
            assert (image.format, image.size) == ("PNG", (size, size))


def test_the_encoder_is_lossless_beyond_one_stored_block():
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 200, (300, 400), dtype=np.uint8)
    palette = rng.integers(0, 256, (200, 3), dtype=np.uint8)
    file = encode_indexed_png(indices, palette)
    decoded = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    np.testing.assert_array_equal(decoded, palette[indices])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tilt", range(len(TILTS)))
def test_glyphs_lie_within_their_box(kind, tilt):
    """The outermost ring of pixels holds rim at most, and the rim closes around the object."""
    glyph = draw_glyph(kind, 40, 6, tilt)
    assert not glyph.inside[[0, -1]].any()
    assert not glyph.inside[:, [0, -1]].any()
    covered = glyph.inside | (glyph.rim > 0)
    neighbours = [np.roll(covered, shift, axis) for axis in (0, 1) for shift in (-1, 1)]
    assert all(moved[glyph.inside].all() for moved in neighbours)


def test_kinds_differ_clearly():
    masks = [draw_glyph(kind, 48, 6, 0).inside for kind in KINDS]
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            assert (mask ^ other).sum() / (mask | other).sum() > 0.15


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_stated_number_of_objects_is_visible(colour, count):
    for seed in range(12):
        scene = Scene(
            (ObjectGroup("square", colour, "large" if seed % 2 and count < 3 else "small", count),),
            "row",
            Background(PATTERNS[seed % 5], "teal"),
        )
        mask = near(rgb_of(scene, seed=seed), colour)
        assert num_components(mask) == count


def num_components(mask: np.ndarray) -> int:
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    found = 0
    while left:
        stack = [left.pop()]
        found += 1
        while stack:
            y, x = stack.pop()
            for step in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if step in left:
                    left.remove(step)
                    stack.append(step)
    return found


@pytest.mark.parametrize("axis", ["row", "column"])
def test_groups_follow_each_other_along_the_axis(axis):
    for seed in range(20):
        scene = Scene(
            (ObjectGroup("heart", "red", "small", 2), ObjectGroup("ring", "blue", "large", 1)),
            axis,
            Background("gradient", "gray"),
        )
        picture = rgb_of(scene, seed=seed)
        along = 1 if axis == "row" else 0
        first = np.nonzero(near(picture, "red"))[along]
        second = np.nonzero(near(picture, "blue"))[along]
        assert first.max() < second.min()


def test_large_objects_are_larger_than_small_ones_whatever_the_jitter():
    def area(size: str, seed: int) -> int:
        group = ObjectGroup("star", "red", size, 1)
        scene = Scene((group,), "row", Background("plain", "beige"))
        return int(near(rgb_of(scene, seed=seed), "red").sum())

    smallest = min(area("large", seed) for seed in range(30))
    assert smallest > 2 * max(area("small", seed) for seed in range(30))


def test_without_jitter_objects_fill_their_places():
    """Only the place differs from picture to picture, not the outline."""
    scene = Scene((ObjectGroup("heart", "red", "small", 1),), "row", Background("plain", "gray"))
    cut_out = set()
    for seed in range(60):
        mask = near(rgb_of(scene, seed=seed, jitter=0.0), "red")
        rows, columns = (np.nonzero(mask)[axis] // 16 for axis in (0, 1))
        assert (rows == rows[0]).all()
        assert (columns == columns[0]).all()
        top, left = rows[0] * 16, columns[0] * 16
        cut_out.add(mask[top : top + 16, left : left + 16].tobytes())
    assert len(cut_out) == 1


def test_jitter_varies_the_picture():
    scene = Scene((ObjectGroup("star", "red", "large", 1),), "row", Background("plain", "gray"))

    def outlines(jitter: float) -> int:
        return len({near(rgb_of(scene, 64, s, jitter), "red").tobytes() for s in range(60)})

    assert outlines(0.0) == 9  # places for an object of two by two
    assert outlines(1.0) > 50


def test_objects_of_a_scene_never_overlap():
    """Every palette entry of a group's colour is drawn, none is painted over by another."""
    config = WorldConfig(group_weights=(0.0, 0.0, 1.0))
    for index in range(100):
        dice = Dice(3, index)
        canvas, palette = draw_indexed(sample_scene(dice, config), 64, dice, jitter=1.0)
        assert canvas.max() < len(palette)
        full_fill = [len(palette) - 1 - 4 * group for group in range(3)]
        assert all((canvas == entry).any() for entry in full_fill)


@pytest.mark.parametrize(
    ("size", "digest"),
    [
        (64, "6e2f7b3b80c4551637e61de43e2930bc1e95721fe117dec938fa52807f29dbf2"),
        (96, "6b82dad5c07d52747a060933c5c8a77db1c126764fd812ec6cb97861c1bf1061"),
    ],
)
def test_the_bytes_are_pinned(size, digest):
    """The same bytes on every machine and with every version of NumPy and zlib."""
    config = WorldConfig(image_size=size, group_weights=(1.0, 1.0, 1.0))
    total = hashlib.sha256()
    for index in range(200):
        dice = Dice(2, index)
        total.update(draw_scene(sample_scene(dice, config), size, dice, jitter=index % 3 / 2))
    assert total.hexdigest() == digest
