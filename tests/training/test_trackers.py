"""Real trackers, without a network: what a run told them is read back."""

import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from openblip.runtime.errors import OpenBlipWarning, RecipeError
from openblip.training import trackers
from openblip.training.metrics_log import read_metrics
from openblip.training.recipe import Recipe
from openblip.training.run import train
from openblip.training.trackers import Tracker, TrackerThread, open_trackers

MakeRecipe = Callable[..., Recipe]
SETTINGS = {"train.seed": 3, "task": "pretrain"}


def two_starts(name: str, run_dir: Path) -> str:
    """A run that was stopped after step 2 and went on to step 3; returns the tracker's id of it."""
    warnings: list[str] = []
    for first, last, state in ((1, 2, "interrupted"), (3, 3, "finished")):
        with open_trackers((name,), run_dir, SETTINGS, warnings.append) as opened:  # type: ignore[arg-type]
            for step in range(first, last + 1):
                opened.threads[0].log(step, {"train/loss": step / 4})
            opened.threads[0].alert(last, "alarm", "the loss jumped")
            opened.state, opened.results = state, {"final/loss": last / 4}
        if name == "wandb":
            # It names the files of a start by the second.
            time.sleep(1.05 - time.time() % 1.0)
    assert warnings == []
    return (run_dir / "trackers" / f"{name}.id").read_text()


def wandb_records(file: Path) -> Iterator[Any]:
    """What an offline run of wandb has written: a log in LevelDB's format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, block, parts = file.read_bytes(), 7, 32768, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        # Whole, first, middle or last part of a record.
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_id = two_starts("wandb", tmp_path)
    files = sorted((tmp_path / "trackers" / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    records = [record for file in files for record in wandb_records(file)]

    def items(updates: Any) -> dict[str, str]:
        return {
            "/".join([item.key, *item.nested_key]).strip("/"): item.value_json for item in updates
        }

    history = [items(record.history.item) for record in records if record.HasField("history")]
    assert [(line["step"], line["train/loss"]) for line in history] == [
        ("1", "0.25"),
        ("2", "0.5"),
        ("3", "0.75"),
    ]
    (run, *_) = (record.run for record in records if record.HasField("run"))
    assert (run.run_id, run.project, run.display_name) == (run_id, "openblip", tmp_path.name)
    assert items(run.config.update)["train.seed"] == "3"
    alerts = [record.alert for record in records if record.HasField("alert")]
    assert next((a.title, a.text) for a in alerts) == ("alarm at step 2", "the loss jumped")
    summary: dict[str, str] = {}
    for record in records:
        summary.update(items(record.summary.update))
    assert (summary["final/loss"], summary["state"]) == ("0.75", '"finished"')


def test_mlflow_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    # A database needs the whole of MLflow; the client alone writes files or to a server.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "walls")
    run_id = two_starts("mlflow", tmp_path)
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("walls").experiment_id])
    assert run.info.run_id == run_id
    assert (run.info.run_name, run.info.status) == (tmp_path.name, "FINISHED")
    history = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert run.data.metrics["final/loss"] == 0.75
    assert run.data.params["train.seed"] == "3"
    assert run.data.tags["alarm at step 2"] == "the loss jumped"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A project of trackio that is this test's own."""
    # The folder is chosen when trackio is first imported.
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    pytest.importorskip("trackio")
    name = f"walls-{time.time_ns()}"
    monkeypatch.setenv("TRACKIO_PROJECT", name)
    return name


def test_trackio_in_a_folder(tmp_path: Path, project: str) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    run_id = two_starts("trackio", tmp_path)
    logs = SQLiteStorage.get_logs(project, run_id)
    history = [(line["step"], line["train/loss"]) for line in logs if "train/loss" in line]
    assert history == [(1, 0.25), (2, 0.5), (3, 0.75)]
    results = [(line["step"], line["final/loss"]) for line in logs if "final/loss" in line]
    assert results == [(2, 0.5), (3, 0.75)]
    alerts = SQLiteStorage.get_alerts(project)
    assert {alert["title"] for alert in alerts} == {"alarm at step 2", "alarm at step 3"}
    assert SQLiteStorage.get_run_config(project, run_id)["train.seed"] == 3


def test_a_run_tells_its_tracker_everything(
    make_recipe: MakeRecipe, tmp_path: Path, project: str
) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    train(make_recipe(trackers=("trackio",)), tmp_path / "run", quiet=True)
    run_id = (tmp_path / "run" / "trackers" / "trackio.id").read_text()
    told = SQLiteStorage.get_logs(project, run_id)
    lines = read_metrics(tmp_path / "run")
    losses = [(line["step"], line["train/itm"]) for line in told if "train/itm" in line]
    assert losses == [(line["step"], line["itm"]) for line in lines]
    assert (told[-1]["final/itm"], told[-1]["steps"]) == (lines[-1]["itm"], 4)
    assert SQLiteStorage.get_run_config(project, run_id)["model.vision.width"] == 16


class Unreliable:
    """A service that takes a while for one report and fails at the next."""

    run_id = "7"
    delay = 0.0

    def __init__(
        self, folder: Path, name: str, settings: Mapping[str, Any], run_id: str | None
    ) -> None:
        self.num_reports = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        time.sleep(self.delay)
        if step == 2:
            raise ConnectionError("no route to host\nmore")

    def alert(self, step: int, title: str, text: str) -> None: ...

    def finish(self, state: str, results: Mapping[str, float]) -> None: ...


def test_a_tracker_that_fails_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    opener: Callable[..., Tracker] = Unreliable
    tracker = TrackerThread("service", tmp_path, SETTINGS, told.append, opener)
    for step in range(1, 6):
        tracker.log(step, {"loss": 1.0})
    tracker.finish("finished", {})
    assert told == [
        "tracker service is given up, training goes on: ConnectionError: no route to host"
    ]


def test_a_tracker_that_is_slow_delays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unreliable, "delay", 5.0)
    monkeypatch.setattr(trackers, "_PATIENCE_SECONDS", 0.05)
    told: list[str] = []
    tracker = TrackerThread("service", tmp_path, SETTINGS, told.append, Unreliable)
    for _ in range(100):
        tracker.log(1, {"loss": 1.0})
    tracker.finish("finished", {})
    assert told == [
        "tracker service is given up, training goes on: it has not taken all values within 0 s"
    ]


def test_a_run_goes_on_without_a_tracker_that_cannot_be_reached(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    recipe = make_recipe(trackers=("mlflow",))
    with pytest.warns(OpenBlipWarning, match="tracker mlflow is given up, training goes on"):
        assert train(recipe, tmp_path, quiet=True).steps == 4


def test_a_tracker_that_is_not_installed_is_named_before_training(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'openblip\[wandb\]'"):
        train(make_recipe(trackers=("wandb",)), tmp_path, quiet=True)
    assert not (tmp_path / "metrics.jsonl").exists()
