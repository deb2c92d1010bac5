"""Models from the hub: the real client, in a process of its own, and a server on this machine."""

import contextlib
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from openblip.checkpoints.hub import is_repo_id, split_revision
from openblip.runtime.errors import CheckpointError

from .hub_server import COMMIT, Hub, serve_hub
from .small_disk import small_disk

REPO = "org/captioner"
_CLIENT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_")
SMALL = {
    "config.json": b'{"model_type": "blip"}',
    "preprocessor_config.json": b'{"size": 384}',
    "tokenizer.json": b'{"version": "1.0"}',
    "vocab.txt": b"[PAD]\n",
}
WEIGHTS = bytes(range(256)) * 1000
FILES = {**SMALL, "model.safetensors": WEIGHTS}
UNWANTED = {
    ".gitattributes": b"*",
    "README.md": b"# model",
    "modeling_blip.py": b"raise SystemExit",
    "tf_model.h5": b"tensorflow",
    "flax_model.msgpack": b"flax",
    "model.onnx": b"onnx",
    "training_args.bin": b"pickle",
    "onnx/model.safetensors": b"elsewhere",
    "model-of-step-1/weights.safetensors": b"leftover",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub(repositories={REPO: {**FILES, **UNWANTED}}) as hub:
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hf"


def environment(hub: Hub | None, cache: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_CLIENT)}
    # Nothing listens on port 9: a machine without network.
    endpoint = hub.url if hub is not None else "http://127.0.0.1:9"
    client = {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**inherited, **client}


