"""The perceptual hash: equal to a live peer, steady under what leaves a picture the same."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from openblip.curation.marks import mark_image, perceptual_hash


def picture(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        x, y, w, h = (int(v) for v in rng.uniform(0, 1, 4) * np.array([*size, *size]) * 0.8)
        draw.ellipse([x, y, x + w + 4, y + h + 4], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def distance(first: Image.Image, second: Image.Image) -> int:
    return (perceptual_hash(first) ^ perceptual_hash(second)).bit_count()


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_hash_of_imagehash(seed: int) -> None:
    imagehash = pytest.importorskip("imagehash")
    image = picture(seed)
    assert f"{perceptual_hash(image):016x}" == str(imagehash.phash(image))


@pytest.mark.parametrize("seed", range(5))
def test_scaling_and_compression_change_few_bits_and_another_picture_many(seed: int) -> None:
    image = picture(seed)
    stream = io.BytesIO()
    image.resize((80, 60)).save(stream, "JPEG", quality=60)
    assert distance(image, Image.open(stream).convert("RGB")) <= 6
    assert distance(image, picture(seed + 100)) > 12


def test_an_image_of_one_colour_has_no_bit_of_noise() -> None:
    hashes = {perceptual_hash(Image.new("RGB", (50, 40), grey)) for grey in ("white", "teal")}
    assert hashes == {1 << 63}


def test_colours_and_bytes_tell_apart_what_the_hash_does_not() -> None:
    red, teal = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "teal")
    one, other = mark_image(red, b"1"), mark_image(teal, b"2")
    assert one.thumbnail == bytes([255, 0, 0] * 16)
    assert one.thumbnail != other.thumbnail
    assert one.digest != other.digest
    assert mark_image(red, b"1") == one
