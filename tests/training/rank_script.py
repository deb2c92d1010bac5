"""What each of several processes does for test_parallelism.py; started by torchrun.

The first argument is a folder, the others say what to do there: `steps` reads `inputs.pt` and
writes `W-ranks-N.pt`; `train:NAME` trains the recipe `NAME.yaml` in the run directory `NAME`,
`begin:NAME` stops after a few steps, and `fail:NAME` expects that it fails and writes why.

Started by itself, it stands in for the launcher: `ranks:W` begins what W processes do, until the
next such word. They are forks, which need not import everything anew.
"""

import importlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import SpecialTokens
from openblip.checkpoints.assembly import build_empty
from openblip.model import Med, MedConfig
from openblip.model.config import config_from_dict
from openblip.objectives.pretrain import PretrainObjectives, PretrainTask
from openblip.objectives.task import StepOutput, StepPosition
from openblip.runtime.errors import TrainingError
from openblip.training.parallelism import (
    Processes,
    clip,
    join_processes,
    shard,
    total_norm,
    whole_copies,
)
from openblip.training.recipe import Recipe
from openblip.training.recipe_file import read_recipe
from openblip.training.run import train

POSITION = StepPosition(step=3, epoch=1.0)


def part_of(values: dict[str, Any], rank: int, world_size: int) -> Batch:
    """A rank's rows of the joint batch."""
    rows = len(values["images"]) // world_size
    own = slice(rank * rows, (rank + 1) * rows)
    return Batch(
        ids=("",) * rows,
        images=values["images"][own],
        tokens=values["tokens"][own],
        mask=values["mask"][own],
        image_ids=values["image_ids"][own],
        text_ids=values["text_ids"][own],
        step=0,
    )


def step(
    inputs: dict[str, Any],
    processes: Processes,
    batch: Batch,
    *,
    negatives: str,
    sharding: str = "alone",
    precision: str = "float32",
) -> tuple[PretrainTask, StepOutput]:
    """A task after forward and backward of two parts of a step, and the output of the latter.

    Args:
        sharding: "alone" averages no gradients.
    """
    config = config_from_dict(MedConfig, inputs["model"])
    if sharding == "full" and not processes.is_first:
        student = build_empty(lambda: Med(config))
    else:
        student = Med(config)
        student.load_state_dict(inputs["weights"])
    objectives = PretrainObjectives(queue_size=10, negatives=negatives)
    special = SpecialTokens(*range(7))
    task = PretrainTask(student, special, objectives, seed=5, collectives=processes)
    if sharding == "full":
        shard(task, processes)
    module = task if sharding == "alone" else processes.replicate(task, find_unused=False)
    task.begin_step(POSITION)
    with processes.without_sync(module):
        _backward(module, batch, precision)
    return task, _backward(module, batch, precision)


def _backward(module: torch.nn.Module, batch: Batch, precision: str) -> StepOutput:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        output: StepOutput = module(batch, POSITION)
    output.loss.backward()
    return output


def gradients(task: PretrainTask, processes: Processes) -> dict[str, torch.Tensor]:
    """Gradients of the student by name, whole, on the first process."""
    own = {n: p.grad for n, p in task.student.named_parameters() if p.grad is not None}
    return whole_copies(own, processes)


def steps(
    inputs: dict[str, Any], processes: Processes
) -> dict[tuple[str, str, str], dict[str, Any]]:
    """What a step computes with each kind of sharding and negatives."""
    batch = part_of(inputs["batch"], processes.rank, processes.world_size)
    results = {}
    for sharding in ("replicate", "full"):
        for negatives, precision in (
            ("rank", "float32"),
            ("all_ranks", "float32"),
            ("all_ranks", "bfloat16"),
        ):
            task, output = step(
                inputs,
                processes,
                batch,
                negatives=negatives,
                sharding=sharding,
                precision=precision,
            )
            task.finish_step(output.update)
            own = [p.grad for p in task.student.parameters() if p.grad is not None]
            norm = total_norm(own, processes)
            found = gradients(task, processes)
            clip(own, norm, longest=0.5)
            results[sharding, negatives, precision] = {
                "terms": dict(output.terms),
                "gradients": found,
                "norm": norm,
                "clipped_norm": total_norm(own, processes),
                "queue": task.queue.state_dict(),
                "elements": sum(_elements(p) for p in task.parameters()),
            }
    return results


