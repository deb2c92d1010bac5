"""What each of several processes does for test_distributed.py; started by torchrun.

Reads `inputs.pt` in the folder that is its argument, writes `rank-N.pt` beside it, and begins to
train the recipe that lies there.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from openblip.data.loader import Batch
from openblip.data.tokenizer import SpecialTokens
from openblip.model import Med, MedConfig
from openblip.model.config import config_from_dict
from openblip.tasks.pretrain import PretrainObjectives, PretrainTask
from openblip.tasks.protocol import StepOutput, StepPosition
from openblip.training.config import Recipe
from openblip.training.distributed import Processes, join_processes
from openblip.training.metrics_log import read_metrics
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
    negatives: str,
    processes: Processes,
    batch: Batch,
    averages_gradients: bool = True,
) -> tuple[PretrainTask, StepOutput]:
    """A task after forward and backward of one step."""
    student = Med(config_from_dict(MedConfig, inputs["model"]))
    student.load_state_dict(inputs["weights"])
    objectives = PretrainObjectives(queue_size=10, negatives=negatives)
    special = SpecialTokens(*range(7))
    task = PretrainTask(student, special, objectives, seed=5, collectives=processes)
    module = processes.replicate(task, find_unused=False) if averages_gradients else task
    task.begin_step(POSITION)
    output: StepOutput = module(batch, POSITION)
    output.loss.backward()
    return task, output


def gradients(task: PretrainTask) -> dict[str, torch.Tensor]:
    """Gradients of the student by name."""
    return {n: p.grad for n, p in task.student.named_parameters() if p.grad is not None}


def gathered(processes: Processes) -> dict[str, Any]:
    """What the collectives give for known values."""
    rank = processes.rank
    own = torch.tensor([[1.0 + rank]], requires_grad=True)
    joined = processes.gather_with_gradient(own)
    # Rank 0 weighs the two parts by 1 and 2, rank 1 by 10 and 20.
    (joined * torch.tensor([[1.0], [2.0]]) * 10**rank).sum().backward()
    return {
        "gather": processes.gather(torch.tensor([rank, rank + 10])),
        "joined": joined.detach(),
        "gradient": own.grad,
        "mean": processes.mean(torch.tensor([float(rank), float("nan") if rank else 0.0])),
        "objects": processes.gather_objects([f"id-{rank}"]),
    }


def train_until_interrupted(recipe: Recipe, run_dir: Path, rank: int) -> None:
    """Train, and ask the last process alone to stop once a step has been logged."""

    def interrupt() -> None:
        while not read_metrics(run_dir):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    if rank == 1:
        threading.Thread(target=interrupt, daemon=True).start()
    assert train(recipe, run_dir, quiet=True).interrupted


def main(folder: Path) -> None:
    """Everything that a process of the test does."""
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    results: dict[str, Any] = {}
    processes = join_processes("cpu")
    results["gathered"] = gathered(processes)
    batch = part_of(inputs["batch"], processes.rank, processes.world_size)
    for negatives in ("rank", "all_ranks"):
        task, output = step(inputs, negatives, processes, batch)
        task.finish_step(output.update)
        results[negatives] = {
            "terms": dict(output.terms),
            "gradients": gradients(task),
            "queue": task.queue.state_dict(),
        }
    torch.save(results, folder / f"rank-{processes.rank}.pt")
    train(read_recipe(folder / "captioner.yaml"), folder / "captioner", quiet=True)
    train_until_interrupted(read_recipe(folder / "recipe.yaml"), folder / "run", processes.rank)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
