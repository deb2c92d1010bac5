"""Opening images: every kind of source and pixel, damage, and bombs."""

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageFile

from openblip.runtime.errors import DataError
from openblip.sources.images import MAX_PIXELS, UndecodedImage, image_suffix, open_image

RED, GREEN, BLUE, WHITE, BLACK = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0),
)  # fmt: skip


def encoded(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def colours(image):
    """Rows of (red, green, blue)."""
    assert image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


@pytest.fixture
def photo():
    """Red above, blue below; higher than wide."""
    image = Image.new("RGB", (16, 24), RED)
    image.paste(BLUE, (0, 12, 16, 24))
    return image


class TestSources:
    def test_bytes_paths_images_and_arrays_are_one(self, photo, tmp_path):
        file = tmp_path / "photo.png"
        photo.save(file)
        expected = photo.tobytes()
        for source in (file, str(file), file.read_bytes(), photo, np.asarray(photo)):
            opened = open_image(source)
            assert opened.mode == "RGB"
            assert opened.tobytes() == expected

    def test_open_files_and_all_kinds_of_bytes_are_read_from_their_begin(self, photo, tmp_path):
        data = encoded(photo)
        written = io.BytesIO()
        written.write(data)
        (tmp_path / "photo.png").write_bytes(data)
        with (tmp_path / "photo.png").open("rb") as file:
            for source in (bytearray(data), memoryview(data), written, file):
                assert open_image(source).tobytes() == photo.tobytes()

    def test_what_cannot_be_read_is_named_for_what_it_is(self, tmp_path):
        file = tmp_path / "a.txt"
        file.write_text("text")
        for source, message in {
            "https://example.com/a.jpg": r"https://example\.com/a\.jpg: an address .*download",
            Path("https://example.com/a.jpg"): "an address .*download",
            "-": "standard input is not read",
            "s3://lab/a.jpg": r"an address \(s3\)",
            None: "no image; give a path, bytes, an open file",
        }.items():
            with pytest.raises(DataError, match=message):
                open_image(source)
        with file.open() as text, pytest.raises(DataError, match=r"a\.txt: opened .* text"):
            open_image(text)
        with pytest.raises(DataError, match="of a dictionary its bytes"):
            open_image({"bytes": b"", "path": None})
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match="a pipe or a device"):
            open_image(tmp_path / "pipe")

    def test_arrays_with_opacity_or_one_channel_are_read(self):
        pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0]]], dtype=np.uint8)
        assert colours(open_image(pixels)) == [[RED, WHITE]]
        assert colours(open_image(np.full((1, 1, 1), 7, np.uint8))) == [[(7, 7, 7)]]

    def test_arrays_and_tensors_that_are_no_pixels_get_a_remedy(self):
        with pytest.raises(DataError, match=r"with channels first: array\.transpose"):
            open_image(np.zeros((3, 8, 8), np.uint8))
        with pytest.raises(DataError, match=r"from 0 to 1: \(array \* 255\)"):
            open_image(np.zeros((8, 8, 3), np.float32))
        with pytest.raises(DataError, match=r"no image.*tensor\.permute\(1, 2, 0\)"):
            open_image(torch.zeros(3, 8, 8))

    def test_a_grey_array_becomes_rgb(self):
        grey = np.array([[0, 100, 255]], dtype=np.uint8)
        assert colours(open_image(grey)) == [[(0, 0, 0), (100, 100, 100), (255, 255, 255)]]

    def test_an_array_may_be_a_view(self, photo):
        mirrored = np.asarray(photo)[::-1]
        assert colours(open_image(mirrored))[0][0] == BLUE

    @pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
    def test_formats(self, photo, image_format):
        opened = open_image(encoded(photo, image_format))
        assert opened.size == photo.size
        assert np.abs(np.asarray(opened)[2, 2].astype(int) - RED).max() < 25

    def test_the_result_is_a_copy_of_a_pillow_image(self, photo):
        opened = open_image(photo)
        opened.putpixel((0, 0), GREEN)
        assert photo.getpixel((0, 0)) == RED

    @pytest.mark.parametrize(
        "source",
        [
            np.zeros((4, 4, 3)),
            np.zeros((4, 4, 2), dtype=np.uint8),
            np.zeros((3, 8, 8), dtype=np.uint8),
            np.zeros((0, 4, 3), dtype=np.uint8),
            np.zeros(4, dtype=np.uint8),
            None,
            17,
        ],
    )
    def test_other_things_are_refused(self, source):
        with pytest.raises(DataError, match=r"expected uint8 of shape|give a path, bytes"):
            open_image(source)


