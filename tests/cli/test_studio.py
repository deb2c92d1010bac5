"""`openblip studio` as a command: what it refuses, what it prints, how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from openblip.checkpoints.hub import PUBLISHED
from openblip.cli import main
from openblip.table.table import PairRow, PairTable

# A room whose answers take a minute, and which says when they begin: one sleeps, one multiplies in
# PyTorch.
SLOW = """
import sys, time
from openblip.studio import app, routes

def sleeping(asked):
    print("begins", flush=True)
    time.sleep(60)

def computing(asked):
    import torch
    matrix = torch.randn(400, 400)
    print("begins", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        matrix = (matrix @ matrix).softmax(0)

def slow(studio):
    return [routes.get("/api/sleeping", sleeping),
            routes.get("/api/computing", computing),
            routes.get("/api/modules", lambda asked: {"modules": list(sys.modules)})]

app.ROOMS = (*app.ROOMS, app.Room("slow", "Slow", slow))
from openblip.cli import main
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def started(*words: str, code: str = SLOW) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    """The command as a process, with the address that it prints."""
    source = str(Path(__file__).resolve().parents[2] / "src")
    command = [sys.executable, "-c", code, "studio", "--port", "0", "--no-open", *words]
    # A suite in the background ignores Ctrl-C, and its processes would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": source},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        signal.signal(signal.SIGINT, before)
        try:
            assert process.stdout is not None
            told = process.stdout.readline()
            address = re.search(r"http://\S+", told)
            assert address is not None, process.stderr and process.stderr.read()
            yield process, address[0]
        finally:
            process.kill()


def ended(process: "subprocess.Popen[str]") -> tuple[int, float, str]:
    """Exit code, seconds and errors after Ctrl-C."""
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    return process.returncode, time.monotonic() - start, errors


def complaint(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> str:
    assert main(["studio", "--no-open", *words]) == 1
    return capsys.readouterr().err


def test_it_prints_its_address_answers_and_ends_by_ctrl_c() -> None:
    with started() as (process, address):
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert b"openblip studio" in answer.read()
        code, seconds, errors = ended(process)
    assert code == 130
    assert seconds < 5  # a second, where the machine is not busy otherwise
    assert "Traceback" not in errors


def test_without_a_model_the_published_ones_are_offered() -> None:
    with (
        started() as (_, address),
        urllib.request.urlopen(f"{address}api/about", timeout=20) as answer,
    ):
        models = json.load(answer)["models"]
    assert {role: one["model"] for one in models for role in one["roles"]} == {
        "captioner": PUBLISHED["caption"],
        "filter": PUBLISHED["match"],
        "vqa": PUBLISHED["ask"],
    }
    assert all(one["published"] and one["state"] == "not loaded" for one in models)


def test_pytorch_comes_with_the_first_model(tmp_path: Path) -> None:
    PairTable.create(tmp_path / "t.lance", [PairRow("a", image_uri="a.jpg", captions=["a dog"])])
    with started(str(tmp_path / "t.lance"), "--captioner", "no/model") as (_, address):
        for path in ("", "api/rows", "api/rows/0", "api/capfilt", "api/modules"):
            with urllib.request.urlopen(f"{address}{path}", timeout=60) as answer:
                told = answer.read()
    # Its 130 MB are most of what a studio without a model would take.
    assert "torch" not in json.loads(told)["modules"]


@pytest.mark.parametrize("what", [pytest.param("sleeping", marks=pytest.mark.slow), "computing"])
def test_ctrl_c_waits_for_no_model(what: str) -> None:
    def ask(address: str) -> None:
        try:
            urllib.request.urlopen(f"{address}api/{what}", timeout=60)
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass

    with started() as (process, address):
        thread = threading.Thread(target=ask, args=(address,))
        thread.start()
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        code, seconds, errors = ended(process)
        thread.join(30)
    assert code == 130
    assert seconds < 8
    assert "Traceback" not in errors


def test_the_address_has_the_token() -> None:
    with started("--host", "0.0.0.0", "--token", "a" * 20) as (process, address):
        assert address.endswith("/?token=" + "a" * 20)
        assert ended(process)[0] == 130


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "0.0.0.0"], "--token"),
        (["--host", "no.such.host.example", "--token", "a" * 20], "--host no.such"),
        (["--host", "192.0.2.1", "--token", "a" * 20], "--host 192.0.2.1"),
        (["--token", "abc"], "--token has 3 letters"),
        (["no/such/place"], "no/such/place does not exist"),
        (["--runs", "no/such/folder"], "--runs"),
        (["--filter", "no/such/model"], "--filter no/such/model: no such file or folder"),
        (["--vqa", "onnx:no/such/model"], "--vqa onnx:no/such/model: no such file or folder"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_before_anything_is_served(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in complaint(capsys, words)


def test_a_port_that_is_taken_is_said_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = complaint(capsys, ["--port", port])
    assert f"port {port}" in told
    assert "--port 0" in told


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'openblip[studio]'" in complaint(capsys, [])


def test_the_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["studio", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "openblip studio photos/" in told
