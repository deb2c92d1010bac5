"""The examples can be run as they stand."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from openblip.cli import main
from openblip.table.table import PairRow, PairTable

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SBATCH = EXAMPLES / "slurm" / "train.sbatch"
README = EXAMPLES / "slurm" / "README.md"

# What Slurm does for a job of one node: `srun` runs the command, `scontrol` answers and notes.
SRUN = """#!/bin/sh
shift
exec "$@"
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$NOTES"; fi
"""


def make_walls(folder: Path) -> Path:
    """A folder outside of the repository with a table in it."""
    from io import BytesIO

    def row(number: int) -> PairRow:
        file = BytesIO()
        Image.new("RGB", (64, 64), (number * 10, 99, 255 - number * 10)).save(file, format="PNG")
        return PairRow(f"row-{number}", file.getvalue(), captions=[f"wall number {number}"])

    PairTable.create(str(folder / "walls.lance"), (row(number) for number in range(16)))
    return folder


@pytest.fixture
def walls(tmp_path: Path) -> Path:
    return make_walls(tmp_path)


# Carries out command lines one after the other, each in a folder, as an interpreter of its own
# would: a fork of one that has imported what takes long.
INTERPRETERS = """
import json, os, runpy, sys
import lance, tensorboardX, tokenizers, torch._dynamo, tyro
import openblip.cli, openblip.training.run
for folder, *words in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        is_module = words[0] == "-m"
        sys.argv = words[is_module:]
        sys.path[0] = folder if is_module else os.path.dirname(os.path.abspath(words[0]))
        run = runpy.run_module if is_module else runpy.run_path
        run(sys.argv[0], run_name="__main__", **({"alter_sys": True} if is_module else {}))
        sys.exit()
    _, status = os.waitpid(child, 0)
    print("=====", os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which the examples have run, and what each of them has printed."""
    walls = make_walls(tmp_path_factory.mktemp("examples"))
    own_loop, objective = EXAMPLES / "own_loop.py", EXAMPLES / "siglip_objective.py"
    here, elsewhere = walls / "here", walls / "scripts"
    for folder in (here, elsewhere):
        folder.mkdir()
    shutil.copy(objective, here)
    code = objective.read_text().replace(
        "    return replace(tiny,", "    return replace(small(tiny),"
    )
    shorter = "train=replace(recipe.train, steps=2, batch_size=4, threads=1), tokenizer='train:60')"
    small = f"\ndef small(recipe):\n    return replace(recipe, {shorter}\n\n\ndef recipe"
    (elsewhere / "siglip_objective.py").write_text(code.replace("\ndef recipe", small))
    words = ["pretrain", "siglip_objective:recipe", "../walls.lance", "run", "--train.steps", "2"]
    flags = ["--train.batch-size", "4", "--objectives.bias", "-4", "--train.threads", "1"]
    orders = [
        [walls, own_loop, "walls.lance", "model", "3"],
        [here, "-m", "openblip", *words, *flags, "--tokenizer", "train:60"],
        [walls, "scripts/siglip_objective.py", "walls.lance", "by-script"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETERS, json.dumps(orders, default=str)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    *printed, rest = re.split(r"===== (-?\d+)\n", done.stdout)
    assert printed[1::2] == ["0"] * len(orders), done.stderr
    assert rest == ""
    return walls, printed[::2]


def test_a_loop_of_ones_own(shown: tuple[Path, list[str]]) -> None:
    walls, (told, _, _) = shown
    assert len((EXAMPLES / "own_loop.py").read_text().splitlines()) <= 40
    assert "step 0: loss" in told
    assert "embeds as (2, 64)" in told
    assert (walls / "model" / "model.safetensors").exists()


def test_an_objective_of_ones_own(shown: tuple[Path, list[str]]) -> None:
    """As a module of the current directory, and as a script of another folder, which goes on."""
    walls, (_, as_module, as_script) = shown
    assert len((EXAMPLES / "siglip_objective.py").read_text().splitlines()) <= 80
    assert "run: 2 steps" in as_module
    assert "2 steps; embeds as (1, 64)" in as_script
    assert "task: siglip_objective:SigLipTask" in (walls / "by-script" / "recipe.yaml").read_text()


def test_a_comparison_of_ones_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every name and value of the file is understood, and the folders are found."""
    for folder in ("crawl", "annotated/images"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (48, 48), "red").save(tmp_path / "crawl" / "1.png")
    (tmp_path / "crawl" / "1.txt").write_text("best price free shipping")
    Image.new("RGB", (48, 48), "blue").save(tmp_path / "annotated" / "images" / "1.png")
    line = '{"image": "images/1.png", "captions": ["a blue wall"], "split": "test"}\n'
    (tmp_path / "annotated" / "captions.jsonl").write_text(line)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", str(tmp_path))
    assert main(["compare", str(EXAMPLES / "own_data.yaml"), "-o", "out", "--plan"]) == 0
    told = capsys.readouterr().out
    stages = [row.split()[0] for row in told.splitlines() if ", seed 0" in row]
    assert sorted(stages) == ["capfilt", "data", *["evaluate"] * 3, *["train"] * 5]


def test_the_script_is_correct_shell() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    assert os.access(SBATCH, os.X_OK)
    text = SBATCH.read_text()
    assert "set -euo pipefail" in text
    # Slurm reads its lines before the first command only.
    head, _, rest = text.partition("set -euo pipefail")
    assert "#SBATCH --signal=B:USR1@" in head
    assert "#SBATCH" not in rest


def test_every_variable_is_quoted_and_has_a_value() -> None:
    text = re.sub(r"#.*", "", SBATCH.read_text().replace("$#", "COUNT"))
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    assert set(re.findall(r"\$\{?(\w+)", bare)) == set(), "unquoted"
    set_here = set(re.findall(r"^(?:export )?(\w+)=", text, re.M))
    used = set(re.findall(r"\$\{?(\w+)", text))
    by_slurm = {name for name in used if name.startswith("SLURM_")}
    assert used - by_slurm <= set_here


def test_the_variables_that_can_be_given_are_explained() -> None:
    text = SBATCH.read_text()
    can_be_given = set(re.findall(r"^(?:export )?(\w+)=\"\$\{\1:-", text, re.M))
    explained = set(re.findall(r"^\| `(\w+)`", README.read_text(), re.M))
    assert can_be_given == explained


def start(tmp_path: Path, *words: str) -> "subprocess.Popen[str]":
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    return subprocess.Popen(
        ["bash", str(SBATCH), *words],
        env={
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "NOTES": str(tmp_path / "notes"),
            "VENV": sys.prefix,
            "PROCESSES_PER_NODE": "2",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_JOB_NUM_NODES": "1",
        },
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_without_a_command_it_says_what_is_missing(tmp_path: Path) -> None:
    process = start(tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "usage: sbatch train.sbatch pretrain" in output


@pytest.mark.slow
def test_a_job_whose_time_is_over_saves_is_requeued_and_goes_on(
    tmp_path: Path, walls: Path
) -> None:
    """The real launcher with two processes, under stand-ins for Slurm's own commands."""
    run_dir = tmp_path / "run"
    steps = ["--train.batch-size", "8", "--objectives.queue-size", "8", "--train.log-every", "1"]
    words = ["pretrain", "tiny", str(walls / "walls.lance"), str(run_dir), *steps]
    words += ["--train.sharding", "full", "--train.device", "cpu", "--train.threads", "1"]
    words += ["--train.steps", "40", "--tokenizer", "train:60"]
    process = start(tmp_path, *words)
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert (tmp_path / "notes").read_text() == f"requeue {os.getpid()}\n", output
    saved = (run_dir / "checkpoints" / "last").readlink().name
    assert 2 <= int(saved.removeprefix("step-")) < 40, output
    process = start(tmp_path, *words)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert (run_dir / "checkpoints" / "last").readlink().name == "step-00000040"
