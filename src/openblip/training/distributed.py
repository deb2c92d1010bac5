"""The processes of a run: the only file that sends anything from one to another by itself.

`torchrun` tells each process its place through environment variables; without them a run has
one process, and every operation here is the identity.
"""

import atexit
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import FSDPModule
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from openblip.errors import RecipeError
from openblip.tasks.protocol import AnyTask

P = ParamSpec("P")
T = TypeVar("T")
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
    background: dist.ProcessGroup | None = None
    """Connections of their own for what goes on beside training, on the CPU; None if there is one
    process."""

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

    def from_first(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, on the device of this one.

        Args:
            tensor: elsewhere only its shape and dtype count; it may be on the meta device.
        """
        if self.world_size == 1:
            return tensor.to(self.device)
        if self.is_first:
            sent = tensor.to(self.device).contiguous()
        else:
            sent = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        dist.broadcast(sent, src=0)
        return sent

    def wait_for_all(self) -> None:
        """Return once every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def replicate(self, task: AnyTask, *, find_unused: bool) -> torch.nn.Module:
        """The task as a module whose backward averages the gradients over the processes.

        Args:
            task: its parameters and buffers are made equal to those of the first process. One
                that is divided among the processes (`openblip.training.sharding`) does all this
                by itself.
            find_unused: search each step's graph for parameters that it does not reach; needed
                where a head of the model takes no part in the objectives.
        """
        if self.world_size == 1 or isinstance(task, FSDPModule):
            return task
        # Queues are buffers that every rank updates alike: to broadcast them would be waste.
        return DistributedDataParallel(
            task,
            forward_sync_buffers=False,
            find_unused_parameters=find_unused,
            gradient_as_bucket_view=True,  # or every gradient would be there twice
        )

    def without_sync(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        """A context in which backward of `replicate`'s module only adds up local gradients.

        For a task that is divided it changes nothing: what would be added up are gradients of the
        whole model, which no process has room for.
        """
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
        RecipeError: if there is no such device, or the machine has none.
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
        store, _, _ = next(rendezvous("env://", timeout=_TIMEOUT))
        # The launcher's store outlives the processes: after a restart it still has the addresses
        # of those that died.
        store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
        )
        atexit.register(dist.destroy_process_group)
    return Processes(rank, world_size, chosen, _background_group())


@cache
def _background_group() -> dist.ProcessGroup:
    """Made once, as the connections of the run are: two threads cannot share one group."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    return group


def _device(name: str, local_rank: int | None) -> torch.device:
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        device = found if found is not None else torch.device("cpu")
    else:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise RecipeError(
                f"train.device is {name!r}, which is no device: give 'auto', 'cpu', 'cuda' or one "
                "with its number, such as 'cuda:1'"
            ) from error
        if device.type != "cpu" and (found is None or found.type != device.type):
            there = "only a CPU" if found is None else f"the accelerator {found.type!r}"
            raise RecipeError(f"train.device is {name!r}, but there is {there}: set it to 'auto'")
    if device.type != "cpu" and device.index is None and local_rank is not None:
        return torch.device(device.type, local_rank)
    return device


def recorded(function: Callable[P, T]) -> Callable[P, T]:
    """The function; under `torchrun` its exceptions stand in the report of the launcher.

    There the report names the rank that failed first, with its exception.
    """
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return function
    return cast("Callable[P, T]", record(function))
