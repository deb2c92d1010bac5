"""Commands without --model fetch the published base model: through the real client, from a server
on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import openblip
from openblip.checkpoints.hub import PUBLISHED
from openblip.table.table import PairRow, PairTable

from ..checkpoints.hub_server import serve_hub

Checkpoint = Callable[[str], str]
# Nothing is learnt, so that the weights are those of the start.
TUNE = [
    *("--train.steps=1", "--train.epochs=None", "--train.batch-size=1", "--train.device=cpu"),
    *("--optimiser.lr=0", "--optimiser.weight-decay=0"),
]


# Several commands, each told when it has ended: the client reads its settings when it is imported,
# hence the process of their own.
COMMANDS = """
import json, sys
from openblip.cli import main
for words in json.load(sys.stdin):
    print(main(words), file=sys.stderr)
"""


def run(words: list[str], endpoint: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return start(["-m", "openblip", *words], endpoint, **settings)


def start(
    words: list[str], endpoint: str, given: str | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    hub = {"HF_HOME": str(Path("hf").resolve()), "HF_ENDPOINT": endpoint}
    return subprocess.run(
        [sys.executable, *words],
        input=given,
        env={**inherited, **hub, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_fetched_once_and_then_found_without_a_network(
    photo: str, checkpoint: Checkpoint
) -> None:
    openblip.load(checkpoint("vqa"), "cpu").save_huggingface("published")
    files = {file.name: file.read_bytes() for file in Path("published").iterdir()}
    words = ["ask", photo, "is it night?", "--candidates", "yes", "no"]
    openblip.load(checkpoint("captioner"), "cpu").save_huggingface("captioner")
    others = {file.name: file.read_bytes() for file in Path("captioner").iterdir()}
    row = PairRow("a", Path(photo).read_bytes(), captions=["a large dog"], origin="human")
    PairTable.create("t.lance", [row])
    # A training starts from a model of the hub, too.
    tune = ["finetune", "captioner", "t.lance", "run", "--init-from", "org/other", *TUNE]
    with serve_hub(repositories={PUBLISHED["ask"]: files, "org/other": others}) as hub:
        online = start(["-c", COMMANDS], hub.url, json.dumps([words, tune]))
        assert hub.fetched().count("model.safetensors") == 2
    assert online.stderr.splitlines().count("0") == 2, online.stderr
    begun = openblip.load("captioner", "cpu").model.state_dict()
    trained = openblip.load("run", "cpu").model.state_dict()
    assert all(torch.equal(trained[name], weight) for name, weight in begun.items())
    offline = run(words, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0
    assert online.stdout.startswith(offline.stdout)


def test_offline_and_not_cached_the_error_says_what_to_do(photo: str) -> None:
    commands = [["caption", photo], ["match", photo, "a dog"], ["ask", photo, "why?"]]
    words = ["-c", COMMANDS]
    done = start(words, "http://127.0.0.1:9", json.dumps(commands), HF_HUB_OFFLINE="1")
    *told, rest = done.stderr.split("\n1\n")
    assert rest == "", done.stderr
    for command, error in zip(commands, told, strict=True):
        assert PUBLISHED[command[0]] in error
        assert "hf download" in error
        assert "make demo" in error
        assert "Traceback" not in error
