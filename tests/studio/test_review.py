"""The room Review: verdicts by key, that nothing of is lost, and what follows from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openblip.studio.app import Studio
from openblip.table.reviews import ReviewLog, ReviewRecord
from openblip.table.table import PairRow, PairTable

from .conftest import Answered, RunningStudio, serving

ANN: dict[str, Any] = {"reviewer": "Ann", "tab": "one", "settings": {}}


def upcoming(running: RunningStudio, count: int = 5, **who: object) -> dict[str, Any]:
    answer = running.ask("/api/review/next", {**ANN, "count": count, **who})
    assert answer.status == 200, answer.body
    return dict(answer.json())


def judge(running: RunningStudio, item: dict[str, Any], verdict: str, **more: object) -> Answered:
    values = {**ANN, "item": item["key"], "text": item["text"], "verdict": verdict}
    return running.ask("/api/review/verdict", {**values, **more})


def state(running: RunningStudio, **asked: str) -> dict[str, Any]:
    query = "&".join(f"{n}={v}" for n, v in ({"reviewer": "Ann", "tab": "one"} | asked).items())
    answer = running.ask(f"/api/review/state?{query}")
    assert answer.status == 200, answer.body
    return dict(answer.json())


def records(uri: str) -> list[ReviewRecord]:
    return ReviewLog.of(uri).records()


def test_texts_come_with_what_is_shown_of_them(served: RunningStudio) -> None:
    (item,) = upcoming(served, 1)["items"]
    assert item["source"] in ("web", "synthetic")
    assert item["key"] == f"{item['row']}/{item['source']}/{item['place']}"
    assert 0 <= item["itm"] <= 1
    assert served.ask(f"/image/{item['row_number']}?w=960").status == 200
    assert any(other["source"] != item["source"] for other in item["others"])


def test_a_verdict_is_on_the_disk_when_it_is_acknowledged(
    served: RunningStudio, scored: str
) -> None:
    (item,) = upcoming(served, 1)["items"]
    key = judge(served, item, "partly", edited="a green square").json()["key"]
    (record,) = records(scored)
    assert (record.key, record.verdict, record.edited) == (key, "partly", "a green square")
    assert (record.row, record.text, record.reviewer) == (item["row"], item["text"], "Ann")
    assert record.probability == item["probability"]
    assert state(served)["last"] == item["key"]


def test_a_verdict_that_is_sent_again_is_recorded_once(served: RunningStudio, scored: str) -> None:
    (item,) = upcoming(served, 1)["items"]
    first, again = (judge(served, item, "right").json() for _ in range(2))
    assert (first["what"], again["what"]) == ("recorded", "stands already")
    assert again["key"] == first["key"]
    assert judge(served, item, "wrong").json()["what"] == "recorded"
    assert [record.verdict for record in records(scored)] == ["right", "wrong"]
    assert state(served)["progress"]["verdicts"] == {"wrong": 1}


def test_taking_back_that_is_sent_again_takes_back_one(served: RunningStudio, scored: str) -> None:
    items = upcoming(served, 2)["items"]
    for item in items:
        judge(served, item, "right", edited="better")
    values = {**ANN, "item": items[1]["key"]}
    back = served.ask("/api/review/undo", values).json()
    assert (back["item"]["key"], back["verdict"]) == (items[1]["key"], "right")
    assert back["edited"] == "better"
    assert served.ask("/api/review/undo", values).json()["what"] == "stands already"
    assert state(served)["progress"]["judged_by_me"] == 1
    assert len(records(scored)) == 3
    assert upcoming(served, 1)["items"][0]["key"] == items[1]["key"]


def test_two_pages_of_a_reviewer_have_different_texts(served: RunningStudio) -> None:
    first = upcoming(served, 5)
    second = upcoming(served, 5, tab="two")
    assert not {i["key"] for i in first["items"]} & {i["key"] for i in second["items"]}
    assert (first["tabs"], second["tabs"]) == (0, 1)
    rest = upcoming(served, 50, tab="two", skip=[i["key"] for i in second["items"]])
    last = upcoming(served, 50, tab="two", skip=[i["key"] for i in rest["items"]][-50:])
    assert last["elsewhere"] == 5
    everything = upcoming(served, 50, tab="two", all=True)
    assert {i["key"] for i in first["items"]} <= {i["key"] for i in everything["items"]}


def test_what_a_closed_page_had_goes_to_the_other(served: RunningStudio) -> None:
    first = upcoming(served, 3)["items"]
    served.ask("/api/review/leave", ANN)
    second = upcoming(served, 3, tab="two")
    assert [item["key"] for item in second["items"]] == [item["key"] for item in first]
    assert second["tabs"] == 0


def test_what_is_on_its_way_is_not_shown_again(served: RunningStudio) -> None:
    first = upcoming(served, 3)["items"]
    skip = [item["key"] for item in first]
    assert not set(skip) & {item["key"] for item in upcoming(served, 5, skip=skip)["items"]}


def test_a_later_server_goes_on_where_the_earlier_one_was(
    served: RunningStudio, scored: str, make_studio: Callable[..., Studio]
) -> None:
    items = upcoming(served, 3)["items"]
    judge(served, items[0], "right")
    with serving(make_studio(scored)) as later:
        assert [i["key"] for i in upcoming(later, 2)["items"]] == [i["key"] for i in items[1:]]
        assert state(later)["last"] == items[0]["key"]


def test_what_follows_is_told_with_how_far_it_is(served: RunningStudio) -> None:
    for item in upcoming(served, 8)["items"]:
        judge(served, item, "right")
    told = state(served, precision="0.8")
    assert told["progress"]["judged_by_me"] == 8
    assert told["certificate"]["precision"] == 0.8
    assert "80 %" in told["certificate"]["told"]
    assert told["estimates"]["labels"] == 8
    assert {"precision", "recall", "threshold"} <= set(told["estimates"]["points"][0])


def test_a_wrong_detail_counts_as_the_page_says(served: RunningStudio) -> None:
    for item in upcoming(served, 6)["items"]:
        judge(served, item, "partly")
    strict, mild = (state(served, partly=partly)["estimates"]["current"] for partly in ("", "1"))
    assert strict["precision"]["value"] == 0
    assert mild["precision"]["value"] == 1


def test_a_choice_of_rows_is_reviewed(served: RunningStudio) -> None:
    settings = {"by": "search", "rows": [0, 1, 2]}
    items = upcoming(served, 50, settings=settings)["items"]
    assert {item["row_number"] for item in items} <= {0, 1, 2}
    assert "in the 3 rows" in state(served, settings=json.dumps(settings).replace(" ", ""))["scope"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reviewer": "  "}, "reviewer is empty"),
        ({"reviewer": "x" * 100}, "reviewer has 100 letters"),
        ({"settings": {"by": "magic"}}, "by is 'magic'"),
        ({"settings": {"bye": 1}}, "did you mean by"),
        ({"settings": {"threshold": 3}}, "threshold"),
        ({"settings": {"size": "many"}}, "size is 'many'"),
        ({"settings": {"by": "search", "rows": [10**9]}}, "there is no row"),
        ({"settings": [1]}, "settings must be an object"),
        ({"count": 0}, "count must be"),
    ],
)
def test_what_cannot_be_reviewed_is_told_in_a_line(
    changes: dict[str, Any], message: str, served: RunningStudio
) -> None:
    answer = served.ask("/api/review/next", {**ANN, **changes})
    assert 400 <= answer.status < 500
    assert message in answer.error


def test_a_verdict_on_another_text_is_refused(served: RunningStudio, scored: str) -> None:
    (item,) = upcoming(served, 1)["items"]
    assert judge(served, {**item, "text": "another"}, "right").status == 409
    assert judge(served, {**item, "key": "absent/web/0"}, "right").status == 400
    assert judge(served, item, "perhaps").status == 400
    assert records(scored) == []


def test_a_table_without_scores_says_what_to_do(
    tmp_path: Path, world_rows: list[PairRow], make_studio: Callable[..., Studio]
) -> None:
    PairTable.create(tmp_path / "plain.lance", world_rows[:3])
    with serving(make_studio(tmp_path / "plain.lance")) as running:
        assert "capfilt run" in running.ask("/api/review/choices").json()["problem"]
        assert running.ask("/api/review/next", {**ANN, "count": 1}).status == 400