class TestPixels:
    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize(
        ("orientation", "top_left", "bottom_right", "turned"),
        [
            (1, RED, BLUE, False),
            (2, RED, BLUE, False),
            (3, BLUE, RED, False),
            (4, BLUE, RED, False),
            (5, RED, BLUE, True),
            (6, BLUE, RED, True),
            (7, BLUE, RED, True),
            (8, RED, BLUE, True),
        ],
    )
    def test_exif_orientation(
        self, photo, image_format, orientation, top_left, bottom_right, turned
    ):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(photo, image_format, exif=exif)
        opened = open_image(data)
        assert opened.size == ((24, 16) if turned else (16, 24))
        corners = np.asarray(opened).astype(int)
        assert np.abs(corners[1, 1] - top_left).max() < 25
        assert np.abs(corners[-2, -2] - bottom_right).max() < 25
        # Twice is once, and a Pillow image of the same file is the same.
        assert open_image(opened).tobytes() == opened.tobytes()
        assert open_image(Image.open(io.BytesIO(data))).tobytes() == opened.tobytes()

    def test_alpha_lies_over_white(self):
        image = Image.new("RGBA", (3, 1))
        for x, pixel in enumerate([(0, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 51)]):
            image.putpixel((x, 0), pixel)
        assert colours(open_image(encoded(image))) == [[WHITE, RED, (204, 204, 204)]]

    @pytest.mark.parametrize(
        ("mode", "clear"),
        [("LA", (0, 0)), ("La", (0, 0)), ("PA", (0, 0)), ("RGBa", (0, 0, 0, 0))],
    )
    def test_other_kinds_of_alpha(self, mode, clear):
        image = Image.new(mode, (1, 1))
        image.putpixel((0, 0), clear)
        assert colours(open_image(image)) == [[WHITE]]

    @pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
    def test_a_palette_with_transparency(self, transparency):
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, *BLUE])
        image.putpixel((1, 0), 1)
        assert colours(open_image(encoded(image))) == [[RED, BLUE]]
        assert colours(open_image(encoded(image, transparency=transparency))) == [[RED, WHITE]]

    def test_a_transparent_colour(self):
        image = Image.new("RGB", (2, 1), RED)
        image.putpixel((1, 0), GREEN)
        assert colours(open_image(encoded(image, transparency=GREEN))) == [[RED, WHITE]]

    @pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
    def test_grey_of_16_bits_is_scaled_to_8(self, image_format):
        values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
        opened = open_image(encoded(Image.fromarray(values), image_format))
        assert [pixel[0] for pixel in colours(opened)[0]] == [0, 0, 1, 128, 255]

    def test_grey_of_32_bits_and_of_floats(self):
        whole = Image.fromarray(np.array([[0, 2**30, 2**31 - 1]], dtype=np.int32))
        unit = Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], dtype=np.float32))
        bytes_ = Image.fromarray(np.array([[-5.0, 99.6, 255.0, 999.0]], dtype=np.float32))
        assert [pixel[0] for pixel in colours(open_image(whole))[0]] == [0, 128, 255]
        assert [pixel[0] for pixel in colours(open_image(unit))[0]] == [0, 128, 255, 0]
        assert [pixel[0] for pixel in colours(open_image(bytes_))[0]] == [0, 100, 255, 255]

    def test_cmyk(self):
        opened = open_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
        assert np.abs(np.asarray(opened).astype(int) - RED).max() < 10

    @pytest.mark.parametrize("mode", ["1", "L"])
    def test_grey_and_bilevel(self, mode):
        assert colours(open_image(encoded(Image.new(mode, (1, 1), 255)))) == [[WHITE]]

    @pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_of_an_animation_the_first_frame(self, image_format):
        frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
        data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
        opened = np.asarray(open_image(data)).astype(int)
        assert np.abs(opened - RED).max() < 25


def png_with_header(width, height):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


