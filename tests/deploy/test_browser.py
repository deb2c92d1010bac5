"""The browser page captions a picture as Python does. It needs what npm fetches; see the page."""

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from openblip.inference.blip import Blip
from openblip.inference.export import Exported

from ..studio.conftest import browser, page

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser", "page"]

PAGE = Path(__file__).resolve().parents[2] / "examples" / "browser"
MODULES = Path(os.environ.get("OPENBLIP_NODE_MODULES", PAGE / "node_modules"))
needs_modules = pytest.mark.skipif(
    not (MODULES / "onnxruntime-web").is_dir(),
    reason="no onnxruntime-web: run npm install onnxruntime-web @huggingface/tokenizers in "
    "examples/browser, or set OPENBLIP_NODE_MODULES",
)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a static folder: the page, what npm fetches, and a model."""
    folder = tmp_path_factory.mktemp("static")
    for name in ("index.html", "blip.js"):
        shutil.copy(PAGE / name, folder)
    (folder / "node_modules").symlink_to(MODULES)
    (folder / "model").symlink_to(exported.folder)
    handler = functools.partial(_Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@needs_modules
def test_a_picture_is_captioned_and_matched_as_in_python(
    address: str, blip: Blip, pictures: list[Image.Image], page: "Page", tmp_path: Path
) -> None:
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector("#picture:enabled")
    for number, picture in enumerate([*pictures[:3], pictures[3].resize((301, 77))]):
        photo = tmp_path / f"{number}.png"
        picture.save(photo)
        page.set_input_files("#picture", photo)
        page.wait_for_function("document.getElementById('status').textContent === ''")
        assert page.inner_text("#caption") == blip.caption(str(photo))[0][0].text
        if number == 0:
            page.fill("#text", "a red square")
            page.press("#text", "Enter")
        # Of another picture the same text is judged again.
        page.wait_for_function("document.getElementById('match').textContent !== ''")
        (expected,) = blip.match(str(photo), ["a red square"])
        said = float(page.inner_text("#match").split(" %")[0])
        assert said == pytest.approx(100 * expected.itm, abs=0.06)


@needs_modules
def test_a_model_that_is_not_there_is_said(address: str, page: "Page") -> None:
    page.goto(f"{address}/?model=nowhere")
    page.wait_for_function("document.getElementById('status').textContent.includes('404')")
    assert "nowhere/openblip.json" in page.inner_text("#status")
