"""Captioners of `transformers`: in the job itself, and behind the server that it brings along."""

import importlib.util
import logging
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.capfilt.captioners import captioner_print
from openblip.capfilt.endpoint import Requests
from openblip.capfilt.job import CapFiltSettings
from openblip.capfilt.run import run_capfilt
from openblip.inference.decoding import Decoding
from openblip.jobs.pools import RayCluster
from openblip.runtime.errors import CheckpointError
from openblip.table.table import PairRow, PairTable

from ..s3_server import S3Proxy
from .jobs import columns, job_settings, make_table
from .library_models import KINDS, WORDS, save_llava
from .test_run import copy_of

pytest.importorskip("transformers")
Models = dict[str, str]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model of each kind."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    place = tmp_path_factory.mktemp("library")
    return {kind: str(save(place / kind)) for kind, save in KINDS.items()}


def settings_of(
    models: Models, folder: str, method: str = "nucleus", **changes: object
) -> CapFiltSettings:
    decoding = Decoding(method=method, num_beams=2)
    return job_settings(
        models, captioner=f"hf:{folder}", decoding=decoding, max_new_tokens=6, **changes
    )


def written(table: PairTable) -> list[list[str]]:
    return [own for own in columns(table.uri)["synthetic"].to_pylist() if own is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "count"), [("nucleus", 2), ("beam", 2), ("greedy", 1)])
def test_each_kind_of_model_writes_by_each_method(
    table: PairTable, models: Models, folders: dict[str, str], kind: str, method: str, count: int
) -> None:
    settings = settings_of(models, folders[kind], method, num_captions=count)
    result = run_capfilt(table.uri, settings, processes=1)
    assert result.errors == 1
    texts = [text for own in written(table) for text in own]
    assert texts
    # Neither what the model was told nor what only a tokenizer knows.
    assert {word for text in texts for word in text.split()} <= {*WORDS, "<unk>"}
    assert max(len(text.split()) for text in texts) <= 6
    names = {n for own in columns(table.uri)["synthetic_captioner"].to_pylist() for n in own or ()}
    assert names == {captioner_print(f"hf:{folders[kind]}", table.uri)}


@pytest.mark.slow
def test_the_number_of_processes_changes_no_byte(
    table: PairTable, models: Models, folders: dict[str, str], tmp_path: Path
) -> None:
    settings = settings_of(models, folders["llava"], num_captions=2)
    run_capfilt(table.uri, settings, processes=1)
    other = copy_of(table, tmp_path)
    run_capfilt(other.uri, settings, processes=2)
    assert columns(other.uri).equals(columns(table.uri))


def test_a_model_of_others_captions_a_table_in_an_object_store(
    rows: list[PairRow], models: Models, folders: dict[str, str], s3: S3Proxy, tmp_path: Path
) -> None:
    settings = settings_of(models, folders["llava"])
    found = []
    for place in (str(tmp_path / "pairs.lance"), f"{s3.bucket}/pairs.lance"):
        table = make_table(place, rows, 2)
        run_capfilt(table.uri, settings, processes=1)
        found.append(columns(table.uri))
    assert found[0].equals(found[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_workers_of_ray_write_what_one_process_writes(
    table: PairTable, models: Models, folders: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    settings = settings_of(models, folders["llava"], num_captions=2)
    calm = copy_of(table, tmp_path)
    run_capfilt(calm.uri, settings, processes=1)
    run_capfilt(table.uri, settings, ray=RayCluster(workers=2))
    assert columns(table.uri).equals(columns(calm.uri))


def test_draws_are_those_of_the_row_in_whatever_batch_it_is(
    table: PairTable, models: Models, folders: dict[str, str], tmp_path: Path
) -> None:
    settings = settings_of(models, folders["llava"], num_captions=2)
    run_capfilt(table.uri, settings, processes=1)
    other = copy_of(table, tmp_path)
    run_capfilt(other.uri, replace(settings, batch_size=3), processes=1)
    texts = written(table)
    assert written(other) == texts
    assert len({text for own in texts for text in own}) > len(texts) / 2
    other_seed = settings_of(models, folders["llava"], num_captions=2, seed=1)
    run_capfilt(other.uri, other_seed, processes=1)
    assert written(other) != texts


def test_the_instruction_and_the_weights_decide_which_job_it_is(
    table: PairTable, models: Models, folders: dict[str, str], tmp_path: Path
) -> None:
    settings = settings_of(models, folders["llava"], "greedy")
    run_capfilt(table.uri, settings, processes=1)
    before = written(table)
    told = settings_of(models, folders["llava"], "greedy", instruction="the dog under two cat")
    assert run_capfilt(table.uri, told, processes=1).computed == len(table)
    assert written(table) != before
    # Where a model lies does not count.
    other = tmp_path / "elsewhere"
    other.symlink_to(folders["llava"])
    told = settings_of(models, str(other), "greedy", instruction="the dog under two cat")
    assert run_capfilt(table.uri, told, processes=1).computed == 0


def test_a_folder_that_transformers_cannot_read_is_said(
    table: PairTable, models: Models, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"hf:.*no config\.json"):
        run_capfilt(table.uri, settings_of(models, str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="transformers cannot read it"):
        run_capfilt(table.uri, settings_of(models, str(tmp_path)), processes=1)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Address and model of a `transformers serve`."""
    lacking = [n for n in ("fastapi", "openai", "uvicorn") if importlib.util.find_spec(n) is None]
    if lacking:
        pytest.skip(f"transformers[serving] is not installed: no {', '.join(lacking)}")
    folder = save_llava(tmp_path / "served")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    words += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 600
        while time.monotonic() < end:
            assert process.poll() is None, (tmp_path / "serve.log").read_text()
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(1200)
def test_a_server_of_transformers_captions_a_table(
    table: PairTable, models: Models, served: tuple[str, str]
) -> None:
    url, model = served
    settings = job_settings(
        models,
        captioner=(models["captioner"], f"openai:{url}#{model}"),
        max_new_tokens=6,
    )
    result = run_capfilt(
        table.uri, settings, processes=1, requests=Requests(at_once=3, seconds=600.0)
    )
    found = PairTable.open(table.uri)
    rows = [r for r in found.take(range(len(found))).to_pylist() if r["synthetic"] is not None]
    assert result.errors == 1
    assert rows
    for row in rows:
        theirs = [
            text
            for text, name in zip(row["synthetic"], row["synthetic_captioner"], strict=True)
            if name == f"openai:{model}"
        ]
        # A random model may end at once: then the row says so.
        assert theirs or "its text is empty" in row["synthetic_error"]
        assert {word for text in theirs for word in text.split()} <= {*WORDS, "<unk>"}
        assert len(row["synthetic_itm"]) == len(row["synthetic"])
    assert result.refused < len(rows)
