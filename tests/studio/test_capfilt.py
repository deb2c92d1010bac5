"""The room CapFilt: counts, examples and commands are those of the view that they make."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pytest

from openblip.capfilt.select import keep_rates, read_scores, rejections
from openblip.cli import main
from openblip.studio.arrays import view_of
from openblip.table.reviews import ReviewLog, ReviewRecord
from openblip.table.table import PairRow, PairTable

from .conftest import HOSTILE, RunningStudio, serious_faults, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from openblip.studio.app import Studio


def ask(studio: RunningStudio, path: str = "", **asked: Any) -> dict[str, Any]:
    answer = studio.ask(f"/api/capfilt{path}?{urlencode(asked)}")
    assert answer.status == 200, answer.error
    return dict(answer.json())


def kept(told: dict[str, Any], threshold: float) -> int:
    """As the page counts: texts that are above more thresholds than lie below this one."""
    return sum(told["histogram"][round(threshold * 1000) + 1 :])


@pytest.mark.parametrize("split", ["train", "val"])
def test_counts_are_those_of_views(studio: RunningStudio, split: str) -> None:
    table = studio.studio.need_place().table
    told = ask(studio, split=split)
    assert told["splits"] == {"train": 48, "val": 6, "test": 6}
    for threshold in (0.0, 0.25, 0.5, 0.503, 0.999, 1.0):
        index = view_of(table, threshold, split).resolve(table, may_be_empty=True)
        for source in told["sources"]:
            name = source["source"]
            assert source["texts"] == index.num_offered[name]
            number = source["texts"] - sum(source["rejected"].values())
            if "histogram" in source:
                number = kept(source, threshold)
            assert number == index.num_admitted[name], (name, threshold)


def test_counts_are_those_that_the_command_tells(studio: RunningStudio) -> None:
    table = studio.studio.need_place().table
    scores = read_scores(table)
    sources = {source["source"]: source for source in ask(studio)["sources"]}
    for rate in keep_rates(scores, (0.3, 0.5)):
        assert kept(sources[rate.source], rate.threshold) == rate.kept
    for rejected in rejections(table, (0.5,)):
        if rejected.reason != "below the threshold":
            assert sources[rejected.source]["rejected"][rejected.reason] == rejected.count


@pytest.fixture
def scored(tmp_path: Path, jpeg: Callable) -> PairTable:
    """Web rows with scores from 0 to 1, of two data sets and one without a name."""
    names = ["sbu", "cc12m", "cc12m", ""]
    rows = [
        PairRow(
            id=f"r{n}",
            image=jpeg(n),
            width=24,
            height=16,
            captions=[f"text {n}"],
            split="test" if n % 10 == 9 else "train",
            meta={"source": names[n % 4]} if names[n % 4] else {},
        )
        for n in range(100)
    ]
    table = PairTable.create(tmp_path / "a table.lance", rows)
    itm = pa.array([[n / 99] for n in range(100)], pa.list_(pa.float32()))
    table.add_columns(pa.table({"captions_itm": itm, "captions_itc": itm}))
    return PairTable.open(table.uri)


@pytest.fixture
def own_studio(scored: PairTable, make_studio: Callable) -> Iterator[RunningStudio]:
    with serving(make_studio(scored.uri, models={})) as running:
        yield running


def test_examples_stand_on_both_sides_nearest_first(own_studio: RunningStudio) -> None:
    told = ask(own_studio, "/examples", threshold=0.5, source="web", count=4)
    rows = {
        name: [card["row"] for card in told[name]]
        for name in ("below", "above", "rejected", "accepted")
    }
    # Rows that end in 9 are not trained on; 49/99 is below a half, 50/99 above.
    assert rows == {
        "below": [48, 47, 46, 45],
        "above": [50, 51, 52, 53],
        "rejected": [0, 1, 2, 3],
        "accepted": [98, 97, 96, 95],
    }
    card = told["below"][0]
    assert (card["text"]["text"], card["text"]["fate"]) == ("text 48", "below the threshold")
    assert told["above"][0]["text"]["fate"] == "counts"
    in_test = ask(own_studio, "/examples", threshold=0.5, source="web", split="test", count=2)
    assert [card["row"] for card in in_test["above"]] == [59, 69]
    assert ask(own_studio, "/examples", threshold=1, source="web")["above"] == []


def test_an_example_is_the_right_one_of_several_texts(
    tmp_path: Path, make_studio: Callable
) -> None:
    rows = [PairRow(id=f"r{n}", image_uri="/x", captions=["first", "second"]) for n in range(3)]
    table = PairTable.create(tmp_path / "t.lance", rows)
    itm = pa.array([[0.1, 0.6], [0.9, 0.4], [0.2, 0.3]])
    table.add_columns(pa.table({"captions_itm": itm, "captions_itc": itm}))
    with serving(make_studio(table.uri, models={})) as running:
        told = ask(running, "/examples", threshold=0.5, source="web")
    found = [(card["row"], card["text"]["text"], card["text"]["itm"]) for card in told["above"]]
    assert found == [(0, "second", 0.6), (1, "first", 0.9)]
    assert [text["text"] for text in told["above"][0]["others"]] == ["first"]


def test_data_sets_are_counted_apart(own_studio: RunningStudio, scored: PairTable) -> None:
    told = ask(own_studio)["data_sets"]
    assert [(s["name"], s["sources"]["web"]["texts"]) for s in told["shown"]] == [
        ("cc12m", 45),
        ("sbu", 25),
        ("", 20),
    ]
    scores = np.arange(100) / 99
    trained = np.arange(100) % 10 != 9
    for threshold in (0.2, 0.7):
        is_cc12m = (np.arange(100) % 4 == 1) | (np.arange(100) % 4 == 2)
        expected = int((trained & is_cc12m & (scores > threshold)).sum())
        assert kept(told["shown"][0]["sources"]["web"], threshold) == expected


def test_more_data_sets_than_are_shown_are_counted(tmp_path: Path, make_studio: Callable) -> None:
    rows = [
        PairRow(id=f"r{n}", image_uri="/x", captions=["a"], meta={"source": f"set {n % 25:02}"})
        for n in range(60)
    ]
    table = PairTable.create(tmp_path / "t.lance", rows)
    itm = pa.array([[n / 60] for n in range(60)])
    table.add_columns(pa.table({"captions_itm": itm, "captions_itc": itm}))
    with serving(make_studio(table.uri, models={})) as running:
        told = ask(running)["data_sets"]
    assert (len(told["shown"]), told["num_more"]) == (20, 5)
    assert told["shown"][0]["sources"]["web"]["texts"] == 3
    assert sum(told["shown"][0]["sources"]["web"]["histogram"]) == 3


def test_scores_that_lie_close_together_are_said_to_separate_nothing(
    tmp_path: Path, make_studio: Callable, page: "Page"
) -> None:
    rows = [PairRow(id=f"r{n}", image_uri="/x", captions=["a"]) for n in range(9)]
    table = PairTable.create(tmp_path / "t.lance", rows)
    itm = pa.array([[0.5 + n / 1000] for n in range(9)])
    table.add_columns(pa.table({"captions_itm": itm, "captions_itc": itm}))
    with serving(make_studio(table.uri, models={})) as running:
        (source,) = [s for s in ask(running)["sources"] if s["source"] == "web"]
        assert source["is_narrow"]
        assert "so narrow a range separates nothing" in source["spread"]
        page.goto(f"{running.url}#capfilt")
        page.get_by_role("heading", name="This filter separates nothing").wait_for()


def test_the_commands_make_the_view_that_is_shown(
    own_studio: RunningStudio, scored: PairTable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    told = ask(own_studio, split="test")["commands"]
    words = shlex.split(told["export"].replace("THRESHOLD", "0.6"))
    assert words[:3] == ["openblip", "data", "export"]
    words[words.index("filtered/")] = str(tmp_path / "out")
    words.remove("synthetic")  # this table has none
    assert main([*words[1:], "--format", "jsonl"]) == 0
    lines = (tmp_path / "out" / "captions.jsonl").read_text().splitlines()
    index = view_of(scored, 0.6, "test").resolve(scored)
    assert len(lines) == len(index)
    assert "--data.view.itm 0.6 --data.view.split test" in told["training"].replace(
        "THRESHOLD", "0.6"
    )


def test_a_table_without_scores_is_told_what_makes_them(
    tmp_path: Path, pair_rows: Callable, make_studio: Callable, page: "Page"
) -> None:
    table = PairTable.create(tmp_path / "pairs.lance", pair_rows(3))
    with serving(make_studio(table.uri, models={})) as running:
        told = ask(running)
        assert not told["is_scored"]
        assert "sources" not in told
        command = f"openblip capfilt run {table.uri} --captioner CAPTIONER --filter FILTER"
        assert told["commands"]["scores"] == command
        page.goto(f"{running.url}#capfilt")
        page.get_by_text(command).wait_for()


def test_it_is_said_how_many_texts_have_a_verdict(
    own_studio: RunningStudio, scored: PairTable, page: "Page"
) -> None:
    assert ask(own_studio)["judged_texts"] == 0
    about = {"source": "web", "place": 0, "table_version": 1, "verdict": "right"}
    records = [
        ReviewRecord(**about, row=f"r{row}", text=text, reviewer=reviewer)
        for row, text, reviewer in [
            (3, "text 3", "Ann"),
            (3, "text 3", "Bob"),
            (4, "text 4", "Ann"),
            (5, "another text", "Ann"),
        ]
    ]
    ReviewLog.of(scored.uri).append(records)
    assert ask(own_studio)["judged_texts"] == 2
    page.goto(f"{own_studio.url}#capfilt")
    page.get_by_role("link", name="2 texts").click()
    page.get_by_text("2 of 100 pictures").wait_for()
    page.get_by_text("1 verdict is on a text that has changed since").wait_for()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("?split=training", "split is 'training'; it must be one of train, val, test"),
        ("?without=leaks", "has not been checked"),
        ("/examples?source=web", "threshold must be a number from 0 to 1"),
        ("/examples?source=web&threshold=x", "threshold must be a number from 0 to 1"),
        ("/examples?source=human&threshold=0.5", "source is 'human'; it must be one of web"),
        ("/examples?source=web&threshold=0.5&count=61", "count must be a number from 1 to 60"),
    ],
)
def test_what_cannot_be_answered_is_told(studio: RunningStudio, path: str, told: str) -> None:
    answer = studio.ask(f"/api/capfilt{path}")
    assert (answer.status, told in answer.error) == (400, True), answer.error


# In a browser.


@pytest.fixture
def opened(own_studio: RunningStudio, page: "Page") -> "Page":
    page.goto(f"{own_studio.url}#capfilt")
    page.wait_for_selector(".example img")
    return page


def test_counts_follow_the_slider_without_a_request(opened: "Page") -> None:
    told = opened.locator(".kept-told").first
    assert told.inner_text().startswith("45 of 90 stay")
    asked: list[str] = []
    opened.on("request", lambda request: "/api/" in request.url and asked.append(request.url))
    slider = opened.get_by_role("slider", name="Threshold")
    slider.focus()
    opened.keyboard.press("Home")
    assert told.inner_text().startswith("89 of 90 stay")
    assert asked == []
    opened.keyboard.press("End")
    assert told.inner_text().startswith("0 of 90 stay")
    opened.get_by_label("Threshold", exact=True).last.fill("0.9")
    assert told.inner_text().startswith("9 of 90 stay")
    assert "--data.view.itm 0.9" in opened.locator(".view-commands").inner_text()
    opened.wait_for_url(re.compile(r"threshold=0\.9"))
    opened.get_by_text("text 90", exact=True).wait_for()
    assert len(asked) <= 3  # one for each place at which it has rested


def test_the_slider_has_the_scale_of_the_histogram(studio: RunningStudio, page: "Page") -> None:
    page.goto(f"{studio.url}#capfilt?threshold=0.3")
    page.wait_for_selector(".example img")
    slider = page.get_by_role("slider", name="Threshold")
    value, least, most = slider.evaluate("one => [one.value, one.min, one.max].map(Number)")
    assert (value, 0 <= least < most) == (300, True)
    mark = page.locator(".spread-edge").first.evaluate(
        "one => Number(one.style.getPropertyValue('--at'))"
    )
    assert mark == pytest.approx((value - least) / (most - least))
    first, *_, last = page.locator(".spread-ends").first.inner_text().split()
    assert float(first) == pytest.approx(least / 1000, abs=0.006)
    assert float(last) == pytest.approx(most / 1000, abs=0.006)


def test_scores_on_both_sides_are_told_apart(
    scored: PairTable, make_studio: Callable[..., "Studio"], page: "Page"
) -> None:
    near = [0.50001, 0.49999, *np.linspace(0, 1, len(scored) - 2).tolist()]
    columns = {"captions_score_right": pa.array([[one] for one in near], pa.list_(pa.float32()))}
    scored.add_columns(pa.table(columns))
    with serving(make_studio(scored.uri)) as studio:
        page.goto(f"{studio.url}#capfilt?score=right")
        page.wait_for_selector(".example img")
        rows = page.locator(".example-row")
        first = [rows.nth(n).locator(".score-told").first.inner_text() for n in range(2)]
    assert first == ["0.49999", "0.50001"]


def test_a_reload_shows_the_same(opened: "Page") -> None:
    opened.get_by_label("Split").select_option("test")
    opened.get_by_text("5 of 10 stay").wait_for()
    opened.get_by_label("Threshold", exact=True).last.fill("0.2")
    opened.get_by_text("8 of 10 stay").wait_for()
    opened.wait_for_url(re.compile(r"threshold=0\.2.*split=test"))
    opened.reload()
    opened.get_by_text("8 of 10 stay").wait_for()


def test_a_reason_leads_to_its_rows(opened: "Page") -> None:
    opened.get_by_role("link", name="below the threshold", exact=True).click()
    opened.get_by_text("45 of 100 pictures").wait_for()
    opened.go_back()
    opened.get_by_role("link", name=re.compile("text 48")).first.click()
    opened.get_by_role("dialog").get_by_role("heading", name="r48").wait_for()


def test_hostile_texts_are_texts(studio: RunningStudio, page: "Page") -> None:
    page.goto(f"{studio.url}#capfilt?threshold=0.5")
    page.wait_for_selector(".example img")
    for threshold in np.linspace(0.3, 0.7, 5).tolist():
        page.get_by_label("Threshold", exact=True).last.fill(f"{threshold:.1f}")
        page.wait_for_timeout(300)
    assert page.title() == "CapFilt · openblip studio"
    assert page.locator("main script, main img[onerror]").count() == 0
    table = studio.studio.need_place().table
    assert HOSTILE in table.take([5], ["captions"])["captions"][0].as_py()


def test_a_narrow_screen_shows_all(studio: RunningStudio, page: "Page") -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(f"{studio.url}#capfilt")
    page.wait_for_selector(".example img")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tables = page.locator(".scrolls")
    assert tables.count() >= 1
    assert tables.evaluate_all("all => all.every(one => one.scrollWidth <= one.clientWidth)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(opened: "Page", scheme: Any) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.wait_for_timeout(300)
    assert serious_faults(opened) == []


def test_another_score_can_be_chosen(
    scored: PairTable, make_studio: Callable[..., "Studio"]
) -> None:
    rows = scored.take(range(len(scored)), ["captions_itm"]).to_pylist()
    right = [[1 - value for value in row["captions_itm"]] for row in rows]
    kind = pa.list_(pa.float32())
    columns = {"captions_score_right": pa.array(right, kind)}
    columns["captions_score_length"] = pa.array([[5.0 for _ in own] for own in right], kind)
    if "synthetic" in scored.columns:
        columns["synthetic_score_right"] = pa.array([[0.25] for _ in right], kind)
    scored.add_columns(pa.table(columns))
    table = PairTable.open(scored.uri)
    with serving(make_studio(scored.uri)) as studio:
        told = ask(studio, score="right")
        assert told["score"] == "right"
        # A number of words is divided by no threshold from 0 to 1.
        assert told["scores"] == ["right", "itm", "itc"]
        web = {source["source"]: source for source in told["sources"]}["web"]
        for threshold in (0.0, 0.4, 0.75):
            index = view_of(table, threshold, score="right").resolve(table, may_be_empty=True)
            assert kept(web, threshold) == index.num_admitted["web"]
        assert "--data.view.score right" in told["commands"]["training"]
        assert "--score right" in told["commands"]["report"]
        found = ask(studio, "/examples", threshold=0.5, source="web", score="right")
        assert found["accepted"][0]["text"]["itm"] == pytest.approx(
            max(v for o in right for v in o)
        )
        assert ask(studio)["score"] == "right"
        choices = studio.ask("/api/review/choices").json()
        assert choices["scores"] == ["right", "itm", "itc"]
        refused = studio.ask("/api/capfilt?score=length")
        assert (refused.status, "right, itm, itc" in refused.error) == (400, True)