class TestDamage:
    def test_an_empty_file_is_named(self, tmp_path):
        file = tmp_path / "empty.jpg"
        file.touch()
        with pytest.raises(DataError, match=r"empty\.jpg: empty; fetch"):
            open_image(file)
        with pytest.raises(DataError, match="image of 0 bytes: empty"):
            open_image(b"")

    def test_a_missing_file_and_a_folder_are_named(self, tmp_path):
        with pytest.raises(DataError, match=r"nothing\.png: cannot be read.*check the path"):
            open_image(tmp_path / "nothing.png")
        with pytest.raises(DataError, match="cannot be read"):
            open_image(tmp_path)
        with pytest.raises(DataError, match="cannot be read"):
            open_image("null\0byte")

    @pytest.mark.parametrize("data", [b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0"])
    def test_what_is_no_image_is_told_the_known_formats(self, data):
        with pytest.raises(DataError, match=r"not an image of a known format.*give one of JPEG"):
            open_image(data)

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
    @pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
    def test_a_cut_off_image_is_an_error(self, image_format, share):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        data = encoded(Image.fromarray(noise), image_format)
        with pytest.raises(DataError, match=r"damaged image|not an image"):
            open_image(data[: int(len(data) * share)])

    @pytest.mark.parametrize("limit", [None, 89478485])
    def test_a_bomb_is_refused_by_its_header(self, monkeypatch, limit):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=r"bomb\.png: .*pixels"):
            open_image(png_with_header(30000, 30000), name="bomb.png")

    def test_a_large_image_below_the_limit_gives_no_warning(self):
        # Above the size at which Pillow warns; the missing pixels are the only complaint.
        assert MAX_PIXELS > 10000 * 12000
        with pytest.raises(DataError, match="truncated"):
            open_image(png_with_header(10000, 12000))

    def test_the_name_of_a_row_stands_in_the_error(self):
        with pytest.raises(DataError, match=r"^row 7 of pairs\.lance: empty"):
            open_image(b"", name="row 7 of pairs.lance")


def jpeg_with_broken_exif(photo):
    exif = Image.Exif()
    exif[0x010E] = "x" * 100
    exif[0x0112] = 6
    data = encoded(photo, "JPEG", exif=exif)
    return data.replace(struct.pack(">HHI", 0x010E, 2, 101), struct.pack(">HHI", 0x010E, 2, 99999))


class TestNoTraces:
    def test_broken_metadata_is_silent_and_the_picture_stays(self, photo):
        data = jpeg_with_broken_exif(photo)
        with pytest.warns(UserWarning, match="Skipping tag|Truncated File Read"):
            Image.open(io.BytesIO(data)).getexif()
        # Pillow before 13 does not find the orientation behind the broken entry.
        assert sorted(open_image(data).size) == [16, 24]

    def test_warning_filters_and_pillow_settings_stay_also_with_threads(self, photo):
        data = jpeg_with_broken_exif(photo)
        state = (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
        failures = []

        def work():
            for _ in range(30):
                try:
                    open_image(data)
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert state == (
            list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("image_format", "suffix"),
    [("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif"), ("PPM", ".ppm")],
)
def test_the_suffix_is_that_of_the_bytes(photo, image_format, suffix):
    assert image_suffix(encoded(photo, image_format), "x") == suffix


def test_bytes_of_no_image_have_no_suffix():
    with pytest.raises(DataError, match=r"row 3: not an image"):
        image_suffix(b"<html>", "row 3")


def _scene(width: int, height: int, **options: object) -> bytes:
    """A JPEG with a smooth picture, which hardly loses when it is made smaller."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
def test_a_jpeg_is_decoded_at_a_fraction_of_its_size(divisor: int) -> None:
    undecoded = UndecodedImage(_scene(101, 63))
    assert (undecoded.width, undecoded.height) == (101, 63)
    decoded = undecoded.decoded(divisor)
    assert decoded.size == (-(-101 // divisor), -(-63 // divisor))
    whole = open_image(_scene(101, 63)).resize(decoded.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(whole)).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_undecoded_image_knows_its_upright_size(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    encoded = _scene(96, 64, exif=exif)
    undecoded, upright = UndecodedImage(encoded), open_image(encoded)
    assert (undecoded.width, undecoded.height) == upright.size
    assert UndecodedImage(encoded).decoded().tobytes() == upright.tobytes()
    assert undecoded.decoded(4).size == (upright.width // 4, upright.height // 4)


def test_other_formats_come_whole() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(stream, "PNG")
    assert UndecodedImage(stream.getvalue()).decoded(4).size == (40, 20)


def test_a_jpeg_that_is_cut_off_is_told_when_it_is_decoded() -> None:
    encoded = _scene(96, 64)
    undecoded = UndecodedImage(encoded[: len(encoded) // 2], "row 3")
    with pytest.raises(DataError, match="row 3: damaged image"):
        undecoded.decoded(2)
