"""The pages of runs and of jobs in a browser."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from openblip.objectives.settings import PretrainObjectives
from openblip.studio import runs as room
from openblip.studio.app import Studio
from openblip.studio.processes import JobFolder
from openblip.table.table import PairRow, PairTable
from openblip.training.metrics_log import METRICS_FILE
from openblip.training.parallelism import Processes
from openblip.training.rank_log import RankLog
from openblip.training.recipe_file import RECIPE_FILE

from .conftest import RunningStudio, serious_faults, serving, wait_until
from .test_runs import RECIPE, append, begin

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    other = replace(RECIPE, objectives=PretrainObjectives(queue_size=128))
    begin(tmp_path / "runs" / "first", steps=4)
    begin(tmp_path / "runs" / "second", steps=6, loss=3.0)
    begin(tmp_path / "runs" / "queue", other, steps=5)
    return tmp_path / "runs"


@pytest.fixture
def served(
    folder: Path, make_studio: Callable[..., Studio], monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunningStudio]:
    monkeypatch.setattr(room, "_LOOKING_SECONDS", 0.1)
    with serving(make_studio(None, runs=folder)) as running:
        yield running


def chart(page: "Page", title: str) -> "str":
    """Selector of the field of a chart."""
    return f".plot[aria-label^='{title}']"


def test_curves_are_drawn_and_only_comparable_losses_share_an_axis(
    page: "Page", served: RunningStudio
) -> None:
    page.goto(f"{served.url}#runs")
    page.wait_for_selector(chart(page, "Loss · queue_size 64"))
    page.locator(chart(page, "Loss · queue_size 128")).wait_for()
    both = page.locator("figure", has=page.locator(chart(page, "Loss · queue_size 64")))
    both.locator(".readout").get_by_text("second").wait_for()
    assert both.locator(".readout").get_by_text("queue").count() == 0
    page.get_by_text("Where their recipes differ").wait_for()
    page.get_by_role("rowheader", name="objectives.queue_size").wait_for()
    assert serious_faults(page) == []


def test_values_are_read_with_the_pointer_and_with_the_keyboard(
    page: "Page", served: RunningStudio
) -> None:
    page.goto(f"{served.url}#runs")
    field = page.locator(chart(page, "Loss · queue_size 64"))
    page.wait_for_selector(f"{chart(page, 'Loss · queue_size 64')} path")
    field.focus()
    page.keyboard.press("Home")
    wait_until(lambda: "step 1:" in (field.get_attribute("aria-valuetext") or ""))
    told = field.get_attribute("aria-valuetext") or ""
    assert "first 2" in told
    assert "second 3" in told
    page.keyboard.press("ArrowRight")
    assert "step 2:" in (field.get_attribute("aria-valuetext") or "")
    page.keyboard.press("Escape")
    field.hover()
    figure = page.locator("figure", has=field)
    figure.locator(".readout").get_by_text("step ").wait_for()


def test_a_run_is_followed_while_it_writes_and_only_what_is_new_is_sent(
    page: "Page", served: RunningStudio, folder: Path
) -> None:
    log = RankLog(folder / "first", Processes())
    log.begin(4, 100)
    sent: list[int] = []
    page.on(
        "response",
        lambda answer: (
            sent.append(int(answer.headers.get("content-length", 0)))
            if "curves?quantity=loss" in answer.url
            else None
        ),
    )
    page.goto(f"{served.url}#runs")
    page.get_by_text("step 4 of 100").wait_for()
    page.wait_for_selector(f"{chart(page, 'Loss')} path")
    first = sent[0]
    append(folder / "first", 5, 0.25)
    page.get_by_text("step 5 of 100").wait_for()
    field = page.locator(chart(page, "Loss · queue_size 64"))
    field.focus()
    page.keyboard.press("Home")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    wait_until(lambda: "first 0.25" in (field.get_attribute("aria-valuetext") or ""))
    assert sent[-1] < first
    log.close()


def test_a_damaged_run_is_named_beside_the_others(
    page: "Page", served: RunningStudio, folder: Path
) -> None:
    (folder / "queue" / RECIPE_FILE).write_text("task: nothing\n")
    page.goto(f"{served.url}#runs")
    page.get_by_text("Cannot be read:").wait_for()
    page.get_by_text("3 runs · 0 running · 1 cannot be read").wait_for()
    page.wait_for_selector(f"{chart(page, 'Loss')} path")


def test_of_many_runs_the_first_are_drawn_and_others_can_be(
    page: "Page", served: RunningStudio, folder: Path
) -> None:
    line = json.dumps({"step": 1, "kind": "train", "loss": 1.0}) + "\n"
    for number in range(20):
        run = begin(folder / f"more-{number:02d}", steps=0)
        (run / METRICS_FILE).write_text(line)
    page.goto(f"{served.url}#runs")
    page.get_by_text("23 runs").wait_for()
    wait_until(lambda: page.locator(".runs input:checked").count() == 12)
    page.get_by_label("Filter").fill("more-1")
    wait_until(lambda: page.locator(".runs input").count() == 10)
    page.get_by_role("button", name="None").click()
    page.get_by_label("Filter").fill("")
    wait_until(lambda: page.locator(".runs input:checked").count() == 11)


def test_smoothing_and_scale_are_remembered(page: "Page", served: RunningStudio) -> None:
    page.goto(f"{served.url}#runs")
    page.wait_for_selector("#smoothing")
    page.locator("#smoothing").focus()
    page.keyboard.press("Home")
    page.get_by_label("Logarithmic scale").check()
    page.reload()
    page.wait_for_selector("#smoothing")
    assert page.input_value("#smoothing") == "0"
    assert page.get_by_label("Logarithmic scale").is_checked()


def test_a_job_is_offered_the_models_that_can_do_it(
    page: "Page", make_studio: Callable[..., Studio], world_table: str
) -> None:
    def offered(kind: str, field: str, state: str) -> list[str]:
        options = f".start:has(h2:text-is('{kind}')) select[name='{field}'] option:{state}"
        return [text.partition(":")[0] for text in page.locator(options).all_text_contents()]

    with serving(make_studio(world_table)) as running:
        page.goto(f"{running.url}#jobs")
        page.get_by_role("heading", name="Caption pictures").wait_for()
        assert offered("Caption pictures", "model", "enabled") == ["captioner"]
        assert offered("Caption pictures", "model", "disabled") == ["filter", "vqa"]
        assert offered("CapFilt: caption and score", "filter", "enabled") == ["filter"]
        assert offered("Index for search", "model", "disabled") == ["captioner", "vqa"]
    with serving(make_studio(world_table, models={"vqa": "organisation/name"})) as running:
        page.goto(f"{running.url}#jobs")
        told = page.get_by_text("No model is there that can do it", exact=False)
        told.first.wait_for()
        assert told.count() == 2


def test_captions_are_started_stopped_and_gone_on_with_from_the_page(
    page: "Page",
    tmp_path: Path,
    world_rows: list[PairRow],
    make_studio: Callable[..., Studio],
) -> None:
    uri, output = tmp_path / "pairs.lance", tmp_path / "mine.jsonl"
    # Enough to be stopped on a fast machine, and ten captions an image.
    rows = [replace(row, id=f"{row.id}-{n}") for n in range(14) for row in world_rows]
    PairTable.create(uri, rows)
    with serving(make_studio(uri)) as running:
        page.goto(f"{running.url}#jobs")
        page.get_by_label("File (.jsonl").fill("mine.jsonl")
        page.get_by_label("Captions a picture").first.fill("10")
        page.get_by_role("button", name="Start").first.click()
        page.get_by_role("button", name="Stop: Caption pictures").wait_for()
        page.get_by_text(f"of {len(rows)} images").first.wait_for(timeout=120_000)
        page.get_by_role("button", name="Stop: Caption pictures").click()
        again = page.get_by_role("button", name="Caption pictures").filter(has_not_text="Stop")
        again.first.wait_for(timeout=120_000)
        page.get_by_role("button", name="Go on: Caption pictures").or_(
            page.get_by_role("button", name="Once more: Caption pictures")
        ).click()
        jobs = JobFolder(Path(f"{uri}.jobs"))
        wait_until(lambda: len(jobs.jobs()) == 2, 60)
        wait_until(lambda: jobs.state(jobs.jobs()[0]) == "finished", 120)
        page.get_by_text("Captions in mine.jsonl").wait_for()
        assert serious_faults(page) == []
    assert len(output.read_text().splitlines()) == len(rows)
    assert os.path.commonpath([output, uri]) == str(tmp_path)
