"""Captioning as a process of its own, which signals, limits and full devices stop."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import openblip
from openblip.inference.decoding import Decoding
from openblip.runtime.errors import OpenBlipError

# The tests change into another folder, where a relative search path leads nowhere.
SOURCE = str(Path(openblip.__file__).resolve().parent.parent)
# Makes itself a process that cannot write files of more than 3000 bytes.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
GREEDY = Decoding(method="greedy")


def counts(result):
    return result.captioned, result.failed, result.skipped


@pytest.fixture
def many(photos: Path, pictures) -> Path:
    for number in range(70):
        pictures[number % 7].rotate(number).save(photos / f"m{number}.png")
    (photos / "bad.png").write_bytes(b"")
    return photos


@pytest.fixture
def start(model) -> Callable[..., subprocess.Popen[str]]:
    def begin(*words: object, before: str = "", **options) -> subprocess.Popen[str]:
        python = [sys.executable, "-c", before] if before else [sys.executable]
        command = [*python, "-m", "openblip", "caption", *map(str, words)]
        return subprocess.Popen(
            [*command, "--model", model, "--batch-size", "2", "--method", "greedy"],
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCE},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
        )

    return begin


def stop(process: subprocess.Popen[str], journal: Path, number: signal.Signals) -> str:
    """Sends a signal once a few lines are there; returns what the process said."""
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 8:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


@pytest.mark.parametrize("name", ["o.jsonl", pytest.param("o.json", marks=pytest.mark.slow)])
def test_that_is_killed_leaves_what_it_did(many, start, caption_run, tmp_path, name):
    file = tmp_path / name
    journal = file if name == "o.jsonl" else tmp_path / "o.json.partial"
    process = start(many, "-o", file)
    stop(process, journal, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = journal.read_bytes().count(b"\n")
    assert done < 77
    # As if the kill had come in the middle of a line.
    journal.write_bytes(journal.read_bytes()[:-3])

    result = caption_run(many, decoding=GREEDY, file=file, batch_size=2)
    assert counts(result) == (77 - done + 1, 1, done - 1)
    caption_run(many, decoding=GREEDY, file=tmp_path / f"whole{file.suffix}", batch_size=2)
    assert said(file) == said(tmp_path / f"whole{file.suffix}")


def said(file: Path) -> list[tuple[str, str]]:
    text = file.read_text()
    if file.suffix == ".json":
        return [(str(v["image_id"]), v["caption"]) for v in json.loads(text)]
    lines = [json.loads(line) for line in text.splitlines()]
    return [(line["image"], line["captions"][0]["text"]) for line in lines]


def test_that_gets_ctrl_c_finishes_its_batch(many, start, caption_run, tmp_path):
    file = tmp_path / "o.jsonl"
    process = start(many, "-o", file)
    error = stop(process, file, signal.SIGINT)
    assert process.returncode == 130, error
    assert "interrupted; the same command goes on" in error
    done = len(said(file))
    assert 8 <= done < 77
    assert counts(caption_run(many, decoding=GREEDY, file=file)) == (77 - done, 1, done)


def test_that_runs_out_of_space_keeps_whole_lines(many, start, caption_run, tmp_path):
    file = tmp_path / "o.jsonl"
    process = start(many, "-o", file, before=LIMITED)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert f"{file}: cannot be written (File too large)" in error
    assert "Traceback" not in error
    done = len(said(file))
    assert done > 10
    assert counts(caption_run(many, decoding=GREEDY, file=file)) == (77 - done, 1, done)


def test_that_finds_another_at_work_on_its_file_is_refused(many, start, caption_run, tmp_path):
    file = tmp_path / "o.jsonl"
    first = start(many, "-o", file)
    while not file.exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    for overwrite in (False, True):
        with pytest.raises(OpenBlipError, match=f"{file}: another process is writing captions"):
            caption_run(many, decoding=GREEDY, file=file, overwrite=overwrite)
    first.send_signal(signal.SIGCONT)
    assert first.communicate(timeout=120)[1]
    caption_run(many, decoding=GREEDY, file=file)
    assert len(dict(said(file))) == len(said(file)) == 77


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "words",
    [["-o", "/dev/full", "--format", "csv"], pytest.param([], marks=pytest.mark.slow)],
)
def test_a_full_device_is_named_once(photos, start, words):
    with Path("/dev/full").open("wb") as full:
        process = start(photos, *words, stdout=full)
        error = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert error.count("No space left on device") == 1, error


@pytest.mark.slow
def test_whoever_has_read_enough_is_no_error(photos, start):
    process = start(photos)
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 1
    assert "Broken pipe" not in error


def test_the_bar_is_drawn_on_the_terminal_and_the_lines_go_where_they_should(photos, start):
    master, terminal = pty.openpty()
    process = start(photos, stderr=terminal)
    os.close(terminal)
    lines = process.communicate(timeout=120)[0].splitlines()
    os.close(master)
    assert [json.loads(line)["image"] for line in lines][:2] == ["photos/0.png", "photos/1.png"]
    assert len(lines) == 7
