"""Captions from a server of chat completions, whatever the server does."""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from openblip.capfilt import endpoint
from openblip.capfilt.captioners import INSTRUCTION
from openblip.capfilt.endpoint import EndpointError, Requests, parse_address
from openblip.capfilt.job import CapFiltJob, CapFiltSettings, job_status
from openblip.capfilt.run import CapFiltResult, run_capfilt
from openblip.capfilt.texts import add_texts
from openblip.cli import main
from openblip.inference.decoding import Decoding
from openblip.jobs.pools import RayCluster
from openblip.runtime.errors import RecipeError
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView

from ..s3_server import S3Proxy
from .chat_server import ChatServer, Reply, chat_server, image_of, is_grey
from .jobs import columns, job_settings, make_table, running, wait_until
from .test_run import copy_of

pytest.importorskip("httpx")
Models = dict[str, str]
SOON = Requests(at_once=4, patience=0.5)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as made:
        yield made


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries that a test can wait for."""
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(endpoint, "_LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(endpoint, "_TELL_AFTER", 0.2)


def asking(server: ChatServer, models: Models, **changes: object) -> CapFiltSettings:
    return job_settings(models, captioner=f"openai:{server.url}#tiny", **changes)


def run(
    table: PairTable, settings: CapFiltSettings, requests: Requests = SOON, processes: int = 1
) -> CapFiltResult:
    return run_capfilt(
        table.uri, settings, processes=processes, save_seconds=0.0, requests=requests
    )


def web_rows(table: PairTable) -> list[dict[str, object]]:
    found = PairTable.open(table.uri)
    rows = found.take(range(len(found))).to_pylist()
    return [row for row in rows if row["origin"] == "web" and row["capfilt_error"] is None]


def test_each_image_goes_to_the_server_once_with_its_seed_and_the_instruction(
    table: PairTable, models: Models, server: ChatServer, tmp_path: Path
) -> None:
    settings = asking(server, models, num_captions=2, image_side=24, max_new_tokens=9)
    result = run(table, settings)
    rows = web_rows(table)
    assert (result.errors, result.refused) == (1, 0)
    assert len(server.bodies) == 2 * len(rows)
    body = server.bodies[0]
    assert body["model"] == "tiny"
    assert body["messages"][0]["content"][1]["text"] == INSTRUCTION
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (9, 1.0, 0.9)
    assert max(image_of(body).size) == 24
    # Each text is a draw of its own.
    assert len({body["seed"] for body in server.bodies}) == len(server.bodies)
    for row in rows:
        assert row["synthetic_captioner"] == ["openai:tiny"] * 2
        assert row["synthetic_logprob"] == [None, None]
        assert len(row["synthetic_itm"]) == 2
        assert row["synthetic_error"] is None
    other = copy_of(table, tmp_path)
    run(other, settings, processes=2)
    assert columns(other.uri).equals(columns(table.uri))
    view = CaptionView(sources=("synthetic",))
    assert view.resolve(PairTable.open(table.uri)).num_admitted == {"synthetic": 2 * len(rows)}


def test_each_captioner_is_told_its_own_instruction(
    table: PairTable, models: Models, server: ChatServer
) -> None:
    settings = asking(server, models)
    both = (settings.captioners[0], f"{settings.captioners[0]}-two")
    settings = replace(settings, captioner=both, instruction=("Name it.", "Count them."))
    run(table, settings)
    told = {(b["model"], b["messages"][0]["content"][1]["text"]) for b in server.bodies}
    assert told == {("tiny", "Name it."), ("tiny-two", "Count them.")}
    assert run(table, settings).computed == 0
    run(table, replace(settings, instruction="Name it."))
    assert {b["messages"][0]["content"][1]["text"] for b in server.bodies[-4:]} == {"Name it."}
    with pytest.raises(RecipeError, match="3 instructions for 2 captioners"):
        replace(settings, instruction=("a", "b", "c"))
    with pytest.raises(RecipeError, match="2 instructions for 0 captioners"):
        replace(settings, captioner=models["captioner"], instruction=("a", "b"))


def test_instructions_are_flags_of_one_value_each(
    table: PairTable, models: Models, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    captioner = f"openai:{server.url}#tiny"
    words = ["--captioner", captioner, f"{captioner}2", "--filter", models["filter"]]
    told = ["--instruction", "Name it.", "--instruction", "Count them."]
    assert main(["capfilt", "run", *told, table.uri, *words, "--processes=1"]) == 0
    assert {body["messages"][0]["content"][1]["text"] for body in server.bodies} == {*told[1::2]}
    # A flag of several values takes the table, too, where it stands behind them.
    swallowed = ["--captioner", captioner, table.uri, "--filter", models["filter"]]
    assert main(["capfilt", "run", *swallowed]) == 2
    assert "--filter has no model" in capsys.readouterr().err


def test_requests_of_many_batches_are_under_way_at_once(
    table: PairTable, models: Models, server: ChatServer
) -> None:
    server.choose = lambda number, body: Reply(seconds=0.2)
    run(table, asking(server, models, batch_size=1), Requests(at_once=6))
    assert server.most_at_once == 6


def test_what_cannot_be_had_again_is_said_wherever_a_job_is_told_of(
    table: PairTable, models: Models, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run(table, asking(server, models))
    stored = json.loads(PairTable.open(table.uri).metadata["capfilt"])
    assert "may write something else" in stored["unrepeatable"][0]
    assert main(["capfilt", "status", table.uri, "--price-per-million-tokens", "1", "10"]) == 0
    told = capsys.readouterr().out
    assert "not repeatable: openai:" in told
    assert "servers read" in told
    assert "a million images cost" in told
    status = job_status(table.uri, price_per_million_tokens=(1.0, 10.0))
    share = len(web_rows(table)) / len(table)
    assert status.tokens_read == pytest.approx(100 * share)
    assert status.cost_per_million == pytest.approx((100 * 1 + 7 * 10) * share)


@pytest.mark.parametrize(
    "fault",
    [
        Reply(429, content=b"slow down", headers={"Retry-After": "0.05"}),
        Reply(500, content=b'{"error": {"message": "out of memory"}}'),
        Reply(503, content=b""),
        Reply(cut=True),
        Reply(content=b"<html>no json</html>"),
        Reply(content=b'{"choices": []}'),
        Reply(seconds=2.0),
    ],
    ids=["busy", "error", "unavailable", "cut", "no json", "no choice", "hangs"],
)
def test_a_storm_of_faults_changes_no_result(
    table: PairTable, models: Models, server: ChatServer, tmp_path: Path, fault: Reply
) -> None:
    calm = copy_of(table, tmp_path)
    run(calm, asking(server, models))
    tries: Counter[str] = Counter()

    def choose(number: int, body: dict[str, object]) -> Reply:
        # An image that fails again and again while others are answered is to blame: none here does.
        tries[asked := json.dumps(body)] += 1
        return fault if number % 3 == 0 and tries[asked] <= 2 else Reply()

    server.choose = choose
    requests = Requests(at_once=4, seconds=0.5, patience=60.0)
    assert run(table, asking(server, models), requests).refused == 0
    assert columns(table.uri).equals(columns(calm.uri))


def test_a_server_is_asked_no_sooner_than_it_says(
    table: PairTable, models: Models, server: ChatServer
) -> None:
    asked: list[float] = []

    def choose(number: int, body: dict[str, object]) -> Reply:
        asked.append(time.monotonic())
        return Reply(429, headers={"Retry-After": "1"}) if number == 0 else Reply()

    server.choose = choose
    run(table, asking(server, models), Requests(at_once=1, patience=60.0))
    assert asked[1] - asked[0] >= 1.0


def test_a_server_that_wants_to_be_asked_later_than_anybody_waits_is_not_asked_sooner(
    table: PairTable, models: Models, server: ChatServer
) -> None:
    asked: list[float] = []

    def choose(number: int, body: dict[str, object]) -> Reply:
        asked.append(time.monotonic())
        return Reply(429, headers={"Retry-After": "3600"})

    server.choose = choose
    with pytest.raises(EndpointError, match=r"has not answered for .*HTTP 429.*--patience"):
        run(table, asking(server, models), Requests(at_once=1, patience=1.0))
    assert len(asked) == 1


def test_a_row_that_is_refused_keeps_its_other_texts_and_has_the_reason(
    table: PairTable, models: Models, server: ChatServer
) -> None:
    rows = PairTable.open(table.uri).take(range(len(table))).to_pylist()
    first = next(row for row in rows if row["origin"] == "web")["id"]
    refused: list[str] = []

    def choose(number: int, body: dict[str, object]) -> Reply:
        # Of two rows with the same image the seeds differ.
        image = json.dumps(body)
        if not refused:
            refused.append(image)
        if image in refused:
            return Reply(400, content=b'{"error": {"message": "content policy"}}')
        return Reply()

    server.choose = choose
    both = (models["captioner"], f"openai:{server.url}#tiny")
    settings = job_settings(models, captioner=both)
    # One after the other: the first row is the one that is refused.
    result = run(table, settings, Requests(at_once=1))
    assert (result.refused, result.errors) == (1, 1)
    row = next(row for row in web_rows(table) if row["id"] == first)
    assert row["synthetic_error"] == "openai:tiny: HTTP 400: content policy"
    assert len(row["synthetic"]) == len(row["synthetic_itm"]) == 1
    assert len(row["captions_itm"]) == len(row["captions"])
    # It was asked whether the server takes anything at all.
    assert sum(map(is_grey, server.bodies)) == 1


@pytest.mark.parametrize("said", [401, 404, 400])
def test_a_server_that_refuses_everything_stops_the_job_and_no_row_is_to_blame(
    table: PairTable, models: Models, server: ChatServer, said: int
) -> None:
    server.choose = lambda number, body: Reply(said, content=b'{"detail": "no such model"}')
    settings = asking(server, models)
    with pytest.raises(EndpointError, match=f"refuses every request.*HTTP {said}: no such model"):
        run(table, settings)
    server.choose = lambda number, body: Reply()
    assert run(table, settings).refused == 0


def test_an_endless_row_of_refused_images_stops_the_job(
    table: PairTable, models: Models, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "MAX_REFUSALS", 6)
    server.choose = lambda number, body: Reply(200 if is_grey(body) else 413, content=None)
    with pytest.raises(EndpointError, match="refused 6 images in a row, the last with: HTTP 413"):
        run(table, asking(server, models))


def test_an_image_with_which_the_server_cannot_cope_is_left_and_the_others_go_on(
    table: PairTable, models: Models, server: ChatServer
) -> None:
    poison: list[str] = []

    def choose(number: int, body: dict[str, object]) -> Reply:
        # Of two rows with the same image the seeds differ.
        image = json.dumps(body)
        if not poison:
            poison.append(image)
        return Reply(500, content=b"crash") if image in poison else Reply()

    server.choose = choose
    result = run(table, asking(server, models), Requests(at_once=2, patience=60.0))
    assert result.refused == 1
    assert [row["synthetic_error"] for row in web_rows(table) if row["synthetic_error"]] == [
        f"openai:tiny: failed {endpoint.MAX_FAILURES} times, the last time: HTTP 500: crash"
    ]


def test_an_empty_text_and_a_filter_of_contents_are_reasons(
    table: PairTable, models: Models, server: ChatServer
) -> None:
    empty = Reply(text="<think>what is it?</think>", ended="length")
    server.choose = lambda number, body: empty if number == 0 else Reply(ended="content_filter")
    result = run(table, asking(server, models), Requests(at_once=1))
    assert result.refused == len(web_rows(table))
    reasons = {row["synthetic_error"] for row in web_rows(table)}
    assert reasons == {
        "openai:tiny: its text is empty (finish_reason length; raise --max-new-tokens)",
        "openai:tiny: it refuses (content_filter)",
    }


def test_a_server_that_goes_away_is_waited_for_with_a_line_that_says_so(
    table: PairTable, models: Models, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def choose(number: int, body: dict[str, object]) -> Reply:
        if number == 6:
            server.stop()
            threading.Timer(3.0, server.start).start()
        return Reply()

    server.choose = choose
    result = run(table, asking(server, models), Requests(at_once=2, patience=60.0))
    assert (result.refused, result.errors) == (0, 1)
    told = capsys.readouterr().err
    assert f"{server.url} does not answer (" in told
    assert f"{server.url} answers again" in told


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_server_that_stays_away_stops_the_job_which_goes_on_where_it_was(
    table: PairTable, models: Models, server: ChatServer, tmp_path: Path, processes: int
) -> None:
    calm = copy_of(table, tmp_path)
    run(calm, asking(server, models, batch_size=2))
    num_asked = len(server.bodies)
    server.bodies.clear()

    def choose(number: int, body: dict[str, object]) -> Reply:
        if number == 8:
            server.stop()
        return Reply()

    server.choose = choose
    settings = asking(server, models, batch_size=2)
    with pytest.raises(EndpointError, match=r"has not answered .*run the same command to go on"):
        run(table, settings, Requests(at_once=2, patience=0.5), processes)
    pieces = CapFiltJob.prepare(table.uri, settings).folder.names("pieces/")
    assert pieces
    assert job_status(table.uri).is_finished is False
    server.choose = lambda number, body: Reply()
    server.start()
    result = run(table, settings, processes=processes)
    assert 0 < result.computed < result.rows
    assert columns(table.uri).equals(columns(calm.uri))
    # What was finished was not asked for again; what was under way was.
    assert num_asked <= len(server.bodies) < 2 * num_asked


def test_a_job_goes_on_with_the_same_model_at_another_address(
    table: PairTable, models: Models, server: ChatServer
) -> None:
    run(table, asking(server, models))
    with chat_server() as other:
        assert run(table, asking(other, models)).computed == 0
        assert other.bodies == []


def test_a_driver_that_is_killed_asks_for_no_finished_batch_again(
    table: PairTable, models: Models, server: ChatServer, tmp_path: Path
) -> None:
    server.choose = lambda number, body: Reply(seconds=0.1)
    settings = asking(server, models, batch_size=2)
    folder = CapFiltJob.prepare(table.uri, settings).folder
    words = [sys.executable, "-m", "openblip", "capfilt", "run", table.uri]
    words += ["--captioner", settings.captioners[0], "--filter", models["filter"]]
    words += ["--max-length", "12", "--batch-size", "2", "--save-seconds", "0"]
    words += ["--processes", "1", "--requests", "1"]
    with running(words) as process:
        assert wait_until(lambda: len(folder.names("pieces/")) >= 2, process)
        process.kill()
    server.choose = lambda number, body: Reply()
    result = run(table, settings)
    assert 0 < result.computed < result.rows
    calm = copy_of(table, tmp_path)
    run(calm, asking(server, models, batch_size=2, seed=1))
    run(calm, settings)
    assert columns(table.uri).equals(columns(calm.uri))


def test_a_server_and_texts_made_elsewhere_caption_a_table_in_an_object_store(
    rows: list[PairRow], models: Models, server: ChatServer, s3: S3Proxy, tmp_path: Path
) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"id": r.id, "text": "a dog"}) + "\n" for r in rows))
    found = []
    for place in (str(tmp_path / "pairs.lance"), f"{s3.bucket}/pairs.lance"):
        table = make_table(place, rows, 2)
        added = add_texts(table.uri, file, "other")
        assert (added.rows, added.without) == (len(rows), 0)
        both = ("texts:other", f"openai:{server.url}#tiny")
        run(table, job_settings(models, captioner=both))
        assert job_status(table.uri).is_finished
        found.append(columns(table.uri))
    assert found[0].equals(found[1])


@pytest.mark.slow
def test_workers_of_ray_share_the_requests(
    table: PairTable, models: Models, server: ChatServer, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    calm = copy_of(table, tmp_path)
    run(calm, asking(server, models))
    cluster, requests = RayCluster(workers=2), Requests(at_once=4)
    run_capfilt(table.uri, asking(server, models), ray=cluster, requests=requests)
    assert columns(table.uri).equals(columns(calm.uri))


def test_the_key_comes_from_the_environment_and_stands_in_no_file(
    table: PairTable, models: Models, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    requests = replace(SOON, key_of=("127.0.0.1=SOME_KEY", "other.host=NO_KEY"))
    server.choose = lambda number, body: Reply(401, content=b"wrong key sk-secret")
    settings = asking(server, models)
    with pytest.raises(EndpointError, match=r"wrong key \*\*\*"):
        run(table, settings, requests)
    server.choose = lambda number, body: Reply()
    run(table, settings, requests)
    assert set(server.keys) == {"Bearer sk-secret"}
    files = [*Path(table.uri).rglob("*"), *Path(f"{table.uri}.capfilt").rglob("*")]
    assert not [file for file in files if file.is_file() and b"sk-secret" in file.read_bytes()]


def test_without_a_flag_no_key_is_sent(
    table: PairTable, models: Models, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    run(table, asking(server, models))
    assert set(server.keys) == {None}
    with pytest.raises(RecipeError, match="--api-key-of NO_SUCH: there is no such environment"):
        run(table, asking(server, models, seed=1), replace(SOON, key_of=("NO_SUCH",)))


def test_a_server_that_has_renamed_the_limit_is_asked_by_the_new_name(
    table: PairTable, models: Models, server: ChatServer
) -> None:
    def choose(number: int, body: dict[str, object]) -> Reply:
        if "max_tokens" in body:
            return Reply(400, content=b"use 'max_completion_tokens' instead of max_tokens")
        return Reply()

    server.choose = choose
    assert run(table, asking(server, models)).refused == 0


@pytest.mark.parametrize(
    "address", ["http://h/v1", "h/v1#m", "ftp://h/v1#m", "http://#m", "http://key@h/v1#m"]
)
def test_an_address_that_is_none_or_has_a_secret_in_it_is_refused(address: str) -> None:
    with pytest.raises(RecipeError, match="openai:") as caught:
        CapFiltSettings(captioner=f"openai:{address}", filter="f")
    assert "key@" not in str(caught.value)


def test_a_server_has_no_beams_and_stands_once_in_a_job() -> None:
    source = "openai:http://h:1/v1#m"
    assert parse_address("http://h:1/v1/#m").url == "http://h:1/v1"
    with pytest.raises(RecipeError, match="no beam search"):
        CapFiltSettings(captioner=source, filter="f", decoding=Decoding(method="beam"))
    with pytest.raises(RecipeError, match="each once"):
        CapFiltSettings(captioner=(source, "openai:http://other/v1#m"), filter="f")


def test_a_job_of_ours_after_one_of_others_leaves_no_reason_behind(
    table: PairTable, models: Models, server: ChatServer, undisturbed: pa.Table
) -> None:
    run(table, asking(server, models))
    assert "synthetic_error" in PairTable.open(table.uri).columns
    run(table, job_settings(models))
    assert "synthetic_error" not in PairTable.open(table.uri).columns
