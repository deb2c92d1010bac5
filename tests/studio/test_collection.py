"""The room Collection: rows by HTTP, and the grid in a browser."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import numpy as np
import pyarrow as pa
import pytest

from openblip.table.reviews import ReviewLog, ReviewRecord
from openblip.table.table import PairRow, PairTable

from .conftest import HOSTILE, RunningStudio, serious_faults, serving, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


def rows(studio: RunningStudio, **asked: Any) -> dict[str, Any]:
    answer = studio.ask(f"/api/rows?{urlencode(asked)}")
    assert answer.status == 200, answer.error
    return dict(answer.json())


def test_rows_come_with_their_texts_and_what_becomes_of_them(studio: RunningStudio) -> None:
    table = studio.studio.need_place().table
    found = rows(studio, start=3, count=4)
    assert (found["total"], found["rows_in_table"]) == (len(table), len(table))
    assert [row["row"] for row in found["rows"]] == [3, 4, 5, 6]
    stored = table.take([3, 4, 5, 6], ["id", "captions", "synthetic", "captions_itm"]).to_pylist()
    for row, own in zip(found["rows"], stored, strict=True):
        assert row["id"] == own["id"]
        texts = [text["text"] for text in row["texts"]]
        assert texts == [*own["captions"], *own["synthetic"]]
        for text, itm in zip(row["texts"], own["captions_itm"], strict=False):
            assert text["itm"] == pytest.approx(itm)
            assert text["fate"] == ("counts" if itm > 0.5 else "below the threshold")


def test_the_last_rows_are_fewer_and_behind_them_there_are_none(studio: RunningStudio) -> None:
    count = rows(studio)["total"]
    assert len(rows(studio, start=count - 2, count=60)["rows"]) == 2
    assert rows(studio, start=count)["rows"] == []
    assert rows(studio, count=0)["rows"] == []


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("start=-1", "start must be a number from 0"),
        ("start=1.5", "start must be a whole number"),
        ("start=nan", "start must be a number"),
        ("start=one", "start must be a number"),
        ("start=100000000", "start is 100000000, but there are 60 such rows"),
        ("count=201", "count must be a number from 0 to 200"),
        ("count=", "count must be a number"),
        ("sort=beauty", "sort is 'beauty'; it must be one of row, id"),
        ("desc=yes", "desc is 'yes'; give 1 for the largest first, or 0"),
        ("threshold=2", "threshold must be a number from 0 to 1"),
        ("itm_from=x", "itm_from must be a number from -1 to 1"),
        ("fate=gone", "fate is 'gone'; it must be one of counts"),
        ("without=everything", "without must be some of duplicate_images"),
        ("without=leaks&fate=counts", "has not been checked: run `openblip data leakage"),
        ("where=nonsense", "the condition 'nonsense' cannot be used"),
        ("where=" + "x" * 3000, "where has 3,000 letters"),
        ("colour=red", "'colour' is nothing that rows can be chosen by"),
    ],
)
def test_what_cannot_be_answered_is_told_in_a_line(
    studio: RunningStudio, asked: str, told: str
) -> None:
    answer = studio.ask(f"/api/rows?{asked}")
    assert answer.status in (400, 413)
    assert told in answer.error
    assert "\n" not in answer.error


def test_one_row_is_told_in_full(studio: RunningStudio) -> None:
    table = studio.studio.need_place().table
    told = studio.ask("/api/rows/5").json()
    assert told["id"] == HOSTILE
    assert told["texts"][0]["text"] == HOSTILE
    written = [text for text in told["texts"] if text["source"] == "synthetic"]
    assert [text["captioner"] for text in written] == list(told["models"]["captioners"])
    assert all(text["logprob"] < 0 for text in written)
    assert told["meta"] == json.loads(table.take([5], ["meta"])["meta"][0].as_py())
    assert told["verdicts"] == []


@pytest.mark.parametrize("row", ["-1", "60", "x", "1.5", "99999999999999999999"])
def test_a_row_that_there_is_not_is_told(studio: RunningStudio, row: str) -> None:
    answer = studio.ask(f"/api/rows/{row}")
    assert answer.status == 400
    assert "row" in answer.error


@pytest.fixture
def own_studio(
    tmp_path: Path, pair_rows: Callable, make_studio: Callable
) -> Iterator[tuple[RunningStudio, PairTable]]:
    """A studio of a table that the test may change."""
    table = PairTable.create(tmp_path / "pairs.lance", pair_rows(30))
    with serving(make_studio(table.uri, models={})) as running:
        yield running, table


def score(table: PairTable, itm: float) -> None:
    numbers = pa.array([[itm, itm]] * len(table))
    table.add_columns(pa.table({"captions_itm": numbers, "captions_itc": numbers}), overwrite=True)


def test_a_table_that_another_process_changes_is_read_again(
    own_studio: tuple[RunningStudio, PairTable], pair_rows: Callable
) -> None:
    studio, table = own_studio
    before = rows(studio, fate="counts")
    assert before["total"] == 30
    assert before["rows"][0]["texts"][0]["itm"] is None
    score(PairTable.open(table.uri), 0.2)
    assert rows(studio, fate="counts")["total"] == 0
    assert rows(studio)["rows"][0]["texts"][0]["itm"] == pytest.approx(0.2)
    PairTable.open(table.uri).append([PairRow(id="new", image_uri="/x", captions=["late"])])
    after = rows(studio, fate="not scored")
    assert (after["total"], after["rows_in_table"]) == (1, 31)
    assert len({before["mark"], after["mark"], rows(studio, sort="best-given-itm")["mark"]}) == 2


def test_no_answer_mixes_two_versions(own_studio: tuple[RunningStudio, PairTable]) -> None:
    """While scores change again and again, an answer has those of one version alone."""
    studio, table = own_studio
    versions: dict[str, float] = {}
    seen = set()
    for turn in range(12):
        value = (turn + 1) / 100
        opened = PairTable.open(table.uri)
        score(opened, value)
        versions[PairTable.open(table.uri).fingerprint[:16]] = value
        found = rows(studio, sort="worst-given-itm", itm_to=1)
        scores = {round(text["itm"], 6) for row in found["rows"] for text in row["texts"]}
        assert scores == {versions[found["mark"]]}
        seen.add(found["mark"])
    assert len(seen) == 12


def test_verdicts_are_shown_with_the_row(own_studio: tuple[RunningStudio, PairTable]) -> None:
    studio, table = own_studio
    about = {"row": "r3", "source": "web", "reviewer": "Ann", "table_version": 1}
    log = ReviewLog.of(table.uri)
    log.append(
        [
            ReviewRecord(**about, place=0, text="picture number 3", verdict="right"),
            ReviewRecord(**about, place=1, text="as it was", verdict="wrong", edited="better"),
        ]
    )
    told = studio.ask("/api/rows/3").json()["verdicts"]
    assert [(v["verdict"], v["is_stale"], v["edited"]) for v in told] == [
        ("wrong", True, "better"),
        ("right", False, None),
    ]
    found = rows(studio, verdict="any")
    assert ([row["row"] for row in found["rows"]], found["stale_verdicts"]) == ([3], 1)


def test_duplicates_lead_to_each_other(own_studio: tuple[RunningStudio, PairTable]) -> None:
    studio, table = own_studio
    repeats = ["r1" if row in (4, 9) else None for row in range(30)]
    PairTable.open(table.uri).add_columns(pa.table({"duplicate_of": pa.array(repeats)}))
    second = studio.ask("/api/rows/4").json()
    assert (second["duplicate_of"], second["duplicate_of_row"]) == ("r1", 1)
    assert second["flags"] == ["duplicate image"]
    first = studio.ask("/api/rows/1").json()
    assert (first["repeaters"], first["num_repeaters"]) == ([4, 9], 2)
    assert rows(studio, flag="duplicate image")["total"] == 2


def test_scores_that_do_not_fit_their_texts_are_told_by_row(
    own_studio: tuple[RunningStudio, PairTable],
) -> None:
    studio, table = own_studio
    numbers = [[0.5, 0.5] if row != 7 else [0.5] for row in range(30)]
    PairTable.open(table.uri).add_columns(pa.table({"captions_itm": pa.array(numbers)}))
    for asked in ("count=30", "sort=id&desc=1&count=30"):
        answer = studio.ask(f"/api/rows?{asked}")
        assert answer.status == 400
        assert "row 7: 2 texts in captions but 1 values in captions_itm" in answer.error


def test_nothing_is_open_without_a_collection(make_studio: Callable) -> None:
    with serving(make_studio(None, models={})) as running:
        answer = running.ask("/api/rows")
        assert (answer.status, "no collection is open" in answer.error) == (409, True)


# In a browser.


def cells(page: "Page") -> "Locator":
    return page.get_by_role("listbox").get_by_role("option")


@pytest.fixture
def opened(studio: RunningStudio, page: "Page") -> "Page":
    """The grid of the shared studio."""
    page.goto(f"{studio.url}#collection")
    page.wait_for_selector(".cell img.is-there")
    return page


def test_the_grid_shows_pictures_and_hostile_texts_as_texts(opened: "Page") -> None:
    assert opened.get_by_text("60 pictures", exact=True).is_visible()
    cell = cells(opened).nth(5)
    assert HOSTILE[:40] in cell.inner_text()
    assert opened.title() == "Collection · openblip studio"
    cell.click()
    panel = opened.get_by_role("dialog")
    assert panel.get_by_role("heading", level=2).inner_text() == HOSTILE
    assert panel.locator("script, img[onerror]").count() == 0
    assert opened.title() == "Collection · openblip studio"


def test_it_is_used_with_keys_alone(opened: "Page") -> None:
    grid = opened.get_by_role("listbox", name="Pictures of the collection")
    grid.focus()
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowLeft")
    assert opened.locator('.cell[aria-selected="true"]').get_attribute("aria-posinset") == "2"
    opened.keyboard.press("Enter")
    heading = opened.get_by_role("dialog").get_by_role("heading", level=2)
    heading.wait_for()
    assert heading.evaluate("node => node === document.activeElement")
    assert "row=1" in opened.url
    opened.keyboard.press("ArrowRight")
    opened.wait_for_url(re.compile("row=2"))
    opened.keyboard.press("Escape")
    assert opened.get_by_role("dialog").count() == 0
    assert grid.evaluate("node => node === document.activeElement")
    assert "row=" not in opened.url
    opened.keyboard.press("End")
    last = opened.locator('.cell[aria-selected="true"]')
    assert last.get_attribute("aria-posinset") == "60"
    assert last.get_attribute("id") == grid.get_attribute("aria-activedescendant")
    opened.keyboard.press("Home")
    opened.keyboard.press("ArrowUp")
    assert opened.locator('.cell[aria-selected="true"]').get_attribute("aria-posinset") == "1"


def test_choices_stand_in_the_address_so_that_reload_and_back_work(opened: "Page") -> None:
    opened.get_by_role("searchbox").fill("star")
    chip = opened.get_by_role("button", name="Take away text contains: star")
    chip.wait_for()
    told = opened.locator(".chosen [role=status]")
    wait_until(lambda: " of 60 pictures" in told.inner_text())
    found = told.inner_text()
    assert "words=star" in opened.url
    opened.get_by_role("button", name="Filters").click()
    opened.get_by_label("Source of a text").select_option("human")
    wait_until(lambda: told.inner_text() not in ("", found))
    opened.reload()
    opened.get_by_role("button", name="Take away source: human").wait_for()
    opened.go_back()
    wait_until(lambda: told.inner_text() == found)
    assert opened.get_by_role("searchbox").input_value() == "star"
    chip.click()
    wait_until(lambda: told.inner_text() == "60 pictures")


def test_nothing_found_is_said(opened: "Page") -> None:
    opened.get_by_role("searchbox").fill("no text has these words")
    opened.get_by_text("No picture is like that").wait_for()
    opened.get_by_role("searchbox").fill("")
    opened.get_by_text("60 pictures", exact=True).wait_for()
    assert cells(opened).count() > 10


def test_the_first_rows_come_with_the_page_and_later_ones_are_asked_for(
    studio: RunningStudio, page: "Page"
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{studio.url}#collection")
    cells(page).first.wait_for()
    assert not [url for url in asked if "/api/rows" in url]
    # What came with the page is of its beginning: a room that is opened later asks for itself.
    page.wait_for_timeout(3200)
    page.get_by_role("link", name="Search").click()
    page.locator("input[type=search]").first.wait_for()
    page.get_by_role("link", name="Collection").click()
    cells(page).first.wait_for()
    assert [url for url in asked if "/api/rows?" in url]


def test_a_wrong_condition_is_said_and_the_page_goes_on(opened: "Page") -> None:
    opened.get_by_role("button", name="Filters").click()
    where = opened.get_by_label("Condition (SQL over the columns)")
    where.fill("nonsense")
    where.press("Enter")
    opened.get_by_text("the condition 'nonsense' cannot be used").wait_for()
    where.fill("width > 1")
    where.press("Enter")
    opened.get_by_text("60 pictures", exact=True).wait_for()


def test_a_row_in_the_address_is_opened(studio: RunningStudio, page: "Page") -> None:
    page.goto(f"{studio.url}#collection?row=7")
    told = studio.ask("/api/rows/7").json()
    panel = page.get_by_role("dialog")
    panel.get_by_role("heading", level=2).wait_for()
    assert panel.get_by_role("heading", level=2).inner_text() == told["id"]
    assert told["texts"][0]["text"] in panel.inner_text()
    link = panel.get_by_role("link", name="Similar pictures")
    assert link.get_attribute("href") == "#search?like=7"


def test_why_a_row_lacks_something_is_said_once(
    own_studio: tuple[RunningStudio, PairTable], page: "Page"
) -> None:
    studio, table = own_studio
    why = ["the image cannot be read", "the image cannot be read", "tiny: HTTP 400: content policy"]
    names = ("image_error", "capfilt_error", "synthetic_error")
    table.add_columns(
        pa.table({name: [reason] * len(table) for name, reason in zip(names, why, strict=True)})
    )
    page.goto(f"{studio.url}#collection?row=7")
    page.get_by_role("dialog").get_by_role("heading", level=2).wait_for()
    assert page.locator(".row-error").all_inner_texts() == why[1:]


def test_a_change_of_the_table_is_noticed_and_said(
    own_studio: tuple[RunningStudio, PairTable], page: "Page"
) -> None:
    studio, table = own_studio
    page.goto(f"{studio.url}#collection")
    page.get_by_text("30 pictures", exact=True).wait_for()
    opened = PairTable.open(table.uri)
    opened.append([PairRow(id="new", image=b"no picture", captions=["late"])])
    page.get_by_label("Sorted by").select_option("id")
    page.get_by_text("The table has changed; it was read again.").wait_for()
    page.get_by_text("31 pictures", exact=True).wait_for()
    page.wait_for_selector(".frame.is-broken")


def test_a_narrow_screen_shows_all(studio: RunningStudio, page: "Page") -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(f"{studio.url}#collection")
    page.wait_for_selector(".cell img.is-there")
    # Whatever is known of a text is seen, below as much of the text as there is room for.
    words = "all => all.every(one => one.scrollHeight <= one.clientHeight)"
    assert page.locator(".cell-words").evaluate_all(words)
    assert page.locator(".cell-tags").evaluate_all(words.replace("Height", "Width"))
    page.get_by_role("button", name="Filters").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    # All of them at once: a box that scrolls within the page hides that there are more.
    assert page.locator("#c-fields").evaluate("one => one.scrollHeight <= one.clientHeight")
    chooser = page.get_by_role("search")
    assert chooser.evaluate("node => node.scrollWidth <= node.clientWidth")
    page.get_by_role("button", name="Filters").click()
    cells(page).nth(1).click()
    panel = page.get_by_role("dialog")
    panel.get_by_role("heading", level=2).wait_for()
    assert panel.evaluate("node => node.matches(':modal')")
    assert panel.evaluate("node => node.scrollWidth <= node.clientWidth")
    page.keyboard.press("Escape")
    assert panel.count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(opened: "Page", scheme: Any) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.get_by_role("button", name="Filters").click()
    opened.get_by_label("Source of a text").select_option("web")
    opened.get_by_role("button", name="Take away source: web").wait_for()
    cells(opened).nth(2).click()
    opened.get_by_role("dialog").get_by_role("heading", level=2).wait_for()
    assert serious_faults(opened) == []


def many(uri: str, count: int, image: Path) -> PairTable:
    """Rows that all have the same picture."""
    made = (
        PairRow(id=f"r{n:07d}", image_uri=str(image), width=40, height=30, captions=[f"text {n}"])
        for n in range(count)
    )
    return PairTable.create(uri, made)


GAPS = """async (distance) => {
  const view = document.querySelector(".grid");
  const gaps = [];
  let before = performance.now(), isDone = false;
  const tick = (now) => {
    gaps.push(now - before);
    before = now;
    if (!isDone) requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
  const steps = 60;
  for (let step = 1; step <= steps; step += 1) {
    view.scrollTop = (distance < 0 ? view.scrollHeight : distance) * step / steps;
    await new Promise((resolve) => requestAnimationFrame(resolve));
  }
  isDone = true;
  return [Math.max(...gaps.slice(1)), document.querySelectorAll(".cell").length];
}"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable) -> str:
    folder = tmp_path_factory.mktemp("large")
    (folder / "x.jpg").write_bytes(jpeg(0, 40, 30))
    return many(str(folder / "t.lance"), 100_000, folder / "x.jpg").uri


def test_a_hundred_thousand_rows_are_a_few_elements(
    large: str, make_studio: Callable, page: "Page"
) -> None:
    with serving(make_studio(large, models={})) as studio:
        page.goto(f"{studio.url}#collection")
        page.wait_for_selector(".cell img.is-there")
        _, elements = page.evaluate(GAPS, -1)
        assert elements < 200
        page.get_by_text("text 99999").wait_for()
        # A place in the address is found again.
        page.wait_for_url(re.compile("at=99"))
        page.reload()
        page.get_by_text("text 99999").wait_for()
        assert cells(page).count() < 200


def test_pictures_that_were_scrolled_past_are_not_asked_for(
    large: str, make_studio: Callable, page: "Page"
) -> None:
    with serving(make_studio(large, models={})) as studio:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{studio.url}#collection")
        page.wait_for_selector(".cell img.is-there")
        first = len(asked)
        page.evaluate(GAPS, -1)
        page.get_by_text("text 99999").wait_for()
        page.wait_for_timeout(300)
        # 60 jumps, of which only the end is looked at.
        assert len(asked) - first < 120


def test_a_grid_that_is_taller_than_a_browser_can_draw_reaches_every_row(
    large: str, make_studio: Callable, page: "Page"
) -> None:
    with serving(make_studio(large, models={})) as studio:
        page.set_viewport_size({"width": 360, "height": 600})
        # Two columns: 50,000 lines, twice as tall as what is drawn.
        page.goto(f"{studio.url}#collection?at={quote('61234')}")
        page.get_by_text("text 61234", exact=True).wait_for()
        grid = page.get_by_role("listbox")
        height = page.evaluate("document.querySelector('.grid-sizer').offsetHeight")
        assert height <= 6_000_000
        box = grid.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 50, box["y"] + 100)
        for _ in range(12):
            page.mouse.wheel(0, 120)
            page.wait_for_timeout(30)
        # Small moves are exact, in the middle too: 1440 pixels are some eight lines of two.
        shown = page.locator(".cell:not([hidden])").first.get_attribute("aria-posinset")
        assert 61234 <= int(shown or 0) <= 61234 + 24
        grid.focus()
        page.keyboard.press("End")
        page.get_by_text("text 99999", exact=True).wait_for()
        page.keyboard.press("Home")
        page.get_by_text("text 0", exact=True).wait_for()


