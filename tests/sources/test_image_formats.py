"""Images are recognised by their content; what is none is called by its name."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from openblip.runtime.errors import DataError
from openblip.sources import image_formats
from openblip.sources.image_formats import format_of, is_image_file, what_it_is
from openblip.sources.images import open_image


def encoded(form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((16, 12), 30).convert("RGB").save(stream, form, **options)
    return stream.getvalue()


def heic() -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    picture = Image.new("RGB", (64, 48), "red")
    pillow_heif.from_pillow(picture).save(stream, quality=90)
    return stream.getvalue()


@pytest.mark.parametrize(
    "form",
    [
        *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO", "AVIF"),
        *("DDS", "ICNS", "PCX", "SGI"),
    ],
)
def test_an_image_is_known_by_its_first_bytes(form: str, tmp_path: Path) -> None:
    # Pillow before 13 writes no picture below 16 x 16 into an ICO unless its size is given.
    data = encoded(form, **({"sizes": [(16, 12)]} if form == "ICO" else {}))
    assert format_of(data[: image_formats.HEAD_BYTES]) == form
    for name in ("upload", "upload.123", "upload.weird"):
        (tmp_path / name).write_bytes(data)
        assert is_image_file(tmp_path / name)
    assert open_image(data).mode == "RGB"


@pytest.mark.parametrize(
    "data", [b"", b"P", b"BMW builds cars", b"P5 is a priority", b"a text", bytes(64), b"%PDF-1.7"]
)
def test_other_content_is_no_image(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    assert not is_image_file(tmp_path / "file")


def test_a_usual_suffix_is_believed_unread() -> None:
    usual = ["jfif", "jpe", "pjpeg", "mpo", "ico", "pgm", "pbm", "pnm", "j2k", "jpf", "jpx"]
    for suffix in [*usual, "apng", "avifs", "jpg_large", "heic"]:
        assert is_image_file(Path(f"not/there.{suffix.upper()}"))


def test_the_preview_in_a_raw_file_is_not_taken_for_the_photograph(tmp_path: Path) -> None:
    (tmp_path / "a.NEF").write_bytes(encoded("TIFF"))
    assert not is_image_file(tmp_path / "a.NEF")
    assert "raw file of a camera" in str(what_it_is(b"II*", "a.NEF"))


def test_heic_is_read_with_the_extra(tmp_path: Path) -> None:
    data = heic()
    assert format_of(data[: image_formats.HEAD_BYTES]) == "HEIF"
    picture = open_image(data)
    assert picture.size == (64, 48)
    assert np.abs(np.asarray(picture)[20, 20].astype(int) - (255, 0, 0)).max() < 12
    (tmp_path / "a.heic").write_bytes(encoded("JPEG"))
    assert open_image(tmp_path / "a.heic").size == (16, 12)


def test_heic_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic()
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    image_formats.register_heif.cache_clear()
    with pytest.raises(DataError, match=r"HEIC.*openblip\[heif\]|HEIC.*extra `heif`"):
        open_image(data, "a.heic")
    image_formats.register_heif.cache_clear()


def test_avif_of_the_brand_that_both_share_is_no_heic() -> None:
    head = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf"
    assert not image_formats.is_heif(head)
    assert image_formats.is_heif(head.replace(b"avif", b"heic"))


class _Mine(ImageFile.ImageFile):
    """A format of somebody's own: a mark, and a pixel."""

    format = "MINE"

    def _open(self) -> None:
        self._size, self._mode = (1, 1), "L"
        self.tile = [ImageFile._Tile("raw", (0, 0, 1, 1), 4, ("L", 0, 1))]


def test_a_format_that_a_package_has_registered_with_pillow_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"MINE\xc8"
    with pytest.raises(DataError, match="not an image of a known format"):
        open_image(data)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    Image.register_open("MINE", _Mine, lambda prefix: prefix.startswith(b"MINE"))
    Image.register_extension("MINE", ".mine")
    assert open_image(data).getpixel((0, 0)) == (200, 200, 200)
    assert format_of(data) == "MINE"
    assert is_image_file(tmp_path / "not there.mine")


def test_formats_that_start_other_programs_stay_refused() -> None:
    Image.init()
    data = encoded("EPS")
    assert format_of(data) is None
    with pytest.raises(DataError, match="not an image of a known format but a PostScript file"):
        open_image(data)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"%PDF-1.7", "a PDF"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>", "a web page"),
        (b"<svg xmlns", "an SVG drawing"),
        (b"\0\0\0\x18ftypmp42", "a video"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"PK\x03\x04", "a ZIP archive"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(head: bytes, what: str) -> None:
    assert what in str(what_it_is(head))
    with pytest.raises(DataError, match=f"not an image of a known format but .*{what}"):
        open_image(head)


def _box(brand: bytes, compatible: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0" + compatible + bytes(50)


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (_box(b"heic", b"mif1heic"), "HEIF"),
        (_box(b"mif1", b"mif1heic"), "HEIF"),
        (_box(b"avif", b"mif1avif"), "AVIF"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG"),
        (b"\xff\xd8\xff" + bytes(50), "JPEG"),
    ],
)
def test_a_damaged_image_is_no_video_and_of_its_own_format(data: bytes, form: str) -> None:
    if form == "HEIF":
        pytest.importorskip("pillow_heif")
    with pytest.raises(DataError, match=rf"damaged image \(of the format {form}, and its header"):
        open_image(data)


def test_what_lies_in_the_same_container_as_videos_is_called_what_it_is() -> None:
    assert what_it_is(_box(b"heic", b"mif1heic")) == "a HEIC photograph"
    assert what_it_is(_box(b"avif", b"mif1avif")) == "an AVIF image"
    assert str(what_it_is(_box(b"crx ", b"crx isom"))).startswith("a raw file of a camera")
    assert what_it_is(_box(b"isom", b"isommp42")) == "a video"


def test_a_text_is_of_no_known_kind() -> None:
    assert what_it_is(b"plain") is None
    assert what_it_is(b"plain", "a.jpg") is None


def test_a_picture_that_is_not_read_is_called_by_its_format() -> None:
    for form, name in (("TGA", "a.TGA"), ("PSD", "a.x.psd")):
        told = what_it_is(b"", name)
        assert told == f"an image of the format {form}, which is not read (save it as JPEG or PNG)"
    assert what_it_is(b"", "a.mpg") is None
