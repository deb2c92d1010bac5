"""Jobs: the commands that go on where they were, started from the page or from a terminal."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from openblip.capfilt.job import NEW_COLUMNS
from openblip.cli import main
from openblip.runtime.errors import DataError
from openblip.studio.app import Studio
from openblip.studio.jobs import Jobs, OfferedModel, Workplace
from openblip.studio.processes import JobFolder
from openblip.table.table import PairRow, PairTable

from .conftest import RunningStudio, serving, wait_until


@pytest.fixture
def workplace(tmp_path: Path, pair_rows: Callable[..., list[PairRow]]) -> Workplace:
    PairTable.create(tmp_path / "pairs.lance", pair_rows(3))
    return Workplace(
        table=str(tmp_path / "pairs.lance"),
        folder=None,
        models={
            "captioner: c": OfferedModel("models/c", frozenset({"lm"})),
            "filter: f": OfferedModel("models/f", frozenset({"itc", "itm"})),
        },
    )


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("demo", {}, "no job is called 'demo'"),
        ("caption", {"model": "/etc/passwd"}, "none of the models that the studio was started"),
        ("caption", {"model": "captioner: c", "output": "../out.jsonl"}, "the name of a file"),
        ("caption", {"model": "captioner: c", "output": "out.py"}, "the name of a file"),
        ("caption", {"model": "captioner: c", "output": ".out.jsonl"}, "the name of a file"),
        ("caption", {"model": "captioner: c", "--debug": 1}, "'--debug' is no setting"),
        ("caption", {"model": "captioner: c", "num_captions": 0}, "from 1 to 10"),
        ("caption", {"model": "captioner: c", "num_captions": "1; ls"}, "from 1 to 10"),
        ("caption", {"model": "captioner: c", "method": "magic"}, "none of beam"),
        (
            "caption",
            {"model": "captioner: c", "method": "greedy", "num_captions": 2},
            "finds one caption",
        ),
        ("capfilt", {"captioner": "captioner: c"}, "filter is None"),
        ("index", {"model": ["filter: f"]}, "none of the models"),
        ("index", {"model": "captioner: c"}, "was not trained for embeddings"),
        (
            "capfilt",
            {"captioner": "captioner: c", "filter": "captioner: c"},
            "filter is captioner: c, which was not trained for scores",
        ),
    ],
)
def test_only_known_work_with_known_models_and_places_is_started(
    kind: str, given: dict[str, Any], message: str, workplace: Workplace
) -> None:
    jobs = Jobs(workplace)
    with pytest.raises(DataError, match=message):
        jobs.start(kind, given)
    assert jobs.told()["jobs"] == []


def test_a_folder_is_no_table_for_capfilt(tmp_path: Path) -> None:
    jobs = Jobs(Workplace(table=str(tmp_path / "t"), folder=tmp_path, models={}))
    with pytest.raises(DataError, match="import the folder with its texts first"):
        jobs.start("capfilt", {})


@pytest.fixture
def served(
    tmp_path: Path, world_rows: list[PairRow], make_studio: Callable[..., Studio]
) -> Iterator[RunningStudio]:
    """A studio over a table of its own, without scores or index."""
    uri = tmp_path / "pairs.lance"
    PairTable.create(uri, world_rows)
    with serving(make_studio(uri)) as running:
        yield running
    jobs = JobFolder(Path(f"{uri}.jobs"))
    for job in jobs.jobs():
        if jobs.state(job) == "running":
            jobs.stop(job.id)
            wait_until(lambda job=job: jobs.state(job) != "running", 60)  # type: ignore[misc]


def model_of(running: RunningStudio, role: str) -> str:
    models = running.ask("/api/jobs/forms").json()["models"]
    return str(next(one["name"] for one in models if one["name"].startswith(role)))


def job_of(running: RunningStudio, job_id: str) -> dict[str, Any]:
    jobs = running.ask("/api/jobs").json()["jobs"]
    return dict(next(job for job in jobs if job["id"] == job_id))


def ended(running: RunningStudio, job_id: str) -> dict[str, Any]:
    wait_until(lambda: job_of(running, job_id)["state"] != "running", 120)
    return job_of(running, job_id)


def start(running: RunningStudio, kind: str, **settings: object) -> str:
    answer = running.ask("/api/jobs", {"kind": kind, "settings": settings})
    assert answer.status == 200, answer.body
    return str(answer.json()["id"])


def test_captions_are_written_stopped_and_go_on_by_the_same_command(
    served: RunningStudio, tmp_path: Path, world_rows: list[PairRow]
) -> None:
    output, model = tmp_path / "mine.jsonl", model_of(served, "captioner")
    job_id = start(served, "caption", model=model, output="mine.jsonl")
    wait_until(lambda: output.is_file() and output.stat().st_size > 0, 120)
    served.ask(f"/api/jobs/{job_id}/stop", {})
    job = ended(served, job_id)
    # On a fast machine it may have ended before the signal.
    assert job["state"] in ("stopped", "finished")
    before = output.read_text().splitlines()
    assert len(before) >= 1
    # The small model leaves some captions empty, of which the exit code tells.
    main(job["command"].split()[1:])
    after = output.read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == len(world_rows)

    def seen() -> tuple[int, bool]:
        works = served.ask("/api/jobs").json()["seen"]
        (work,) = [work for work in works if work["kind"] == "caption"]
        return work["done"], work["is_running"]

    wait_until(lambda: seen() == (len(world_rows), False))


def test_a_job_tells_how_far_it_is_is_no_second_one_and_is_found_by_a_later_studio(
    served: RunningStudio, tmp_path: Path, make_studio: Callable[..., Studio]
) -> None:
    # More than the beams that there are by default.
    settings = {"model": model_of(served, "captioner"), "num_captions": 4}
    job_id = start(served, "caption", **settings)
    # The same work is not done twice at once.
    answer = served.ask("/api/jobs", {"kind": "caption", "settings": settings})
    assert answer.status == 400
    assert "running already" in answer.error
    wait_until(lambda: job_of(served, job_id)["progress"] != {}, 120)
    with serving(make_studio(tmp_path / "pairs.lance")) as later:
        assert job_of(later, job_id)["id"] == job_id
        job = ended(later, job_id)
    assert job["state"] == "finished"
    assert job["progress"]["done"] == job["progress"]["total"] == 60
    assert "captioned" in job["lines"][-1]
    again = served.ask(f"/api/jobs/{job_id}/again", {}).json()["id"]
    assert "60 skipped" in ended(served, again)["lines"][-1]


def test_capfilt_and_an_index_are_made_from_the_page(served: RunningStudio, tmp_path: Path) -> None:
    capfilt = start(
        served,
        "capfilt",
        captioner=model_of(served, "captioner"),
        filter=model_of(served, "filter"),
        processes=1,
    )
    assert ended(served, capfilt)["state"] == "finished"
    assert set(NEW_COLUMNS) <= set(PairTable.open(tmp_path / "pairs.lance").columns)
    index = start(served, "index", model=model_of(served, "filter"))
    assert ended(served, index)["state"] == "finished"
    assert served.ask("/api/jobs/forms").json()["index"] is not None

    def seen(kind: str) -> dict[str, Any]:
        found = {work["kind"]: work for work in served.ask("/api/jobs").json()["seen"]}
        return dict(found.get(kind, {}))

    wait_until(lambda: seen("index").get("done") == 60)
    assert seen("index")["total"] == 60
    assert seen("capfilt")["note"] == "finished"


def test_a_capfilt_job_of_a_terminal_is_seen_while_it_runs(
    served: RunningStudio, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    words = ["capfilt", "run", str(tmp_path / "pairs.lance"), "--processes", "1"]
    words += ["--captioner", checkpoints["captioner"], "--filter", checkpoints["filter"]]
    words += ["--batch-size", "1", "--num-captions", "8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "openblip", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def running() -> list[dict[str, Any]]:
        assert process.poll() is None, "it has ended unseen"
        seen = served.ask("/api/jobs").json()["seen"]
        return [work for work in seen if work["is_running"]]

    try:
        wait_until(running, 120)
        (work,) = running()
        assert (work["kind"], work["pid"], work["total"]) == ("capfilt", process.pid, 60)
    finally:
        process.terminate()
        process.wait(60)


def test_there_is_no_job_by_another_name(served: RunningStudio) -> None:
    for path in ("/api/jobs/absent/stop", "/api/jobs/..%2f..%2fx/stop", "/api/jobs/absent/again"):
        answer = served.ask(path, {})
        assert answer.status in (400, 404), path


def test_without_a_collection_there_is_nothing_to_work_on(
    make_studio: Callable[..., Studio],
) -> None:
    with serving(make_studio(None)) as running:
        assert running.ask("/api/jobs").status == 409


def test_what_a_job_left_is_seen_with_its_rate(tmp_path: Path) -> None:
    from openblip.runtime.locks import only_one
    from openblip.studio.traces import Traces

    file = tmp_path / "captions.csv"
    file.write_text("image,caption\na.jpg,one\n")
    (tmp_path / "captions.csv.settings.json").write_text(json.dumps({}))
    traces = Traces(str(tmp_path / "pairs.lance"), tmp_path)
    with only_one(file, "writing captions into"):
        assert [(work.done, work.is_running) for work in traces.seen()] == [(1, True)]
        with file.open("a") as stream:
            stream.write("b.jpg,two\nc.jpg,three\n")
        time.sleep(0.05)
        (work,) = traces.seen()
        assert work.done == 3
        assert work.rate > 0
    assert [work.is_running for work in traces.seen()] == [False]
