"""Pictures of rows: thumbnails, as they are stored, and nothing else."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openblip.index.build import build_index
from openblip.index.noted import FOLDER_TABLE
from openblip.studio.app import Studio
from openblip.studio.place import CACHE_BYTES, Kept
from openblip.table.table import PairRow, PairTable
from openblip.table.versions import lance_library

from .conftest import RunningStudio, bomb, serving


def opened(body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(body))


def encoded(form: str, size: tuple[int, int] = (300, 200), **more: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **more)
    return stream.getvalue()


@pytest.fixture(scope="module")
def forms(
    make_studio: Callable[..., Studio], tmp_path_factory: pytest.TempPathFactory
) -> RunningStudio:
    """Rows in several formats; some are damaged, or none at all."""
    images = {
        "jpeg": encoded("JPEG", (3000, 2000)),
        "png": encoded("PNG"),
        "tiff": encoded("TIFF"),
        "broken": encoded("JPEG")[:500],
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "html": b"<!doctype html><script>alert(1)</script>",
        "bomb": bomb(40_000, 40_000),
    }
    uri = tmp_path_factory.mktemp("forms") / "pairs.lance"
    PairTable.create(uri, [PairRow(name, image) for name, image in images.items()])
    with serving(make_studio(uri)) as running:
        yield running


def test_a_thumbnail_is_small_and_keeps_its_shape(forms: RunningStudio) -> None:
    answer = forms.ask("/image/0?w=240")
    assert answer.headers["content-type"] == "image/webp"
    assert opened(answer.body).size == (240, 160)
    # What is asked for is rounded up to one of a few widths.
    assert opened(forms.ask("/image/0?w=241").body).size == (360, 240)
    # A small picture is not blown up.
    assert opened(forms.ask("/image/1?w=1440").body).size == (300, 200)


def test_what_a_browser_has_is_not_sent_again(forms: RunningStudio) -> None:
    first = forms.ask("/image/0?w=240")
    again = forms.ask("/image/0?w=240", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    other = forms.ask("/image/1?w=240", headers={"If-None-Match": first.headers["etag"]})
    assert other.status == 200


def test_an_address_with_the_mark_of_the_table_lasts(forms: RunningStudio) -> None:
    mark = forms.ask("/api/about").json()["table"]["mark"]
    lasting = forms.ask(f"/image/0?w=240&v={mark}")
    assert "immutable" in lasting.headers["cache-control"]
    assert "immutable" not in forms.ask("/image/0?w=240").headers["cache-control"]
    # Of another version the numbers may be other rows'.
    other = forms.ask("/image/0?w=240&v=0123456789abcdef")
    assert other.status == 409
    assert "reload" in other.error


def test_the_picture_as_it_is_stored(forms: RunningStudio) -> None:
    answer = forms.ask("/image/0")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.body == encoded("JPEG", (3000, 2000))
    assert forms.ask("/image/1").headers["content-type"] == "image/png"
    # No browser shows a TIFF.
    assert opened(forms.ask("/image/2").body).format == "JPEG"


@pytest.mark.parametrize("row", [3, 4, 5, 6])
@pytest.mark.parametrize("width", ["", "?w=240"])
def test_what_is_no_picture_is_never_given_out(forms: RunningStudio, row: int, width: str) -> None:
    answer = forms.ask(f"/image/{row}{width}")
    if row in (3, 6) and not width:  # damaged, but a picture: a browser shows what it can
        assert answer.headers["content-type"].startswith("image/")
        return
    assert answer.status == 400
    assert b"<script>" not in answer.body
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "path",
    [
        "/image/7",
        "/image/-1",
        "/image/99999999999999999999",
        "/image/0?w=0",
        "/image/0?w=nine",
        "/image/0?w=99999999",
    ],
)
def test_other_rows_and_widths_are_refused(forms: RunningStudio, path: str) -> None:
    answer = forms.ask(path)
    assert answer.status in (400, 404)
    assert answer.error


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/cli/studio.py",
        "/static/....//app.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/..%5capp.py",
        "/static/page.js%00.css",
        "/image/../../../../etc/passwd",
        "/image/..%2f..%2fetc%2fpasswd",
        "/etc/passwd",
        "/static/",
        "/static",
    ],
)
def test_no_path_leads_out(forms: RunningStudio, path: str) -> None:
    answer = forms.ask(path)
    assert answer.status == 404
    assert b"root:" not in answer.body
    assert b"import" not in answer.body


def photos(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_a_link_out_of_the_folder_is_not_followed(
    make_studio: Callable[..., Studio], tmp_path: Path
) -> None:
    folder = photos(tmp_path / "photos")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with serving(make_studio(folder)) as running:
        place = running.studio.need_place()
        ids = place.table.take(range(4), ["id"])["id"].to_pylist()
        for row, name in enumerate(ids):
            answer = running.ask(f"/image/{row}")
            assert answer.status == (404 if name == "link.png" else 200)
        assert "outside" in running.ask(f"/image/{ids.index('link.png')}").error


def test_an_index_that_came_with_a_folder_names_no_other_file(
    make_studio: Callable[..., Studio], checkpoints: dict[str, str], tmp_path: Path
) -> None:
    folder = photos(tmp_path / "photos")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    build_index(str(folder), checkpoints["filter"], device="cpu", show_progress=False)
    table = lance_library().dataset(str(folder / FOLDER_TABLE))
    climbing = f"{folder.as_uri()}/%2e%2e/secret.png"
    uris = (str(secret), f"{folder}/../secret.png", secret.as_uri(), climbing, "s3://bucket/x.png")
    for uri in uris:
        table.update({"image_uri": f"'{uri}'"}, where="id = '1.png'")
        with serving(make_studio(folder)) as running:
            found = [running.ask(f"/image/{row}").status for row in range(3)]
        assert sorted(found) == [200, 200, 404], uri


def test_a_name_that_is_no_utf_8_is_inside(
    make_studio: Callable[..., Studio], tmp_path: Path
) -> None:
    folder = photos(tmp_path / "my photos")
    odd = os.fsdecode(os.fsencode(folder) + b"/k\xfcste.png")
    (folder / "0.png").rename(odd)
    with serving(make_studio(folder)) as running:
        assert [running.ask(f"/image/{row}").status for row in range(3)] == [200] * 3


def test_thumbnails_are_kept_within_a_bound() -> None:
    kept, made = Kept(most_bytes=100), []

    def make(name: str) -> bytes:
        return kept.get(name, lambda: made.append(name) or name.encode() * 40)

    for name in "aba":
        assert make(name) == name.encode() * 40
    assert made == ["a", "b"]
    make("c")  # for which what was not used for longest goes
    make("a")
    make("b")
    assert made == ["a", "b", "c", "b"]
    assert CACHE_BYTES <= 100 << 20