@pytest.mark.slow
def test_a_million_rows_are_sorted_chosen_and_scrolled(
    tmp_path: Path, jpeg: Callable, make_studio: Callable, page: "Page"
) -> None:
    (tmp_path / "x.jpg").write_bytes(jpeg(0, 40, 30))
    count = 1_000_000
    table = many(str(tmp_path / "t.lance"), count, tmp_path / "x.jpg")
    itm = np.random.default_rng(0).random(count, np.float32)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32)), pa.array(itm))
    table.add_columns(pa.table({"captions_itm": lists, "captions_itc": lists}))
    with serving(make_studio(table.uri, models={})) as studio:
        order = np.argsort(itm, kind="stable")
        found = rows(studio, sort="best-given-itm", start=500_000, count=60)
        assert [row["row"] for row in found["rows"]] == order[500_000:500_060].tolist()
        assert rows(studio, itm_from=0.25, itm_to=0.5)["total"] == int(
            ((itm.astype(np.float64) >= 0.25) & (itm.astype(np.float64) <= 0.5)).sum()
        )
        assert rows(studio, words="TEXT 99999")["total"] == 11
        assert rows(studio, where="id >= 'r0999990'")["total"] == 10
        told = studio.ask("/api/capfilt").json()["sources"][1]
        assert sum(told["histogram"][501:]) == int((itm.astype(np.float64) > 0.5).sum())
        page.goto(f"{studio.url}#collection")
        page.wait_for_selector(".cell img.is-there")
        page.get_by_role("listbox").focus()
        page.keyboard.press("End")
        page.get_by_text("text 999999", exact=True).wait_for()
        page.keyboard.press("PageUp")
        assert cells(page).count() < 200
