"""Memory of a process with a replicated and a divided model, and time that a checkpoint takes.

    python benchmarks/sharding.py                       # 2 and 4 processes on this machine's CPU
    python benchmarks/sharding.py --preset base --ranks 2 --output results.md

Processes talk over gloo. Memory is that of the system (resident), less what a process has after it
has done the same with a tiny model, libraries loaded; large blocks go back to the system at once
(MALLOC_MMAP_THRESHOLD_). The steps are of pre-training, on random pairs, in float32.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import TextTokenizer
from openblip.model import MedConfig
from openblip.objectives.task import StepPosition
from openblip.recipes.pretrain import PRETRAIN_RECIPES
from openblip.training.build import build_model, build_task
from openblip.training.checkpoint import CheckpointWriter, RunState
from openblip.training.loop import Trainer
from openblip.training.optimiser import build_optimiser, trained_parameters
from openblip.training.parallelism import Processes, join_processes
from openblip.training.recipe import Recipe

MIB = 2**20
TOKENS = 16
MODES = ("replicate", "full")


def resident(kind: str) -> float:
    """MiB of this process: "VmRSS" now, or "VmHWM" at most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1024
    raise ValueError(kind)


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def random_batch(size: int, image_size: int, vocab_size: int, rank: int) -> Batch:
    generator = torch.Generator().manual_seed(rank)
    ids = torch.arange(size) + rank * size
    return Batch(
        ids=("",) * size,
        images=torch.randn(size, 3, image_size, image_size, generator=generator),
        tokens=torch.randint(10, vocab_size, (size, TOKENS), generator=generator),
        mask=torch.ones(size, TOKENS, dtype=torch.bool),
        image_ids=ids,
        text_ids=ids,
        step=0,
    )


def recipe_of(preset: str, image_size: int, mode: str) -> Recipe:
    recipe = PRETRAIN_RECIPES[preset]("unused")
    return replace(
        recipe,
        model=MedConfig.preset(preset, image_size=image_size),
        objectives=replace(recipe.objectives, negatives="all_ranks"),
        train=replace(recipe.train, sharding=mode, precision="float32", device="cpu"),
    )


def seconds_of(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


class Run:
    """A task that makes steps, always on the same batch."""

    def __init__(self, recipe: Recipe, processes: Processes, batch_size: int) -> None:
        tokenizer = TextTokenizer.train(["a wall", "a red wall"] * 3, 40)
        assert recipe.model is not None
        model = build_model(recipe, processes)
        self.task = build_task(recipe, model, tokenizer, processes)
        self.optimiser = build_optimiser(trained_parameters(self.task), recipe.optimiser)
        self.trainer = Trainer(self.task, self.optimiser, processes, seed=0)
        sizes = recipe.model.vision.image_size, recipe.model.text.vocab_size
        self.batch = random_batch(batch_size, *sizes, processes.rank)

    def step(self, number: int) -> None:
        self.trainer.step(StepPosition(number, 0.0), [self.batch], lr=1e-5)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """What one process sees."""
    torch.set_num_threads(1)
    processes = join_processes("cpu")
    warm_up = Run(recipe_of("tiny", 64, options.mode), processes, 2)
    warm_up.step(0)
    del warm_up
    gc.collect()
    begun_with = resident("VmRSS")
    forget_peak()
    recipe = recipe_of(options.preset, options.image_size, options.mode)
    run = Run(recipe, processes, options.batch_size)
    built_peak = resident("VmHWM") - begun_with
    run.step(0)
    forget_peak()
    run.step(1)
    result = {
        "building": built_peak,
        "step": resident("VmHWM") - begun_with,
        "between": resident("VmRSS") - begun_with,
    }
    folder = options.folder / f"{options.mode}-{processes.world_size}"
    return {**result, **checkpoint_seconds(folder, run.task, run.optimiser, processes)}


def checkpoint_seconds(
    folder: Path, task: Any, optimiser: torch.optim.Optimizer, processes: Processes
) -> dict[str, float]:
    """The better of two checkpoints: how long `write` blocks, and until the files are there."""
    # The model folder of a run has the run's own tokenizer; that its size differs does not matter.
    tokenizer = TextTokenizer.train(["a wall", "a red wall"] * 3, 40)
    found: list[tuple[float, float]] = []
    with CheckpointWriter(processes, tokenizer, max_tokens=30) as writer:
        for number in range(2):
            processes.wait_for_all()
            target = folder / str(number)
            write = partial(writer.write, target, task, optimiser, RunState())
            blocked = seconds_of(write)
            rest = seconds_of(writer.wait)
            found.append((blocked, blocked + rest))
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return {
        "blocked": min(blocked for blocked, _ in found),
        "whole": min(whole for _, whole in found),
        "size": size / MIB,
    }


def launch(options: argparse.Namespace, ranks: int, mode: str, folder: Path) -> dict[str, float]:
    """The largest value of any process, by name."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", __file__, "--mode", mode, "--folder", str(folder)]
    for name in ("preset", "batch_size", "image_size"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    subprocess.run(command, check=True, env={**os.environ, **settings})
    results = [json.loads(file.read_text()) for file in folder.glob(f"{mode}-{ranks}-*.json")]
    values = {name: max(result[name] for result in results) for name in results[0]}
    others = [result["building"] for result in results if not result["first"]]
    return {**values, "building elsewhere": max(others)}


def table(options: argparse.Namespace, found: dict[tuple[int, str], dict[str, float]]) -> str:
    lines = [
        "# A replicated and a divided model",
        "",
        f"`python benchmarks/sharding.py --preset {options.preset} --image-size "
        f"{options.image_size} --batch-size {options.batch_size}`: processes on one CPU, gloo, one "
        "thread each, float32, pre-training with all three losses and negatives of all ranks. "
        "Memory is the resident size of the process that has most, less what it had after a "
        "step of a tiny model, in MiB; `other processes` are those that do not build the whole "
        "model. Until a checkpoint is done a synchronous one would block; what blocks is copying, "
        "and of a divided model gathering the student for the model folder.",
        "",
        "| processes | train.sharding | between steps | peak of a step | peak of building | "
        "building, other processes | checkpoint blocks | checkpoint done after | its size |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (ranks, mode), values in found.items():
        memory = (values[n] for n in ("between", "step", "building", "building elsewhere"))
        shown = [f"{value:.0f}" for value in memory]
        shown += [f"{values[name]:.2f} s" for name in ("blocked", "whole")]
        lines.append(f"| {ranks} | {mode} | {' | '.join(shown)} | {values['size']:.0f} MiB |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small", choices=PRETRAIN_RECIPES)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=2, help="pairs of a process")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--output", type=Path, help="write the table there as Markdown")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode is not None:
        result = measure(options)
        rank, ranks = os.environ["RANK"], os.environ["WORLD_SIZE"]
        text = json.dumps({**result, "first": rank == "0"})
        (options.folder / f"{options.mode}-{ranks}-{rank}.json").write_text(text)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {
            (ranks, mode): launch(options, ranks, mode, Path(folder))
            for ranks in options.ranks
            for mode in MODES
        }
    text = table(options, found)
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