def fetch(
    hub: Hub | None,
    cache: Path,
    call: str = f"fetch_repository({REPO!r})",
    *,
    wrapper: tuple[str, ...] = (),
    **settings: str,
) -> Path | str:
    """The folder or file of a call, or the message of its `CheckpointError`.

    The client reads its settings when it is imported: hence a process per call.
    """
    code = (
        "from openblip.runtime.errors import CheckpointError\n"
        "from openblip.checkpoints.hub import *\n"
        f"try: print('path', {call})\n"
        "except CheckpointError as error: print('error', error)\n"
    )
    env = {**environment(hub, cache), **settings}
    done = subprocess.run(
        [*wrapper, sys.executable, "-W", "error", "-c", code],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Fetching" not in done.stderr, "a bar, although there is no terminal"
    kind, _, value = done.stdout.strip().partition(" ")
    return Path(value) if kind == "path" else value


def test_only_what_a_model_needs_is_fetched(hub: Hub, cache: Path) -> None:
    folder = fetch(hub, cache)
    assert isinstance(folder, Path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert hub.fetched() == sorted(FILES)


def test_pickled_weights_are_fetched_where_there_are_no_others(hub: Hub, cache: Path) -> None:
    hub.repositories[REPO] = {**SMALL, **UNWANTED, "pytorch_model.bin": WEIGHTS}
    folder = fetch(hub, cache)
    assert isinstance(folder, Path)
    assert (folder / "pytorch_model.bin").read_bytes() == WEIGHTS
    assert hub.fetched() == sorted([*SMALL, "pytorch_model.bin"])


def test_pickled_weights_are_left_where_there_are_others(hub: Hub, cache: Path) -> None:
    hub.repositories[REPO]["pytorch_model.bin"] = b"pickle"
    fetch(hub, cache)
    assert hub.fetched() == sorted(FILES)


def test_weights_in_parts_come_with_their_index(hub: Hub, cache: Path) -> None:
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = json.dumps({"weight_map": {"a": parts[0], "b": parts[1]}}).encode()
    files = {**SMALL, "model.safetensors.index.json": index, parts[0]: b"one", parts[1]: b"two"}
    hub.repositories[REPO] = files
    folder = fetch(hub, cache)
    assert isinstance(folder, Path)
    assert {path.name for path in folder.iterdir()} == set(files)
    del hub.repositories[REPO][parts[1]]
    shutil.rmtree(cache)
    assert f"no {parts[1]} in it" in str(fetch(hub, cache))


def test_a_second_call_fetches_no_file_again(hub: Hub, cache: Path) -> None:
    first = fetch(hub, cache)
    hub.requests.clear()
    assert fetch(hub, cache) == first
    assert hub.fetched() == []


@pytest.mark.parametrize("revision", ["v1", pytest.param(COMMIT, marks=pytest.mark.slow)])
def test_a_revision_is_fetched_and_cached_by_its_name(hub: Hub, cache: Path, revision: str) -> None:
    call = f"fetch_repository({REPO!r}, {revision!r})"
    folder = fetch(hub, cache, call)
    assert isinstance(folder, Path)
    assert folder.name == COMMIT
    assert fetch(None, cache, call, HF_HUB_OFFLINE="1") == folder


def test_a_cached_model_works_offline_and_without_a_network(hub: Hub, cache: Path) -> None:
    folder = fetch(hub, cache)
    assert fetch(None, cache, HF_HUB_OFFLINE="1") == folder
    assert fetch(None, cache) == folder


def test_a_cached_model_works_while_the_hub_fails(hub: Hub, cache: Path) -> None:
    folder = fetch(hub, cache)
    hub.fail_with = 500
    assert fetch(hub, cache) == folder


def test_a_model_that_another_program_cached_in_part_works_offline(hub: Hub, cache: Path) -> None:
    folder = fetch(hub, cache)
    assert isinstance(folder, Path)
    (folder / "vocab.txt").unlink()
    (folder / "preprocessor_config.json").unlink()
    assert fetch(None, cache, HF_HUB_OFFLINE="1") == folder


@pytest.mark.parametrize("needed", ["config.json", "model.safetensors"])
def test_a_model_that_is_cached_without_a_needed_file_does_not(
    hub: Hub, cache: Path, needed: str
) -> None:
    folder = fetch(hub, cache)
    assert isinstance(folder, Path)
    (folder / needed).unlink()
    message = fetch(None, cache, HF_HUB_OFFLINE="1")
    assert str(message).startswith(f"{REPO}: ")
    assert f"hf download {REPO}" in str(message)


def test_what_is_not_cached_cannot_be_had_offline(cache: Path) -> None:
    message = fetch(None, cache, f"fetch_repository({REPO!r}, 'v1')", HF_HUB_OFFLINE="1")
    assert str(message) == (
        f"{REPO}@v1: not in the cache {cache / 'hub'}, and HF_HUB_OFFLINE is set; run it once "
        f"online, or fetch it with `hf download {REPO} --revision v1`; `make demo` leaves small "
        "ones of drawn shapes: demo/captioner, and demo/filter that matches"
    )


def test_what_is_not_cached_cannot_be_had_without_a_network(cache: Path) -> None:
    message = str(fetch(None, cache))
    assert "http://127.0.0.1:9 cannot be reached" in message
    assert f"hf download {REPO}" in message
    assert "demo/captioner" in message


def test_a_hub_that_cannot_be_reached_is_asked_but_once_or_twice(cache: Path) -> None:
    asked: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        hub = Hub(url=f"http://127.0.0.1:{listening.getsockname()[1]}")

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, address = listening.accept()
                    asked.append(address)
                    connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        assert str(fetch(hub, cache)).startswith(f"{REPO}: ")
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
    # No retries, which take half a minute: once for what there is, once for what is cached.
    assert len(asked) <= 2


def test_a_missing_repository_is_named_with_the_hint_of_a_token(hub: Hub, cache: Path) -> None:
    message = str(fetch(hub, cache, "fetch_repository('org/nothing')"))
    assert message.startswith(f"org/nothing: no such repository on {hub.url}")
    assert "HF_TOKEN" in message


def test_a_missing_revision_is_named(hub: Hub, cache: Path) -> None:
    message = str(fetch(hub, cache, f"fetch_repository({REPO!r}, 'v9')"))
    assert message.startswith(f"{REPO}@v9: no such revision on {hub.url}")


def test_a_gated_repository_says_where_to_ask(hub: Hub, cache: Path) -> None:
    hub.gated.add(REPO)
    message = str(fetch(hub, cache))
    assert message.startswith(f"{REPO}: gated; accept its conditions at {hub.url}")
    assert "HF_TOKEN" in message


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (403, "check the token"),
        pytest.param(429, "too many", marks=pytest.mark.slow),
        (500, "try again later"),
    ],
)
def test_an_error_of_the_hub_is_told_with_its_status(
    hub: Hub, cache: Path, status: int, said: str
) -> None:
    hub.fail_with = status
    message = str(fetch(hub, cache))
    assert message.startswith(f"{REPO}: {hub.url}")
    assert f"status {status}" in message
    assert said in message


def test_a_repository_without_a_model_is_refused(hub: Hub, cache: Path) -> None:
    hub.repositories[REPO] = dict(UNWANTED)
    assert f"{REPO}: no config.json in it" in str(fetch(hub, cache))
    hub.repositories[REPO] = {**SMALL, **UNWANTED}
    shutil.rmtree(cache)
    assert f"{REPO}: no model.safetensors or pytorch_model.bin in it" in str(fetch(hub, cache))


