"""The room Search, asked over HTTP and used in a browser."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from openblip.index.build import build_index
from openblip.index.query import Query
from openblip.index.search import Searcher
from openblip.studio.app import Studio
from openblip.table.table import PairTable

from ..inference.published_clip import save_clip
from .conftest import HOSTILE, RunningStudio, serious_faults, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.filterwarnings("ignore::openblip.runtime.errors.UnknownWords")
RED, STAR = "a red circle", "a star"
HIT = ".found > li .picture"


def search(studio: RunningStudio, image: bytes | None = None, **values: object) -> Any:
    answer = studio.ask("/api/search", values, image=image)
    assert answer.status == 200, answer.body
    return answer.json()


def test_it_finds_what_the_command_finds(
    studio: RunningStudio, world_table: str, checkpoints: dict[str, str]
) -> None:
    found = search(studio, texts=[RED, STAR], weights=[1, 0.5], without=["a square"], k=7)
    searcher = Searcher.open(world_table, checkpoints["filter"], device="cpu", cache_bytes=0)
    query = Query([RED, STAR], without=["a square"], weights=[1, 0.5])
    hits = searcher.find(query, 7).hits
    assert [hit["row"] for hit in found["hits"]] == [hit.row for hit in hits]
    assert [hit["itm"] for hit in found["hits"]] == pytest.approx([h.itm for h in hits], abs=1e-3)
    assert found["hits"][0].keys() >= {"id", "itc", "captions", "width", "height"}
    assert found["matched"] >= 7
    assert found["best"] == pytest.approx(max(hit.itm for hit in hits), abs=1e-3)


def test_conditions_and_the_threshold(studio: RunningStudio) -> None:
    found = search(studio, texts=[RED], where="split = 'test'", threshold=1, k=100)
    assert len(found["hits"]) == 6
    assert found["nothing"]
    nothing = search(studio, texts=[RED], where="width > 100000")
    assert (nothing["hits"], nothing["nothing"], nothing["best"]) == ([], True, None)


def test_a_picture_finds_itself_and_a_row_its_like(studio: RunningStudio) -> None:
    encoded = studio.ask("/image/3").body
    assert search(studio, image=encoded, k=1)["hits"][0]["row"] == 3
    alike = search(studio, like=3, k=5)["hits"]
    assert 3 not in [hit["row"] for hit in alike]
    assert alike[0]["itm"] is None
    both = search(studio, image=encoded, texts=[RED], k=5)["hits"]
    assert both[0]["itm"] is not None


def test_words_that_the_model_lacks_are_told(studio: RunningStudio) -> None:
    assert "犬" in search(studio, texts=["a 犬"], k=1)["warnings"][0]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "nothing to look for"),
        ({"texts": [" "]}, "nothing to look for"),
        ({"texts": "a dog"}, "list of texts"),
        ({"texts": ["a"], "weights": [1, 2]}, "one for each text"),
        ({"texts": ["a"], "weights": ["x"]}, "weight must be a number"),
        ({"texts": ["a"], "weights": [0]}, "above 0"),
        ({"texts": ["a"], "where": "colour = 'red'"}, "colour"),
        ({"texts": ["a"], "where": "'; drop table"}, "condition|where|cannot"),
        ({"texts": ["a"], "k": 0}, "k must be"),
        ({"texts": ["a"], "k": 10_000}, "k must be"),
        ({"texts": ["a"], "threshold": 2}, "threshold must be"),
        ({"like": 10_000}, "like must be"),
        ({"like": "r0"}, "like must be"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_said(
    studio: RunningStudio, values: dict[str, Any], told: str
) -> None:
    answer = studio.ask("/api/search", values)
    assert answer.status == 400
    assert any(part in answer.error for part in told.split("|")), answer.error


def test_a_clip_searches_by_contrast_alone(
    make_studio: Callable[..., Studio], world_rows: list[Any], tmp_path: Path
) -> None:
    table = PairTable.create(tmp_path / "pairs.lance", world_rows[:12])
    build_index(table.uri, str(save_clip(tmp_path / "clip")), device="cpu", show_progress=False)
    with serving(make_studio(table.uri, models={})) as running:
        found = search(running, texts=["a dog"], k=3)
        assert [hit["itm"] for hit in found["hits"]] == [None] * 3
        assert not found["nothing"]
        answer = running.ask("/api/try/match", {"row": 0, "texts": ["a dog"]})
        assert "--filter" in answer.error


def test_a_model_that_has_moved_is_the_filter_that_is_given(
    make_studio: Callable[..., Studio],
    world_rows: list[Any],
    checkpoints: dict[str, str],
    tmp_path: Path,
) -> None:
    table = PairTable.create(tmp_path / "pairs.lance", world_rows[:12])
    moving = tmp_path / "model"
    moving.symlink_to(checkpoints["filter"])
    build_index(table.uri, str(moving), device="cpu", show_progress=False)
    moving.unlink()
    with serving(make_studio(table.uri)) as running:
        assert len(search(running, texts=[RED], k=3)["hits"]) == 3
    with serving(make_studio(table.uri, models={})) as running:
        answer = running.ask("/api/search", {"texts": [RED]})
        assert answer.status == 400
        assert str(moving) in answer.error


def test_without_a_collection_that_is_said(make_studio: Callable[..., Studio]) -> None:
    with serving(make_studio(None)) as running:
        for answer in (running.ask("/api/search", {"texts": [RED]}), running.ask("/image/0")):
            assert answer.status == 409
            assert "openblip studio photos/" in answer.error


def test_a_text_is_searched_and_the_address_keeps_it(studio: RunningStudio, page: "Page") -> None:
    page.goto(studio.url)
    # What there is, before anything is asked.
    page.wait_for_selector(".mosaic .picture")
    box = page.get_by_role("searchbox", name="What shall the picture show?")
    box.fill(RED)
    box.press("Enter")
    page.wait_for_selector(HIT)
    first = page.locator(HIT).first.get_attribute("aria-label")
    assert "match probability" in str(first)
    assert "text=a+red+circle" in page.url
    page.reload()
    page.wait_for_selector(HIT)
    assert page.locator(HIT).first.get_attribute("aria-label") == first
    assert box.input_value() == RED


def test_and_not_and_weights(studio: RunningStudio, page: "Page") -> None:
    page.goto(f"{studio.url}#search?text=a+red+circle")
    page.wait_for_selector(HIT)
    page.get_by_role("button", name="+ and").click()
    page.keyboard.type(STAR)
    page.get_by_label("How much it counts (weight)").last.fill("0.5")
    page.get_by_role("button", name="but not").click()
    page.keyboard.type("a square")
    with page.expect_request("**/api/search") as asked:
        page.keyboard.press("Enter")
    sent = asked.value.post_data_json
    assert sent["texts"] == [RED, STAR]
    assert sent["weights"] == [1, 0.5]
    assert sent["without"] == ["a square"]
    with page.expect_request("**/api/search") as asked:
        page.get_by_role("button", name="Remove this exclusion").click()
    assert asked.value.post_data_json["without"] == []


def test_the_slider_dims_what_is_below(studio: RunningStudio, page: "Page") -> None:
    found = search(studio, texts=[RED], k=48)
    known = [hit["itm"] for hit in found["hits"] if hit["itm"] is not None]
    page.goto(f"{studio.url}#search?text=a+red+circle")
    page.wait_for_selector(HIT)
    slider = page.get_by_label("match probability (ITM) at least")
    for level in (0.0, 0.3, 0.7, 1.0):
        slider.fill(f"{level:g}")
        assert page.locator(".found > li.below").count() == sum(itm < level for itm in known)
    assert page.get_by_role("heading", name="Nothing found above 1.00; nearest:").is_visible()
    assert "below the threshold" in str(page.locator(HIT).first.get_attribute("aria-label"))


def test_a_condition_that_cannot_be_read_is_one_line(studio: RunningStudio, page: "Page") -> None:
    page.goto(f"{studio.url}#search?text=a+red+circle&where=colour+%3D+1")
    line = page.locator("#line.error")
    line.wait_for()
    assert "colour" in line.inner_text()
    page.get_by_label("Only rows that fulfil (SQL)").fill("split = 'test'")
    page.keyboard.press("Enter")
    page.wait_for_selector(HIT)
    assert page.locator(HIT).count() == 6
    assert page.locator("#line.error").count() == 0


def photo(colour: str) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(stream, "PNG")
    return {"name": "photo.png", "mimeType": "image/png", "buffer": stream.getvalue()}


def test_a_picture_is_chosen_dropped_or_pasted(studio: RunningStudio, page: "Page") -> None:
    page.goto(studio.url)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Picture", exact=True).click()
    chooser.value.set_files(photo("red"))
    page.wait_for_selector(HIT)
    assert page.get_by_text("similar to your picture").is_visible()
    assert page.get_by_text("which does not tell when nothing fits").is_visible()
    for kind, carrier in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.get_by_role("button", name="Remove similar to your picture").click()
        with page.expect_response("**/api/search") as answer:
            page.evaluate(
                """([kind, carrier, bytes]) => {
                    const data = new DataTransfer();
                    data.items.add(new File([new Uint8Array(bytes)], "x.png", { type: "image/png" }));
                    const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
                    const event = new Kind(kind, { [carrier]: data, bubbles: true, cancelable: true });
                    document.querySelector("main").dispatchEvent(event);
                }""",  # noqa: E501
                [kind, carrier, list(photo("blue")["buffer"])],
            )
        assert answer.value.status == 200
        page.get_by_text("similar to your picture").wait_for()


def test_a_picture_is_seen_large_by_keyboard(studio: RunningStudio, page: "Page") -> None:
    page.goto(f"{studio.url}#search?text=a+red+circle")
    page.wait_for_selector(HIT)
    page.locator(HIT).first.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    name = dialog.get_by_role("heading", level=2)
    first = name.inner_text()
    page.keyboard.press("ArrowRight")
    assert name.inner_text() != first
    assert dialog.get_by_text("2 of 48").is_visible()
    page.keyboard.press("ArrowLeft")
    assert name.inner_text() == first
    page.keyboard.press("Escape")
    assert dialog.count() == 0
    # Back where one was.
    assert page.locator(HIT).first.evaluate("node => node === document.activeElement")
    page.keyboard.press("Enter")
    with page.expect_request("**/api/search") as asked:
        dialog.get_by_role("button", name="Find similar").click()
    assert asked.value.post_data_json["texts"] == []
    assert isinstance(asked.value.post_data_json["like"], int)


def test_hostile_texts_are_texts(studio: RunningStudio, page: "Page") -> None:
    row = next(hit for hit in search(studio, texts=[RED], k=100)["hits"] if hit["id"] == HOSTILE)
    assert row["captions"] == [HOSTILE]
    page.goto(f"{studio.url}#search?text=a+red+circle&k=200")
    page.wait_for_selector(HIT)
    # As a name for screen readers, as a heading, as a caption.
    page.locator(f"{HIT}[aria-label*='onerror']").click()
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading", level=2).inner_text() == HOSTILE
    assert dialog.get_by_role("listitem").inner_text() == HOSTILE
    assert "hacked" not in page.title()
    # That of the page, and what the page comes with, which is no program.
    assert page.locator("script").count() == 2
    assert page.locator("script#about[type='application/json']").count() == 1
    page.goto(f"{studio.url}#search?text={HOSTILE}&where=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    page.locator("#line.error").wait_for()
    assert page.locator("img[src='x']").count() == 0


def test_a_collection_without_index_says_how_to_make_one_and_waits_for_it(
    make_studio: Callable[..., Studio], checkpoints: dict[str, str], page: "Page", tmp_path: Path
) -> None:
    folder = tmp_path / "my photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    with serving(make_studio(folder)) as running:
        page.goto(running.url)
        page.get_by_role("heading", name="This folder has no index yet").wait_for()
        # With the model that the studio matches with, or that of another index would search.
        command = f"openblip index build '{folder}' --model {checkpoints['filter']}"
        assert page.get_by_text(command).is_visible()
        page.goto(f"{running.url}#capfilt")
        # Not a name that another table may have, to which the folder would be added.
        into = "'my photos.lance' --without-captions"
        page.get_by_text(f"openblip data import '{folder}' {into}").wait_for()
        page.goto(f"{running.url}#search")
        page.wait_for_selector(".mosaic .picture")
        assert page.get_by_role("searchbox").is_hidden()
        assert serious_faults(page) == []
        page.set_viewport_size({"width": 360, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        build_index(str(folder), checkpoints["filter"], device="cpu", show_progress=False)
        page.get_by_role("searchbox").wait_for()
        page.get_by_role("searchbox").fill(RED)
        page.keyboard.press("Enter")
        page.wait_for_selector(HIT)
        assert page.locator(HIT).count() == 3


def test_the_server_that_is_gone_is_said(
    make_studio: Callable[..., Studio], world_table: str, page: "Page"
) -> None:
    with serving(make_studio(world_table)) as running:
        page.goto(running.url)
        page.wait_for_selector(".mosaic .picture")
    page.get_by_role("searchbox").fill(RED)
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("The studio does not answer").wait_for()


@pytest.mark.parametrize(
    ("width", "theme"),
    [
        (360, "light"),
        (1440, "dark"),
        pytest.param(360, "dark", marks=pytest.mark.slow),
        pytest.param(1440, "light", marks=pytest.mark.slow),
    ],
)
def test_nothing_keeps_people_out(
    studio: RunningStudio, page: "Page", theme: Any, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=theme)
    page.goto(f"{studio.url}#search?text=a+red+circle&not=a+star&where=width+%3E+1")
    page.wait_for_selector(HIT)
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(HIT).first.click()
    page.get_by_role("dialog").wait_for()
    assert serious_faults(page) == []