def _elements(parameter: torch.Tensor) -> int:
    """How much of a parameter this process has."""
    local: torch.Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.numel()


def gathered(processes: Processes) -> dict[str, Any]:
    """What the collectives give for known values."""
    rank = processes.rank
    own = torch.tensor([[1.0 + rank]], requires_grad=True)
    joined = processes.gather_with_gradient(own)
    # Rank r weighs the parts by 1, 2, 3 ... times 10 to the power of r.
    weights = torch.arange(1.0, processes.world_size + 1)[:, None]
    (joined * weights * 10**rank).sum().backward()
    return {
        "gather": processes.gather(torch.tensor([rank, rank + 10])),
        "joined": joined.detach(),
        "gradient": own.grad,
        "mean": processes.mean(torch.tensor([float(rank), float("nan") if rank else 0.0])),
        "first": processes.from_first(torch.tensor([rank + 5])),
        "objects": processes.gather_objects([f"id-{rank}"]),
    }


def train_until_interrupted(recipe: Recipe, run_dir: Path, processes: Processes) -> None:
    """Train, and ask the last process alone to stop, in the second step."""
    forward = PretrainTask.forward
    waiting = [signal.SIGTERM] if processes.rank == processes.world_size - 1 else []

    def signalled(self: PretrainTask, batch: Batch, position: StepPosition) -> StepOutput:
        if position.step == 1 and waiting:
            signal.raise_signal(waiting.pop())
        return forward(self, batch, position)

    PretrainTask.forward = signalled  # type: ignore[method-assign]
    assert train(recipe, run_dir, quiet=True).interrupted
    PretrainTask.forward = forward  # type: ignore[method-assign]


def main(folder: Path, work: list[str]) -> None:
    """Everything that a process of the test does."""
    processes = join_processes("cpu")
    for item in work:
        what, _, name = item.partition(":")
        recipe = read_recipe(folder / f"{name}.yaml") if name else None
        match what:
            case "steps":
                inputs = torch.load(folder / "inputs.pt", weights_only=True)
                results = {"gathered": gathered(processes), "steps": steps(inputs, processes)}
                file = f"{processes.world_size}-ranks-{processes.rank}.pt"
                torch.save(results, folder / file)
            case "begin":
                assert recipe is not None
                train_until_interrupted(recipe, folder / name, processes)
            case "train":
                assert recipe is not None
                train(recipe, folder / name, quiet=True)
            case "fail":
                assert recipe is not None
                try:
                    train(recipe, folder / name, quiet=True)
                except TrainingError as error:
                    (folder / name / f"rank-{processes.rank}.txt").write_text(str(error))


# What a run imports when it needs it, and every fork would import anew: longer than it computes.
_IMPORTED_LATE = (
    "lance",
    "tensorboardX",
    "tokenizers",
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
)


def fork(ranks: int, folder: Path, work: list[str]) -> None:
    """Do the work in so many processes; the first that fails ends the others and this one."""
    for name in _IMPORTED_LATE:
        importlib.import_module(name)
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    children = set()
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            sys.exit(main(folder, work))
        children.add(child)
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"one of {ranks} processes failed")


if __name__ == "__main__":
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    if "RANK" in os.environ:
        main(folder, words)
    else:
        starts = [n for n, word in enumerate(words) if word.startswith("ranks:")]
        for first, end in zip(starts, [*starts[1:], len(words)], strict=True):
            fork(int(words[first].removeprefix("ranks:")), folder, words[first + 1 : end])
