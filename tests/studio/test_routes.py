"""Requests and answers: values, forms, warnings, errors."""

import io
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image
from starlette.applications import Starlette

from openblip.runtime.errors import DataError, OpenBlipWarning
from openblip.studio import routes
from openblip.studio.app import Studio
from openblip.studio.routes import MAX_UPLOAD_PIXELS, Asked, Refused

from .conftest import RunningStudio, bomb, serving


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "k is missing|k must be a number"),
        ({"k": "many"}, "whole number|number"),
        ({"k": True}, "number"),
        ({"k": 2.5}, "whole number"),
        ({"k": 0}, "from 1 to 9"),
        ({"k": 10}, "from 1 to 9"),
        ({"k": float("nan")}, "from 1 to 9"),
        ({"k": None}, "number"),
        ({"k": [3]}, "number"),
    ],
    ids=str,
)
def test_a_number_out_of_its_bounds_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(Refused, match=told):
        Asked(values=values).whole("k", 1, 9)


def test_numbers_of_an_address_are_texts() -> None:
    assert Asked(values={"k": "7"}).whole("k", 1, 9) == 7


@pytest.mark.parametrize(
    "texts", ["a dog", [1], [["a"]], {"a": 1}, ["a"] * 65, ["a" * 2001]], ids=lambda t: str(t)[:20]
)
def test_what_is_no_list_of_texts_is_refused(texts: object) -> None:
    with pytest.raises(Refused, match="texts"):
        Asked(values={"texts": texts}).texts("texts")


def test_texts_lose_white_space_and_empty_ones() -> None:
    assert Asked(values={"texts": [" a dog ", "", " "]}).texts("texts") == ["a dog"]


def test_a_picture_with_too_many_pixels_is_not_decoded() -> None:
    side = int(MAX_UPLOAD_PIXELS**0.5) + 1
    with pytest.raises(Refused, match="million pixels") as refused:
        Asked(upload=bomb(side, side)).picture()
    assert refused.value.status == 413
    # Larger still, Pillow itself refuses.
    with pytest.raises(DataError, match=r"too large|pixels"):
        Asked(upload=bomb(60_000, 60_000)).picture()


def test_a_bomb_is_refused_over_http(studio: RunningStudio) -> None:
    for task in ("search", "try/caption", "try/ask", "try/match", "try/explain"):
        values = {"texts": ["a dog"], "text": "a dog", "question": "what?"}
        answer = studio.ask(f"/api/{task}", values, image=bomb(12_000, 12_000))
        assert answer.status == 413, task
        assert "144 million pixels" in answer.error


@pytest.mark.parametrize("upload", [b"", b"GIF89a", b"<svg/>", b"PK\x03\x04zip"], ids=str)
def test_an_upload_that_is_no_picture_is_refused(upload: bytes) -> None:
    with pytest.raises(DataError, match="the picture"):
        Asked(upload=upload).picture()


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{", {}),
        (b"[1]", {}),
        (b"[" * 100_000, {}),
        (b"\xff\xfe", {}),
        (b"x", {"Content-Type": "multipart/form-data"}),
        (b"x", {"Content-Type": "multipart/form-data; boundary=b"}),
        (
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nno file\r\n--b--\r\n',
            {"Content-Type": "multipart/form-data; boundary=b"},
        ),
        (
            b"".join(
                b'--b\r\nContent-Disposition: form-data; name="n%d"; filename="x"\r\n\r\nx\r\n' % n
                for n in range(9)
            )
            + b"--b--\r\n",
            {"Content-Type": "multipart/form-data; boundary=b"},
        ),
    ],
    ids=lambda one: str(one)[:24],
)
def test_a_body_that_cannot_be_read_is_refused(
    studio: RunningStudio, body: bytes, headers: dict[str, str | None]
) -> None:
    answer = studio.ask("/api/search", body=body, headers=headers)
    assert answer.status == 400
    assert answer.error


def test_what_the_page_does_not_have_is_said_as_json(studio: RunningStudio) -> None:
    answer = studio.ask("/api/nothing")
    assert (answer.status, answer.json()) == (404, {"error": "Not Found"})


@pytest.fixture(scope="module")
def odd(make_studio: Callable[..., Studio]) -> Iterator[RunningStudio]:
    """A studio with a few routes of its own."""
    studio = make_studio(None)

    def warns(asked: Asked) -> dict[str, int]:
        for _ in range(2):
            warnings.warn("an <odd> word", OpenBlipWarning, stacklevel=1)
        return {"found": 1}

    def breaks(asked: Asked) -> None:
        raise ZeroDivisionError("of a library\nin two lines")

    def stops(asked: Asked) -> None:
        raise StopIteration

    def counts(asked: Asked) -> dict[str, object]:
        return {"values": (float("nan"), 1.0, float("inf")), "inner": {"x": [float("nan")]}}

    with serving(studio) as running:
        app = running.app
        assert isinstance(app, Starlette)
        made = {"warns": warns, "breaks": breaks, "stops": stops, "counts": counts}
        app.router.routes += [routes.get(f"/{name}", answer) for name, answer in made.items()]
        yield running


def test_warnings_stand_beside_the_answer_each_time(odd: RunningStudio) -> None:
    for _ in range(2):
        assert odd.ask("/warns").json() == {"found": 1, "warnings": ["an <odd> word"]}


@pytest.mark.parametrize("name", ["breaks", "stops"])
def test_what_nobody_foresaw_is_one_line_and_ends_nothing(
    odd: RunningStudio, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = odd.ask(f"/{name}")
    assert answer.status == 500
    assert answer.error.startswith("unexpected ")
    assert "\n" not in answer.error
    assert "Traceback" in capfd.readouterr().err
    assert odd.ask("/api/about").status == 200


def test_numbers_that_are_none_are_null(odd: RunningStudio) -> None:
    found = json.loads(odd.ask("/counts").body)
    assert found == {"values": [None, 1.0, None], "inner": {"x": [None]}}


def test_a_thumbnail_of_a_large_jpeg_is_that_of_the_whole() -> None:
    stream = io.BytesIO()
    Image.radial_gradient("L").resize((4000, 2000)).save(stream, "JPEG", quality=95)
    small = routes.reduced(stream.getvalue(), "x", 240)
    whole = Image.open(io.BytesIO(stream.getvalue())).convert("RGB").resize((240, 120))
    assert small.size == (240, 120)
    assert abs(small.getpixel((120, 60))[0] - whole.getpixel((120, 60))[0]) <= 3