def test_a_cut_connection_is_taken_up_where_it_broke(hub: Hub, cache: Path) -> None:
    # The client writes pieces of ten megabytes.
    piece = 10 * 1024 * 1024
    weights = bytes(piece + 500_000)
    hub.repositories[REPO]["model.safetensors"] = weights
    hub.cut_after = [piece + 200_000]
    folder = fetch(hub, cache)
    assert isinstance(folder, Path)
    assert (folder / "model.safetensors").read_bytes() == weights
    assert hub.ranges() == [f"bytes={piece}-"]


def test_after_an_interrupted_download_the_complete_files_are_kept(hub: Hub, cache: Path) -> None:
    hub.shorten_to = 100_000
    message = str(fetch(hub, cache))
    assert message.startswith(f"{REPO}: the download broke off")
    assert "files that are complete are kept" in message
    hub.shorten_to = None
    hub.requests.clear()
    folder = fetch(hub, cache)
    assert isinstance(folder, Path)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.fetched() == ["model.safetensors"]


def test_a_full_disk_is_told_before_anything_is_downloaded(hub: Hub, cache: Path) -> None:
    hub.repositories[REPO] = {**SMALL, "model.safetensors": bytes(2_000_000)}
    message = str(fetch(hub, cache, wrapper=small_disk(cache)))
    assert message.startswith(f"{REPO}: no space for it in {cache / 'hub'}")
    assert "HF_HOME" in message
    assert "model.safetensors" not in hub.fetched()


def test_the_bars_of_the_client_are_shown_on_a_terminal(hub: Hub, cache: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    code = f"from openblip.checkpoints.hub import fetch_repository; fetch_repository({REPO!r})"
    words = [sys.executable, "-c", code]
    subprocess.run(words, env=environment(hub, cache), stderr=theirs, check=True)
    os.close(theirs)
    # How many files, releases before 1.33 find out later.
    assert b"Fetching " in os.read(ours, 100_000)
    os.close(ours)


def test_the_vocabulary_of_bert_is_fetched_once(hub: Hub, cache: Path) -> None:
    hub.repositories["bert-base-uncased"] = {"vocab.txt": b"[PAD]\n", "model.safetensors": b""}
    file = fetch(hub, cache, "fetch_bert_vocabulary()")
    assert isinstance(file, Path)
    assert file.read_bytes() == b"[PAD]\n"
    assert hub.fetched() == ["vocab.txt"]
    hub.requests.clear()
    assert fetch(hub, cache, "fetch_bert_vocabulary()") == file
    assert hub.requests == []


def test_the_vocabulary_of_bert_is_found_under_the_name_that_it_has_today(
    hub: Hub, cache: Path
) -> None:
    hub.repositories["google-bert/bert-base-uncased"] = {"vocab.txt": b"[PAD]\n"}
    elsewhere = "hf_hub_download('google-bert/bert-base-uncased', 'vocab.txt')"
    file = fetch(hub, cache, f"__import__('huggingface_hub').{elsewhere}")
    assert fetch(None, cache, "fetch_bert_vocabulary()", HF_HUB_OFFLINE="1") == file


def test_without_the_vocabulary_of_bert_the_error_says_where_to_put_it(cache: Path) -> None:
    message = str(fetch(None, cache, "fetch_bert_vocabulary()", HF_HUB_OFFLINE="1"))
    assert "put the vocab.txt of bert-base-uncased beside the checkpoint's file" in message
    assert "hf download bert-base-uncased vocab.txt" in message


def test_an_id_is_no_path_and_no_single_name() -> None:
    for source in ("Salesforce/blip-image-captioning-base", "a/b", "org_1/name.v2-x"):
        assert is_repo_id(source), source
    for source in (
        "model.pth",
        "a/b/c",
        "./a",
        "../a",
        "/a/b",
        "a/b@main",
        "a/b--c",
        "a/b.git",
        "a/",
        "a b/c",
        "https://a/b",
        "über/alles",
    ):
        assert not is_repo_id(source), source


def test_a_revision_follows_the_at_sign() -> None:
    assert split_revision("org/name") == ("org/name", None)
    assert split_revision("org/name@refs/pr/4") == ("org/name", "refs/pr/4")
    for source in ("org/name@", "@main"):
        with pytest.raises(CheckpointError, match="name@revision"):
            split_revision(source)
