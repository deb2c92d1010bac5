"""The room Try: what models say of a picture, over HTTP and in a browser."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from openblip.inference.loading import load
from openblip.studio.app import Studio

from .conftest import HOSTILE, RunningStudio, serious_faults, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.filterwarnings("ignore::openblip.runtime.errors.UnknownWords")
TEXTS = ["a red circle", "a blue square", "a star"]


@pytest.fixture(scope="module")
def picture() -> bytes:
    stream = io.BytesIO()
    Image.radial_gradient("L").resize((90, 60)).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def tried(studio: RunningStudio, task: str, image: bytes | None = None, **values: Any) -> Any:
    answer = studio.ask(f"/api/try/{task}", values, image=image)
    assert answer.status == 200, answer.body
    return answer.json()


def test_captions_are_those_of_the_library_with_their_words(
    studio: RunningStudio, checkpoints: dict[str, str], picture: bytes
) -> None:
    found = tried(studio, "caption", picture, beams=4, count=3, max_length=15)["captions"]
    blip = load(checkpoints["captioner"], "cpu")
    (expected,) = blip.caption(picture, num_beams=4, num_captions=3, max_length=15)
    assert [caption["text"] for caption in found] == [caption.text for caption in expected]
    for caption, own in zip(found, expected, strict=True):
        assert caption["logprob"] == pytest.approx(own.logprob, abs=1e-4)
        assert [word["text"] for word in caption["words"]] == [word.text for word in own.words]
        assert all(0 <= word["probability"] <= 1 for word in caption["words"])


def test_captions_may_be_drawn(studio: RunningStudio) -> None:
    found = tried(studio, "caption", row=3, method="nucleus", count=5)["captions"]
    assert len({caption["text"] for caption in found}) > 1


def test_answers_are_written_or_ranked(
    studio: RunningStudio, checkpoints: dict[str, str], picture: bytes
) -> None:
    written = tried(studio, "ask", picture, question="what is there?", top=3)
    assert not written["ranked"]
    assert len(written["answers"]) == 3
    ranked = tried(studio, "ask", picture, question="what is there?", candidates=TEXTS)
    (expected,) = load(checkpoints["vqa"], "cpu").ask_top(picture, "what is there?", 5, TEXTS)
    assert [answer["text"] for answer in ranked["answers"]] == [own.text for own in expected]
    assert sum(answer["probability"] for answer in ranked["answers"]) == pytest.approx(1, abs=1e-4)


def test_texts_are_matched_best_first(studio: RunningStudio, checkpoints: dict[str, str]) -> None:
    found = tried(studio, "match", row=3, texts=TEXTS)["matches"]
    expected = load(checkpoints["filter"], "cpu").match(studio.ask("/image/3").body, TEXTS)
    by_text = dict(zip(TEXTS, expected, strict=True))
    assert {match["text"] for match in found} == set(TEXTS)
    for match in found:
        assert match["itm"] == pytest.approx(by_text[match["text"]].itm, abs=1e-4)
        assert match["itc"] == pytest.approx(by_text[match["text"]].itc, abs=1e-4)
    assert [match["itm"] for match in found] == sorted((m["itm"] for m in found), reverse=True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"what": "match", "text": "a red circle"}, ["a", "red", "circle"]),
        ({"what": "answer", "question": "what is there?", "answer": "yes"}, None),
        ({"what": "answer", "question": "what is there?"}, None),
        ({"what": "caption"}, None),
    ],
    ids=lambda one: "",
)
def test_explanations_are_grids_from_0_to_1(
    studio: RunningStudio, picture: bytes, values: dict[str, Any], words: list[str] | None
) -> None:
    found = tried(studio, "explain", picture, **values)
    assert words in (None, found["tokens"])
    assert len(found["maps"]) == len(found["tokens"]) == len(found["peaks"])
    for grid in [*found["maps"], found["overall"]]:
        assert len(grid) == len(grid[0]) == 2
        flat = [value for row in grid for value in row]
        assert all(0 <= value <= 1 for value in flat)
        assert max(flat) in (0, 1)
    assert max(found["peaks"]) in (0, 1)
    assert all(len(colour) == 3 for colour in found["colours"])
    if values["what"] == "answer":
        assert found["answer"] == values.get("answer", found["answer"]) != ""


@pytest.mark.parametrize(
    ("what", "values", "told"),
    [
        ("caption", {}, "no picture"),
        ("caption", {"row": 10_000}, "no row"),
        ("caption", {"row": -1}, "row must be"),
        ("caption", {"row": 0, "method": "magic"}, "beam or nucleus"),
        ("caption", {"row": 0, "beams": 11}, "beams must be"),
        ("caption", {"row": 0, "beams": 2, "count": 3}, "count must be"),
        ("ask", {"row": 0}, "question is empty"),
        ("match", {"row": 0, "texts": []}, "no text"),
        ("explain", {"row": 0, "what": "all"}, "match, caption or answer"),
        ("explain", {"row": 0, "what": "match"}, "text is empty"),
        ("explain", {"row": 0, "what": "match", "text": "…"}, ""),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_said(
    studio: RunningStudio, what: str, values: dict[str, Any], told: str
) -> None:
    answer = studio.ask(f"/api/try/{what}", values)
    if told:
        assert answer.status == 400
        assert told in answer.error
    else:
        assert answer.status in (200, 400)


@pytest.mark.parametrize(
    ("what", "values", "flag"),
    [
        ("caption", {}, "--captioner"),
        ("ask", {"question": "what?"}, "--vqa"),
        ("match", {"texts": TEXTS}, "--filter"),
        ("explain", {"what": "caption"}, "--captioner"),
    ],
)
def test_a_model_that_is_missing_is_named(
    make_studio: Callable[..., Studio],
    picture: bytes,
    what: str,
    values: dict[str, Any],
    flag: str,
) -> None:
    with serving(make_studio(None, models={})) as running:
        answer = running.ask(f"/api/try/{what}", values, image=picture)
        assert answer.status == 400
        assert flag in answer.error


def test_a_model_of_another_kind_says_what_it_is(
    make_studio: Callable[..., Studio], checkpoints: dict[str, str], picture: bytes
) -> None:
    models = {"captioner": checkpoints["vqa"], "vqa": checkpoints["captioner"], "filter": None}
    with serving(make_studio(None, models=models)) as running:
        for what, values in (("caption", {}), ("ask", {"question": "what?"})):
            answer = running.ask(f"/api/try/{what}", values, image=picture)
            assert answer.status == 400
            assert "checkpoint" in answer.error


def open_try(studio: RunningStudio, page: "Page", more: str = "?row=3") -> None:
    page.goto(f"{studio.url}#try{more}")
    page.get_by_role("tab", name="Caption").wait_for()


def test_a_row_is_captioned_with_the_confidence_of_each_word(
    studio: RunningStudio, page: "Page"
) -> None:
    expected = tried(studio, "caption", row=3)["captions"]
    open_try(studio, page)
    page.get_by_role("button", name="Caption", exact=True).click()
    captions = page.locator(".captions > li:not(.key)")
    captions.first.wait_for()
    assert captions.count() == len(expected) == 3
    words = captions.first.locator(".word .said").all_inner_texts()
    assert words == [word["text"] for word in expected[0]["words"]]
    assert captions.first.locator(".word .sure").count() == len(words)


def test_an_uploaded_picture_is_asked_about(
    studio: RunningStudio, page: "Page", picture: bytes
) -> None:
    open_try(studio, page, "")
    page.get_by_role("tab", name="Ask").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files({"name": "p.png", "mimeType": "image/png", "buffer": picture})
    page.get_by_alt_text("Your picture").wait_for()
    page.get_by_role("textbox", name="Question", exact=True).fill("what is there?")
    page.get_by_label("Answers to choose from").fill("\n".join(TEXTS))
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_role("heading", name="Your answers, ranked").wait_for()
    shown = page.locator("#panel-ask .bars .name").all_inner_texts()
    ranked = tried(studio, "ask", picture, question="what is there?", candidates=TEXTS)
    assert shown == [answer["text"] for answer in ranked["answers"]]


def test_texts_are_matched_and_hostile_ones_are_texts(studio: RunningStudio, page: "Page") -> None:
    open_try(studio, page, "?row=3&tab=match")
    page.get_by_label("Texts, one a line").fill("\n".join([*TEXTS, HOSTILE]))
    page.get_by_role("button", name="Match", exact=True).click()
    page.locator("#panel-match .bars li").first.wait_for()
    shown = page.locator("#panel-match .bars .name").all_inner_texts()
    assert HOSTILE in shown
    assert len(shown) == 4
    assert "hacked" not in page.title()


def test_a_heat_map_for_each_word(studio: RunningStudio, page: "Page") -> None:
    open_try(studio, page, "?row=3&tab=explain")
    page.get_by_role("textbox", name="Text", exact=True).fill("a red circle")
    page.get_by_role("button", name="Explain", exact=True).click()
    words = page.get_by_role("radio")
    words.first.wait_for(state="attached")
    assert words.count() == 4
    canvas = page.locator("canvas.heat")
    assert canvas.is_visible()
    drawn = [canvas.evaluate("node => node.toDataURL()")]
    for _ in range(3):
        words.nth(len(drawn) - 1).focus()
        page.keyboard.press("ArrowRight")
        drawn.append(canvas.evaluate("node => node.toDataURL()"))
    assert len(set(drawn)) > 1
    page.get_by_label("Opacity of the heat map").fill("0.2")
    assert canvas.evaluate("node => getComputedStyle(node).opacity") == "0.2"
    # It lies over the picture exactly, and other tabs show the picture alone.
    box, picture = canvas.bounding_box(), page.locator(".easel img").bounding_box()
    assert box == pytest.approx(picture, abs=0.5)
    page.get_by_role("tab", name="Match").click()
    assert canvas.is_hidden()


def test_tabs_are_turned_by_arrows_and_stand_in_the_address(
    studio: RunningStudio, page: "Page"
) -> None:
    open_try(studio, page)
    page.get_by_role("tab", name="Caption").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("tab", name="Explain").get_attribute("aria-selected") == "true"
    assert "tab=explain" in page.url
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.reload()
    page.get_by_role("tab", name="Ask", selected=True).wait_for()
    assert page.get_by_role("textbox", name="Question", exact=True).is_visible()


def test_what_no_model_was_given_for_is_said(
    make_studio: Callable[..., Studio], checkpoints: dict[str, str], page: "Page"
) -> None:
    models = {"captioner": checkpoints["captioner"], "filter": None, "vqa": None}
    with serving(make_studio(None, models=models)) as running:
        open_try(running, page, "?tab=ask")
        assert page.get_by_text("openblip studio --vqa VQA").is_visible()
        page.set_viewport_size({"width": 360, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_role("tab", name="Caption").click()
        page.get_by_role("button", name="Caption", exact=True).click()
        page.get_by_text("Give a picture first.").wait_for()


def test_a_picture_that_is_too_large_is_not_sent(studio: RunningStudio, page: "Page") -> None:
    open_try(studio, page, "")
    page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(33 << 20)], "x.png", { type: "image/png" }));
            const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true });
            document.querySelector("main").dispatchEvent(drop);
        }"""
    )
    page.get_by_role("button", name="Caption", exact=True).click()
    page.get_by_text("The picture has 33 MB; at most 32 MB go.").wait_for()


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
    open_try(studio, page, "?row=3&tab=explain")
    page.get_by_role("textbox", name="Text", exact=True).fill("a red circle")
    page.get_by_role("button", name="Explain", exact=True).click()
    page.get_by_role("radio").first.wait_for(state="attached")
    assert serious_faults(page) == []
    page.get_by_role("tab", name="Caption").click()
    page.get_by_role("button", name="Caption", exact=True).click()
    page.locator(".captions > li").first.wait_for()
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
