"""The page of a review: twenty keys, undo, a reload, two tabs, and a server that is killed."""

import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from openblip.studio.app import Studio
from openblip.studio.server import listen
from openblip.table.reviews import ReviewLog, ReviewRecord

from .conftest import RunningStudio, serious_faults, serving, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

TEXT, PICTURE = ".statement .text", ".stage img"


def begin(page: "Page", url: str, name: str = "Ann") -> None:
    """Open the review as somebody who has not been here, with the keyboard alone."""
    page.goto(f"{url}#review")
    page.wait_for_selector("#reviewer")
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    page.wait_for_selector(PICTURE)


def key_of(page: "Page") -> str:
    """What is shown, told apart from all else: text and picture."""
    return f"{page.text_content(TEXT)} {page.get_attribute(PICTURE, 'src')}"


def place_of(page: "Page", selector: str) -> float:
    """How far down in the page something stands, in pixels."""
    found = page.eval_on_selector(selector, "node => node.getBoundingClientRect().y + scrollY")
    return float(found)


def press(page: "Page", key: str) -> None:
    """A key, when there is something that it can be about."""
    page.wait_for_selector(PICTURE)
    page.keyboard.press(key)


def standing(uri: str) -> list[ReviewRecord]:
    return ReviewLog.of(uri).standing()


def test_twenty_keys_are_twenty_verdicts_in_order(
    page: "Page", served: RunningStudio, scored: str
) -> None:
    begin(page, served.url)
    keys, seen = "rwpurrwwpprruuwrprwr", []
    for key in keys:
        page.wait_for_selector(PICTURE)
        seen.append(page.text_content(TEXT))
        page.keyboard.press(key)
    page.get_by_text("All recorded.").wait_for()
    records = ReviewLog.of(scored).records()
    assert [record.text for record in records] == seen
    verdicts = {"r": "right", "w": "wrong", "p": "partly", "u": "unsure"}
    assert [record.verdict for record in records] == [verdicts[key] for key in keys]
    assert {record.reviewer for record in records} == {"Ann"}
    page.get_by_text("20 of").first.wait_for()


def test_no_text_comes_twice_when_more_are_asked_for(
    page: "Page", served: RunningStudio, scored: str
) -> None:
    begin(page, served.url, "Bea")
    seen = []
    for _ in range(40):
        page.wait_for_selector(PICTURE)
        seen.append(key_of(page))
        page.keyboard.press("r")
    page.get_by_text("All recorded.").wait_for()
    assert len(set(seen)) == 40
    assert len([record for record in standing(scored) if record.reviewer == "Bea"]) == 40


