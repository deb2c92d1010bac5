"""The processes of a run: the only file that calls `torch.distributed`.

`torchrun` tells each process its place through environment variables; without them a run has
one process, and every operation here is the identity.
"""

import atexit
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from openblip.errors import RecipeError
from openblip.tasks.protocol import AnyTask

# Long enough for the first process to train a tokenizer while the others wait.
_TIMEOUT = timedelta(minutes=30)


@dataclass
class Processes:
    """This process among those of the run; the `Collectives` that tasks are given."""

    rank: int = 0
    """Number of this process."""
    world_size: int = 1
    """How many processes there are."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this process computes."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and reports progress."""
        return self.rank == 0

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, joined in rank order along the first dimension.

        Args:
            tensor: of the same shape on every rank; no gradient flows back.
        """
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.detach().contiguous())
        return torch.cat(parts)

    def gather_with_gradient(self, tensor: Tensor) -> Tensor:
        """The same; each rank's part receives the sum of all ranks' gradients for it."""
        if self.world_size == 1:
            return tensor
        return cast("Tensor", _Gather.apply(tensor, self))  # type: ignore[no-untyped-call]  # torch

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over the ranks, on every rank; not finite where one rank's value is not."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value (anything that can be pickled), in rank order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def wait_for_all(self) -> None:
        """Return once every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def replicate(self, task: AnyTask, *, find_unused: bool) -> torch.nn.Module:
        """The task as a module whose backward averages the gradients over the processes.

        Args:
            task: its parameters and buffers are made equal to those of the first process.
            find_unused: search each step's graph for parameters that it does not reach; needed
                where a head of the model takes no part in the objectives.
        """
        if self.world_size == 1:
            return task
        # Queues are buffers that every rank updates alike: to broadcast them would be waste.
        return DistributedDataParallel(
            task, broadcast_buffers=False, find_unused_parameters=find_unused
        )

    def without_sync(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        """A context in which backward of `replicate`'s module only adds up local gradients."""
        if isinstance(module, DistributedDataParallel):
            return cast("AbstractContextManager[None]", module.no_sync())
        return nullcontext()


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums the gradients over ranks and keeps this rank's part."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, processes: Processes) -> Tensor:
        ctx.rank, ctx.rows = processes.rank, tensor.shape[0]
        return processes.gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows], None


def join_processes(device: str = "auto") -> Processes:
    """This process among those of the run, which are connected if they are not yet.

    They stay connected until the program ends, and its next run uses the connections again: the
    launcher's store would give new ones the addresses of the old.

    Args:
        device: "auto" (an accelerator if there is one), or a name such as "cpu" or "cuda". With
            several processes each takes the accelerator of its local rank.

    Raises:
        RecipeError: if the machine has no such device.
    """
    rank, world_size, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    chosen = _device(device, local_rank if world_size > 1 else None)
    if world_size == 1:
        return Processes(device=chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        # The backend follows from the device: gloo for tensors on the CPU, nccl for those on CUDA.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=_TIMEOUT)
        atexit.register(dist.destroy_process_group)
    return Processes(rank, world_size, chosen)


def _device(name: str, local_rank: int | None) -> torch.device:
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        device = found if found is not None else torch.device("cpu")
    else:
        device = torch.device(name)
        if device.type != "cpu" and (found is None or found.type != device.type):
            there = "only a CPU" if found is None else f"the accelerator {found.type!r}"
            raise RecipeError(f"train.device is {name!r}, but there is {there}: set it to 'auto'")
    if device.type != "cpu" and device.index is None and local_rank is not None:
        return torch.device(device.type, local_rank)
    return device
