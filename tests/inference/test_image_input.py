"""What users call an image, or several, is taken apart as they mean it."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.inference.image_sources import as_sources
from openblip.runtime.errors import DataError


def encoded() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "image",
    [
        "a.jpg",
        Path("a.jpg"),
        b"bytes",
        bytearray(b"bytes"),
        memoryview(b"bytes"),
        io.BytesIO(b"bytes"),
        Image.new("RGB", (2, 2)),
        np.zeros((2, 2, 3), np.uint8),
        torch.zeros(3, 2, 2),
        {"bytes": b"", "path": None},
        None,
        7,
    ],
    ids=lambda image: type(image).__name__,
)
def test_one_image_is_a_list_of_one(image: object) -> None:
    (source,) = as_sources(image)  # type: ignore[arg-type]
    assert source is image


def test_several_images_stay_several() -> None:
    assert list(as_sources(np.zeros((3, 2, 2, 3), np.uint8)))[2].shape == (2, 2, 3)  # type: ignore[union-attr]
    assert list(as_sources(np.array(["a.jpg", "b.jpg"]))) == ["a.jpg", "b.jpg"]  # type: ignore[arg-type]
    assert list(as_sources(iter(["a.jpg", b"x"]))) == ["a.jpg", b"x"]


def test_open_files_and_all_kinds_of_bytes_are_captioned_alike(blip, tmp_path: Path) -> None:
    data = encoded()
    (tmp_path / "a.png").write_bytes(data)
    expected = blip.caption(data)[0][0].text
    with (tmp_path / "a.png").open("rb") as file:
        several = [file, io.BytesIO(data), bytearray(data), memoryview(data)]
        assert [blip.caption(image)[0][0].text for image in several] == [expected] * 4
        assert [caption.text for (caption,) in blip.caption(several)] == [expected] * 4


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("https://example.com/a.jpg", r"an address \(https\), not a file; download"),
        ("-", "standard input is not read"),
        (torch.zeros(3, 8, 8), r"no image.*permute"),
        (torch.zeros(2, 3, 8, 8), r"no image.*permute"),
        (np.zeros((8, 8, 3), np.float32), "from 0 to 1"),
        ({"bytes": b""}, "of a dictionary its bytes"),
        (None, "NoneType: no image"),
    ],
    ids=["address", "-", "tensor", "tensors", "floats", "dictionary", "None"],
)
def test_what_is_no_image_is_named_with_a_remedy(blip, image: object, message: str) -> None:
    for use in (blip.caption, blip.embed_images, lambda image: blip.match(image, ["a"])):
        with pytest.raises(DataError, match=message):
            use(image)
