"""The studio as a whole: what the page is told, its own files, and that it opens."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import openblip
from openblip.index.search import THRESHOLD
from openblip.runtime.errors import DataError
from openblip.studio import app
from openblip.studio.app import ROOMS, Studio

from .conftest import RunningStudio, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

STATIC = Path(app.__file__).parent / "static"
# What the first page loads before it shows anything: with what it imports.
FIRST = ("/", "/static/style.css", "/static/page.js", "/static/search.js", "/static/pictures.js")
GZIP = {"Accept-Encoding": "gzip"}


def test_the_page_is_told_what_there_is(studio: RunningStudio) -> None:
    about = studio.ask("/api/about").json()
    assert about["version"] == openblip.__version__
    assert about["rooms"][:2] == [
        {"name": "search", "title": "Search"},
        {"name": "try", "title": "Try"},
    ]
    assert about["table"]["rows"] == len(studio.studio.need_place().table)
    assert about["table"]["indexed"]
    assert about["threshold"] == THRESHOLD
    assert {role for model in about["models"] for role in model["roles"]} == {
        "captioner",
        "filter",
        "vqa",
    }


def told_in(page: bytes) -> Any:
    found = re.search(r'<script type="application/json" id="about">(.*?)</script>', page.decode())
    assert found
    return json.loads(found[1])


def test_the_page_comes_with_it_and_is_not_kept(studio: RunningStudio) -> None:
    page = studio.ask("/")
    told = told_in(page.body)
    answers = told.pop("answers")
    assert told == studio.ask("/api/about").json()
    # What its collection asks at first, so that it need not wait for it.
    assert set(answers) == {"/api/rows/about", "/api/rows?start=0&count=60"}
    assert all(studio.ask(address).json() == answer for address, answer in answers.items())
    assert page.headers["cache-control"] == "no-store"
    assert "etag" not in page.headers


def test_no_name_ends_the_element_in_which_it_is_told(
    make_studio: Callable[..., Studio], monkeypatch: pytest.MonkeyPatch
) -> None:
    studio, name = make_studio(None), "</script><script>alert(1)</script><!--"
    monkeypatch.setattr(studio, "runs", name)
    with serving(studio) as running:
        page = running.ask("/").body
    assert told_in(page)["runs"] == name
    assert page.count(b"<script") == 2


def test_the_page_comes_where_there_is_nothing_to_be_told(
    make_studio: Callable[..., Studio], monkeypatch: pytest.MonkeyPatch, page: "Page"
) -> None:
    studio = make_studio(None)

    def refresh() -> None:
        raise DataError("the table is gone")

    monkeypatch.setattr(studio, "refresh", refresh)
    with serving(studio) as running:
        assert told_in(running.ask("/").body) is None
        page.goto(running.url)
        page.get_by_text("the table is gone").wait_for()


def test_every_room_has_its_module() -> None:
    for room in ROOMS:
        assert "export async function show(main" in (STATIC / f"{room.name}.js").read_text("utf-8")


def test_the_first_page_is_small(studio: RunningStudio) -> None:
    sent = 0
    for path in FIRST:
        answer = studio.ask(path, headers=GZIP)
        assert answer.headers["content-encoding"] == "gzip"
        assert gzip.decompress(answer.body) == studio.ask(path).body
        sent += len(answer.body)
    assert sent < 300_000


@pytest.mark.parametrize("path", FIRST[1:])
def test_its_files_are_sent_once(studio: RunningStudio, path: str) -> None:
    tag = studio.ask(path, headers=GZIP).headers["etag"]
    again = studio.ask(path, headers=GZIP | {"If-None-Match": tag})
    assert (again.status, again.body) == (304, b"")
    # Packed and not, they are not the same bytes.
    assert studio.ask(path).headers["etag"] != tag


def test_the_page_needs_nobody_else_and_makes_no_markup_of_texts() -> None:
    for file in STATIC.iterdir():
        text = file.read_text("utf-8")
        addresses = set(re.findall(r"https?://[^\s\"'`)<]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        # What the content security policy would refuse anyway.
        assert not re.search(r"<style|\sstyle=|\son\w+=\"", text), file.name


def test_the_tokens_are_those_of_the_report_pages() -> None:
    from openblip.runtime import page as report

    named = set(re.findall(r"(--[a-z]+):", report._STYLE))
    assert named <= set(re.findall(r"(--[a-z]+):", (STATIC / "style.css").read_text("utf-8")))


def test_it_opens_without_a_collection(make_studio: Callable[..., Studio], page: "Page") -> None:
    with serving(make_studio(None)) as running:
        page.goto(running.url)
        page.get_by_role("heading", name="No collection is open").wait_for()
        assert page.get_by_text("openblip studio photos/").is_visible()


def test_rooms_are_reached_by_keyboard_and_by_the_way_back(
    studio: RunningStudio, page: "Page"
) -> None:
    page.goto(studio.url)
    page.wait_for_selector(".mosaic .picture")
    rooms = page.get_by_role("navigation", name="Rooms")
    rooms.get_by_role("link", name="Try", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_role("tab", name="Caption").wait_for()
    assert page.title().startswith("Try")
    current = rooms.locator("[aria-current=page]")
    assert current.all_inner_texts() == ["Try"]
    page.go_back()
    page.get_by_role("searchbox").wait_for()
    assert current.all_inner_texts() == ["Search"]


def test_the_theme_is_kept(studio: RunningStudio, page: "Page") -> None:
    def paper() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    page.emulate_media(color_scheme="light")
    page.goto(studio.url)
    light = paper()
    page.emulate_media(color_scheme="dark")
    dark = paper()
    assert light != dark
    button = page.get_by_role("button", name="Theme:")
    button.click()
    assert (str(button.get_attribute("title")), paper()) == ("Theme: light", light)
    page.reload()
    page.wait_for_selector(".mosaic .picture")
    assert paper() == light


def test_what_moves_is_still_for_who_asks(studio: RunningStudio, page: "Page") -> None:
    page.emulate_media(reduced_motion="reduce")
    page.goto(studio.url)
    button = page.get_by_role("button", name="Search", exact=True)
    assert button.evaluate("node => getComputedStyle(node).transitionDuration") == "0s"