def test_what_is_reviewed_is_chosen_on_a_phone(
    page: "Page", served: RunningStudio, scored: str
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    begin(page, served.url)
    page.get_by_text("What is reviewed", exact=True).click()
    page.get_by_label("Which come more often").wait_for()
    wide, there = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= there


def test_what_comes_after_the_first_picture_moves_nothing_below_it(
    page: "Page", served: RunningStudio
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    # The findings wait until the first picture and the places of all else are there.
    held: list[Route] = []
    page.route("**/api/review/state*", lambda route: held.append(route))
    begin(page, served.url)
    assert page.text_content(".progress") == ""
    before = place_of(page, ".picker")
    for route in held:
        route.continue_()
    page.unroute("**/api/review/state*")
    page.wait_for_selector(".progress > *")
    page.wait_for_selector(".verdict-of-all:not(:empty)")
    assert abs(place_of(page, ".picker") - before) < 2


def test_a_review_that_cannot_be_is_told_once_and_not_asked_for_again(
    page: "Page", served: RunningStudio
) -> None:
    refused: list[str] = []
    page.on("response", lambda answer: answer.status == 400 and refused.append(answer.url))
    page.goto(f'{served.url}#review?name=Ann&settings={{"datasets":["nowhere"]}}')
    page.get_by_text("nowhere").first.wait_for()
    page.wait_for_timeout(3500)
    assert len(refused) == 1
    page.get_by_text("What is reviewed", exact=True).click()
    page.get_by_label("Data sets").fill("")
    page.get_by_role("button", name="Review these").click()
    page.wait_for_selector(PICTURE)


@pytest.mark.parametrize("room", ["review", "capfilt"])
def test_a_folder_is_told_how_it_gets_scores(
    page: "Page",
    make_studio: Callable[..., Studio],
    tmp_path: Path,
    jpeg: Callable[..., bytes],
    room: str,
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg(1))
    with serving(make_studio(str(tmp_path / "photos"), models={})) as running:
        page.goto(f"{running.url}#{room}")
        page.get_by_role("heading", name="A folder has no scores").wait_for()
        assert page.get_by_text(f"openblip data import {tmp_path}/photos photos.lance").is_visible()


def test_undo_without_limit_brings_every_text_back(
    page: "Page", served: RunningStudio, scored: str
) -> None:
    begin(page, served.url)
    seen = []
    for key in "rwrw":
        seen.append(key_of(page))
        press(page, key)
    for expected in reversed(seen):
        page.keyboard.press("z")
        assert key_of(page) == expected
    page.keyboard.press("z")
    page.get_by_text("There is nothing to undo.").wait_for()
    wait_until(lambda: standing(scored) == [])
    # What was taken back is judged again, and what came after it comes again.
    for place, expected in enumerate(seen):
        assert key_of(page) == expected
        press(page, "u")
        wait_until(lambda place=place: len(standing(scored)) == place + 1)  # type: ignore[misc]


def test_a_reload_goes_on_where_one_was_and_can_still_take_back(
    page: "Page", served: RunningStudio, scored: str
) -> None:
    begin(page, served.url)
    last = ""
    for key in "rrw":
        last = key_of(page)
        press(page, key)
    following = key_of(page)
    page.get_by_text("All recorded.").wait_for()
    page.reload()
    page.wait_for_selector(PICTURE)
    assert key_of(page) == following
    page.keyboard.press("Control+z")
    page.get_by_text("Taken back: wrong.").wait_for()
    assert key_of(page) == last
    wait_until(lambda: [record.verdict for record in standing(scored)] == ["right", "right"])


def test_a_text_is_corrected_in_its_place(page: "Page", served: RunningStudio, scored: str) -> None:
    begin(page, served.url)
    shown = page.text_content(TEXT)
    page.keyboard.press("e")
    assert page.input_value("#correction") == shown
    page.keyboard.type("not this")
    page.keyboard.press("Escape")
    assert page.locator("#correction").count() == 0
    assert page.locator(".corrected").count() == 0
    page.keyboard.press("e")
    page.keyboard.type("a red square")
    page.keyboard.press("Enter")
    assert page.text_content(".corrected") == "a red square"
    assert page.text_content(TEXT) == shown
    page.keyboard.press("p")
    wait_until(lambda: len(standing(scored)) == 1)
    (record,) = standing(scored)
    assert (record.text, record.edited, record.verdict) == (shown, "a red square", "partly")
    # Taken back, the correction is there still.
    page.keyboard.press("z")
    assert page.text_content(".corrected") == "a red square"


def test_two_tabs_of_a_reviewer_show_different_texts_and_say_so(
    page: "Page", served: RunningStudio, scored: str
) -> None:
    begin(page, served.url)
    other = page.context.new_page()
    other.goto(f"{served.url}#review")
    other.wait_for_selector(PICTURE)
    other.get_by_text("You review in another tab too").wait_for()
    for _ in range(6):
        for tab in (page, other):
            press(tab, "r")
    for tab in (page, other):
        tab.get_by_text("All recorded.").wait_for()
    records = ReviewLog.of(scored).records()
    assert len({(record.row, record.source, record.place) for record in records}) == 12
    other.close()


def test_keys_are_changed_and_remembered(page: "Page", served: RunningStudio, scored: str) -> None:
    begin(page, served.url)
    page.get_by_role("button", name="Keys").click()
    page.locator("#key-right").focus()
    page.keyboard.press("w")
    page.get_by_text("W is the key of “Wrong”.").wait_for()
    page.keyboard.press("1")
    assert page.input_value("#key-right") == "1"
    page.get_by_role("button", name="Done").click()
    page.reload()
    page.wait_for_selector(PICTURE)
    page.keyboard.press("r")
    page.keyboard.press("1")
    wait_until(lambda: [record.verdict for record in standing(scored)] == ["right"])


def test_all_of_it_goes_by_keyboard_and_nothing_is_hidden_from_a_screen_reader(
    page: "Page", served: RunningStudio, scored: str
) -> None:
    begin(page, served.url)
    names = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(() => { const it = document.activeElement; return it.getAttribute('aria-label')"
            " || it.labels?.[0]?.textContent || it.textContent; })()"
        )
        names.add(name.strip())
    assert {"RightR", "WrongW", "PartlyP", "UnsureU", "Undo Z", "Correct the text E"} <= names
    assert any(name.startswith("Precision and recall") for name in names)
    page.locator("[data-verdict=wrong]").focus()
    page.keyboard.press("Enter")
    wait_until(lambda: [record.verdict for record in standing(scored)] == ["wrong"])
    assert page.get_attribute(".statement", "aria-live") == "polite"
    page.get_by_role("button", name="Keys").click()
    assert serious_faults(page) == []


def test_on_a_phone_there_are_buttons_and_a_swipe(
    browser: "Browser", served: RunningStudio, scored: str
) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(f"{served.url}#review")
    page.fill("#reviewer", "Bo")
    page.get_by_role("button", name="Begin").tap()
    page.wait_for_selector(PICTURE)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    box = page.locator("[data-verdict=right]").bounding_box()
    assert box is not None
    assert box["height"] >= 44
    assert box["y"] + box["height"] <= 740
    page.locator("[data-verdict=right]").tap()
    page.get_by_role("button", name="Undo").tap()
    page.wait_for_selector(PICTURE)
    page.evaluate(
        """() => { const stage = document.querySelector('.stage');
        const at = (kind, x) => stage.dispatchEvent(new PointerEvent(kind,
          { pointerType: 'touch', clientX: x, clientY: 200, bubbles: true }));
        at('pointerdown', 250); at('pointermove', 100); at('pointerup', 100); }"""
    )
    wait_until(lambda: [record.verdict for record in standing(scored)] == ["wrong"])
    context.close()


def test_a_sample_that_is_finished_says_so_and_goes_on(
    page: "Page", served: RunningStudio, scored: str
) -> None:
    page.goto(f'{served.url}#review?settings={{"size":3}}')
    page.fill("#reviewer", "Ann")
    page.keyboard.press("Enter")
    for key in "rrr":
        press(page, key)
    page.get_by_text("All of these texts are judged by you").wait_for()
    page.get_by_role("button", name="Draw 100 more").click()
    page.wait_for_selector(PICTURE)
    page.get_by_text("3 of").first.wait_for()


class KilledStudio:
    """A studio in a process of its own, which can be killed and started again."""

    def __init__(self, uri: str) -> None:
        with listen("127.0.0.1", 0) as sock:
            self.port = sock.getsockname()[1]
        self.url, self._uri = f"http://127.0.0.1:{self.port}/", uri
        self.start()

    def start(self) -> None:
        words = ["studio", self._uri, "--port", str(self.port), "--no-open"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "openblip", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers, 120)

    def _answers(self) -> bool:
        assert self._process.poll() is None
        try:
            with urllib.request.urlopen(f"{self.url}api/about", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def killed(scored: str) -> Iterator[KilledStudio]:
    studio = KilledStudio(scored)
    yield studio
    studio.kill()


def test_a_server_that_is_killed_loses_no_verdict_and_records_none_twice(
    page: "Page", killed: KilledStudio, scored: str
) -> None:
    begin(page, killed.url)
    seen = []

    def judge(keys: str) -> None:
        for key in keys:
            page.wait_for_selector(PICTURE)
            seen.append(page.text_content(TEXT))
            page.keyboard.press(key)

    judge("rrrrr")
    killed.kill()
    acknowledged = len(standing(scored))
    judge("wwwww")
    page.get_by_text("not sent yet: the studio does not answer").wait_for()
    assert len(standing(scored)) == acknowledged
    killed.start()
    page.get_by_text("All recorded.").wait_for(timeout=60_000)
    judge("pp")
    page.get_by_text("All recorded.").wait_for()
    wait_until(lambda: len(standing(scored)) == 12)
    records = ReviewLog.of(scored).records()
    assert [record.text for record in records] == seen
    assert [str(record.verdict)[0] for record in records] == list("rrrrrwwwwwpp")


def test_what_was_not_sent_survives_the_page_too(
    page: "Page", served: RunningStudio, scored: str
) -> None:
    begin(page, served.url)
    following = ""
    page.context.set_offline(True)
    for key in "rw":
        press(page, key)
        following = key_of(page)
    page.get_by_text("2 verdicts not sent yet").wait_for()
    assert standing(scored) == []
    page.context.set_offline(False)
    page.reload()
    page.wait_for_selector(PICTURE)
    wait_until(lambda: [r.verdict for r in standing(scored)] == ["right", "wrong"], 60)
    assert key_of(page) == following


@pytest.mark.slow
def test_in_a_million_rows_every_picture_is_there_before_the_key() -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "studio.py"
    words = ["--only", "review", "--rows", "1000000", "--keys", "40"]
    done = subprocess.run(
        [sys.executable, str(script), *words], text=True, capture_output=True, check=True
    )
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| 40 |")]
    ready = int(row.split("|")[2])
    assert ready == 40
