"""Bad images through everything that takes images: each gives its kind of error, or a result.

Which pixels an odd image becomes is told in tests/sources/test_images.py.
"""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.inference.decoding import Decoding
from openblip.runtime.errors import DataError


def encoded(image, image_format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def bomb():
    """The header of a PNG of 30,000 x 30,000, and next to no pixels."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


BAD = {
    "empty": (b"", "empty; fetch the image again"),
    "truncated": (encoded(noise(), "JPEG")[:900], "damaged image"),
    "html": (b"<html>404</html>", "not an image of a known format"),
    "bomb": (bomb(), "900000000 pixels"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("use", ["caption", "match", "match_all", "embed_images"])
def test_a_bad_image_is_named_with_what_is_wrong(blip, pictures, tmp_path, kind, use):
    data, message = BAD[kind]
    file = tmp_path / f"{kind}.png"
    file.write_bytes(data)
    sources = [pictures[0], file]
    texts = {"match": [["a", "b"]], "match_all": [["a"]]}.get(use, [])
    with pytest.raises(DataError, match=rf"{kind}\.png: .*{message}"):
        getattr(blip, use)(sources, *texts)


ODD = {
    "1 x 1": Image.new("RGB", (1, 1), "red"),
    "1 x 5000": Image.new("RGB", (1, 5000), "red"),
    "alpha": Image.new("RGBA", (9, 9), (255, 0, 0, 0)),
    "palette": Image.new("P", (9, 9)),
    "16 bits": Image.fromarray(np.full((9, 9), 40000, dtype=np.uint16)),
    "cmyk": Image.new("CMYK", (9, 9), (0, 255, 0, 0)),
    "bilevel": Image.new("1", (9, 9)),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_image_is_an_image(blip, kind):
    ((caption,),) = blip.caption(ODD[kind])
    assert np.isfinite(caption.logprob)
    assert torch.isfinite(blip.embed_images(ODD[kind])).all()


def test_the_turn_of_a_camera_and_the_first_frame_count(blip):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(noise().crop((0, 0, 40, 20)), exif=exif.tobytes())
    upright = noise().crop((0, 0, 40, 20)).transpose(Image.Transpose.ROTATE_270)
    assert blip.caption(turned) == blip.caption(upright)
    frames = encoded(noise(), save_all=True, append_images=[Image.new("RGB", (40, 40))])
    assert blip.caption(frames) == blip.caption(noise())


@pytest.mark.slow
def test_a_stream_of_images_needs_the_memory_of_a_few(blip):
    """120 images of 768 KiB are 90 MiB; the threads may hold two batches of four."""
    generator = np.random.default_rng(0)

    def images():
        for _ in range(120):
            yield generator.integers(0, 256, (512, 512, 3), dtype=np.uint8)

    stream = blip.caption_stream(images(), Decoding(method="greedy", max_length=8), batch_size=4)
    next(stream)
    tracemalloc.start()
    try:
        count = sum(1 for _ in stream)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 119
    assert peak < 24 << 20
