"""A studio that runs for all tests of the page, and a browser that looks at it."""

import http.client
import json
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.capfilt.run import run_capfilt
from openblip.index.build import build_index
from openblip.inference.blip import Blip
from openblip.model import TextConfig, VisionConfig
from openblip.model.vqa import Vqa, VqaConfig
from openblip.studio.app import Studio
from openblip.studio.guard import Access
from openblip.studio.models import Models
from openblip.studio.server import Server, address_of, listen
from openblip.table.table import PairRow, PairTable
from openblip.world import WorldConfig, build_world

from ..capfilt.jobs import job_settings
from ..inference.conftest import draw_weights, make_med

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
"""A caption, and an id, of the table."""
WORLD = WorldConfig(seed=3, web_rows=40, human_rows=8, val_rows=6, test_rows=6)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is of that size; a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Answered:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json()["error"])


@dataclass(frozen=True)
class RunningStudio:
    """A studio with its address."""

    studio: Studio
    app: object
    url: str
    port: int

    def ask(
        self,
        path: str,
        values: Mapping[str, Any] | None = None,
        *,
        method: str | None = None,
        image: bytes | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Answered:
        """A request as the page would make it: GET, or POST where there are values.

        Args:
            path: with the query.
            values: sent as JSON.
            method: another one.
            image: sent along, in a form.
            body: sent instead.
            headers: put in the place of the page's; None leaves one out.
        """
        sent: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}"}
        if values is not None or body is not None:
            sent |= {"X-Openblip": "1", "Content-Type": "application/json"}
            body = json.dumps(values).encode() if body is None else body
        if image is not None:
            sent["Content-Type"] = "multipart/form-data; boundary=xxx"
            parts = [
                b'Content-Disposition: form-data; name="json"\r\n\r\n' + (body or b"{}"),
                b'Content-Disposition: form-data; name="image"; filename="image"\r\n\r\n' + image,
            ]
            body = b"".join(b"--xxx\r\n" + part + b"\r\n" for part in parts) + b"--xxx--\r\n"
        sent |= headers or {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            verb = method or ("GET" if body is None else "POST")
            connection.putrequest(verb, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None and "Transfer-Encoding" not in sent:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answered(
                answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
            )
        finally:
            connection.close()


@contextmanager
def serving(studio: Studio, access: Access | None = None) -> Iterator[RunningStudio]:
    """A studio served by a thread, at any port."""
    access = access or Access()
    ready = threading.Event()
    with listen(access.host, 0) as sock:
        server = Server(studio, access, ready.set)
        thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
        thread.start()
        assert ready.wait(60), "the studio does not start"
        url = address_of(sock, access)
        try:
            yield RunningStudio(studio, server.config.app, url, urlsplit(url).port or 0)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the studio does not end"


@pytest.fixture(scope="session")
def world_rows() -> list[PairRow]:
    """Drawn pictures with texts; one whose texts and id are hostile."""
    rows = list(build_world(WORLD))
    return [*rows[:5], replace(rows[5], id=HOSTILE, captions=[HOSTILE]), *rows[6:]]


@pytest.fixture(scope="session")
def checkpoints(
    world_rows: list[PairRow], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Folders of small models: `captioner`, `filter` and `vqa`."""
    texts = [text for row in world_rows for text in row.captions]
    tokenizer = TextTokenizer.train([*texts, "a picture of", "yes no what is there?"], 200)
    folder = tmp_path_factory.mktemp("checkpoints")
    captioner = make_med(tokenizer, heads=("lm",))
    with torch.no_grad():  # captions have words in them
        captioner.text.lm_head.bias[tokenizer.special.sep] = -9.0
    Blip(captioner, tokenizer, "captioner", 32, 40).save(folder / "captioner")
    matcher = make_med(tokenizer, heads=("itc", "itm"), seed=1)
    Blip(matcher, tokenizer, "filter", 32, 40).save(folder / "filter")
    vision = VisionConfig(image_size=32, patch_size=16, width=24, depth=2, heads=2)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, width=32, depth=2, heads=4, ffn_width=48, max_positions=40
    )
    vqa = Vqa(VqaConfig(vision=vision, text=text))
    draw_weights(vqa, seed=3)
    Blip(vqa, tokenizer, "vqa", 32, 35).save(folder / "vqa")
    return {kind: str(folder / kind) for kind in ("captioner", "filter", "vqa")}


@pytest.fixture(scope="session")
def world_table(
    world_rows: list[PairRow],
    checkpoints: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Address of a table with the decisions of CapFilt and an index; nobody changes it."""
    uri = str(tmp_path_factory.mktemp("studio") / "pairs.lance")
    PairTable.create(uri, world_rows)
    run_capfilt(uri, job_settings(checkpoints), processes=1)
    build_index(uri, checkpoints["filter"], device="cpu", show_progress=False)
    return uri


@pytest.fixture(scope="session")
def make_studio(checkpoints: dict[str, str]) -> Callable[..., Studio]:
    """Makes a studio with the small models, for a place and more."""

    def make(place: Path | str | None, **more: Any) -> Studio:
        models = Models(more.pop("models", checkpoints), "cpu")
        return Studio(None if place is None else str(place), models=models, **more)

    return make


@pytest.fixture(scope="session")
def studio(world_table: str, make_studio: Callable[..., Studio]) -> Iterator[RunningStudio]:
    """The studio that all tests of rooms share."""
    with serving(make_studio(world_table)) as running:
        yield running


# For a file, not for all: while it drives a browser, nothing in this thread can use asyncio.
@pytest.fixture
def scored(world_table: str, tmp_path: Path) -> str:
    """A table of its own that CapFilt has scored, without a verdict."""
    uri = tmp_path / "pairs.lance"
    shutil.copytree(world_table, uri)
    return str(uri)


@pytest.fixture
def served(scored: str, make_studio: Callable[..., Studio]) -> Iterator[RunningStudio]:
    with serving(make_studio(scored)) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """An installed Chromium."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("no chromium is installed (Debian: apt install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            # As root, in a container, Chromium's own sandbox does not start.
            executable_path=executable,
            args=["--no-sandbox", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser") -> "Iterator[Page]":
    """A page of a new visitor; whatever it complains of fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(20_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda told: complaints.append(told.text) if told.type == "error" else None)
    yield page
    context.close()
    # What was refused on purpose the page says to its visitor; the browser notes it too.
    assert [told for told in complaints if "Failed to load resource" not in told] == []


def serious_faults(page: "Page") -> list[str]:
    """What axe finds that keeps people out: each fault with the elements that have it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # Colours on their way to others are none that anybody reads by.
    running = "one instanceof CSSTransition && one.playState === 'running'"
    wait_until(lambda: not page.evaluate(f"document.getAnimations().some((one) => {running})"))
    found = axe.run(page).response["violations"]
    return [
        f"{fault['id']}: {node['target']} {node['failureSummary']}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Returns when the condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not become true"
        time.sleep(0.02)
