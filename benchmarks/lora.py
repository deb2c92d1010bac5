"""A fine-tuning step of a captioner: all weights, and low-rank changes, in one interleaved run.

    python benchmarks/lora.py                           # BLIP-base, batch 4, 384 px, float32, CPU
    python benchmarks/lora.py --preset small --image-size 128 --rounds 5 --output table.md

Each way has a process of its own; they take turns. Time is that of the processor, of one thread, so
that a machine may be used by others too. Memory is the most that a process has held in a step after
the first, weights and moments included (Linux).
"""

import argparse
import multiprocessing
import statistics
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from openblip.model import Med, MedConfig
from openblip.model.lowrank import adapt
from openblip.objectives.finetune import CaptionerTask
from openblip.objectives.task import StepPosition
from openblip.runtime.memory import keep_freed_memory
from openblip.training.optimiser import build_optimiser, trained_parameters
from openblip.training.recipe import LoraConfig, OptimiserConfig
from train_step import SPECIAL, make_batch, memory_of_a_step

ALL = "all weights"
WAYS: dict[str, tuple[str, ...] | None] = {
    ALL: None,
    "rank 8, queries, keys and values": LoraConfig().targets,
    "rank 8, all linear layers of the text stack": ("text",),
}
"""Which layers are changed; None trains all weights."""


def make_step(targets: tuple[str, ...] | None, options: argparse.Namespace):
    """A function that makes a step, and how many weights it trains."""
    config = MedConfig.preset(options.preset, image_size=options.image_size)
    config = replace(config, heads=("lm",), text=replace(config.text, dropout=0.0))
    torch.manual_seed(0)
    student = Med(config)
    if targets is not None:
        adapt(student, 8, 16.0, targets)
    task = CaptionerTask(student, SPECIAL, prompt_tokens=4)
    optimiser = build_optimiser(trained_parameters(task), OptimiserConfig(lr=1e-5))
    batch = make_batch(config, options.batch_size, seed=1)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        output = task(batch, StepPosition(0, 0.0))
        output.loss.backward()
        optimiser.step()
        return float(output.loss.detach())

    return step, sum(parameter.numel() for parameter in trained_parameters(task))


def serve(connection: Connection, way: str, options: argparse.Namespace) -> None:
    """A process that makes steps of one way when told to."""
    torch.set_num_threads(1)
    keep_freed_memory()
    step, trained = make_step(WAYS[way], options)
    connection.send((trained, step()))
    while (asked := connection.recv()) is not None:
        if asked == "memory":
            connection.send(memory_of_a_step(step)[1])
        else:
            started = time.process_time()
            step()
            connection.send(time.process_time() - started)


def describe(options, trained, memory, seconds) -> str:
    whole = seconds[ALL]
    lines = [
        f"# Low-rank adaptation: a captioner's step, BLIP-{options.preset}, batch "
        f"{options.batch_size}, {options.image_size} px, float32, CPU",
        "",
        f"1 thread, torch {torch.__version__}; {options.rounds} interleaved rounds, medians of "
        "processor time. Command: `python benchmarks/lora.py --preset "
        f"{options.preset} --batch-size {options.batch_size} --image-size {options.image_size} "
        f"--rounds {options.rounds}`",
        "",
        "| what is trained | weights | step s | of all weights (min to max) | peak memory, MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for way, times in seconds.items():
        shares = [own / full for own, full in zip(times, whole, strict=True)]
        share = f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        lines.append(
            f"| {way} | {trained[way]:,} | {statistics.median(times):.2f} | {share} "
            f"| {memory[way] / 2**20:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the table there as Markdown")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    servers: dict[str, Connection] = {}
    trained, losses = {}, {}
    for way in WAYS:
        servers[way], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, way, options), daemon=True).start()
        trained[way], losses[way] = servers[way].recv()
    # Changes begin at nothing, so that the first losses are equal.
    assert max(losses.values()) - min(losses.values()) < 1e-5, losses

    def ask(way: str, what: str):
        servers[way].send(what)
        return servers[way].recv()

    seconds = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, times in seconds.items():
            times.append(ask(way, "time"))
    memory = {way: ask(way, "memory") for way in WAYS}
    for connection in servers.values():
        connection.send(None)
    report = describe(options, trained, memory, seconds)
    print(report)
    if options.output:
        options.output.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
