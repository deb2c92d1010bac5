"""The studio as a whole: what the page is told, its files, its pictures."""

from typing import TYPE_CHECKING

from .conftest import RunningStudio

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_the_page_is_told_what_there_is(studio: RunningStudio) -> None:
    about = studio.ask("/api/about").json()
    assert about["rooms"][0] == {"name": "search", "title": "Search"}
    assert about["table"]["rows"] == len(studio.studio.need_place().table)
    assert about["table"]["indexed"]


def test_it_opens_in_a_browser(studio: RunningStudio, page: "Page") -> None:
    page.goto(studio.url)
    page.wait_for_selector(".mosaic img")
    assert page.get_by_role("navigation", name="Rooms").get_by_role("link").count() >= 1
