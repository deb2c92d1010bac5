"""The processes of a run: the only file that sends anything from one to another by itself.

`torchrun` tells each process its place through environment variables; without them a run has
one process, and every operation here is the identity.

A model divided among the processes of a run: fully sharded data parallelism (FSDP2).

Every process keeps a part of each parameter, and with it that part's gradient, its moments, and the
teacher's parameter. What a layer computes with is put together before it runs and given up after.
"""

import atexit
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.export import register_dataclass
from torch.nn.parallel import DistributedDataParallel

from openblip.checkpoints.assembly import beside_state, put_back
from openblip.model.attention import MemoryAttention
from openblip.model.backbones import BackboneEncoder
from openblip.model.text import TextLayer
from openblip.model.vision import VisionBlock
from openblip.objectives.task import AnyTask, StepOutput
from openblip.runtime.errors import RecipeError

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
                that is divided among the processes (`openblip.training.parallelism`) does all this
                by itself.
            find_unused: search each step's graph for parameters that it does not reach; needed
                where a head of the model takes no part in the objectives.
        """
        if self.world_size == 1 or isinstance(task, FSDPModule):
            return task
        module = DistributedDataParallel(
            task,
            find_unused_parameters=find_unused,
            gradient_as_bucket_view=True,  # or every gradient would be there twice
        )
        # Queues are buffers that every rank updates alike: to broadcast them again would be waste.
        # PyTorch 2.13 has the first name; 2.8 the second alone, and given as an argument it would
        # not make them equal at the start either.
        module.forward_sync_buffers = module.broadcast_buffers = False
        return module

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


# FSDP2 puts parameters together again for the backward pass by hooks on the tensors that a module
# gives. In a dataclass PyTorch 2.13 finds them by itself; 2.8 needs to be told of it.
register_dataclass(StepOutput)

# As in `torch.nn.utils.clip_grad_norm_`: no division by nothing.
_TINY = 1e-6


def shard(task: AnyTask, processes: Processes, *, even_alone: bool = False) -> None:
    """Divide a task among the processes, in place; with one process it stays whole.

    Args:
        task: with the values of the first process. On the others it may be on the meta device, so
            that one process alone ever holds the whole.
        processes: of the run.
        even_alone: divide with one process too, which must have joined a group: what dividing
            itself costs.
    """
    if processes.world_size == 1 and not even_alone:
        return
    whole = task.state_dict()
    kept = beside_state(task)
    task.to("meta")
    mesh = init_device_mesh(processes.device.type, (processes.world_size,))
    # A scalar cannot be divided.
    scalars = {parameter for parameter in task.parameters() if parameter.ndim == 0}
    for module in (*_units(task), task):
        # The root gives its parameters up after the forward too: whoever reads or changes
        # parameters between two steps finds the divided ones.
        unit = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
        # On a processor PyTorch 2.8 gives the sum where FSDP2 asks for the mean (its issue 162338),
        # and says nothing. Asked for the sum, every release divides by itself.
        unit.set_force_sum_reduction_for_comms(processes.device.type == "cpu")
    task.to_empty(device=processes.device)
    with torch.no_grad():
        for name, tensor in task.state_dict().items():
            value = processes.from_first(whole[name])
            if isinstance(tensor, DTensor):
                value = distribute_tensor(value, mesh, tensor.placements, src_data_rank=None)
            tensor.copy_(value)
    put_back(task, kept)
    for parameter in task.parameters():
        if parameter.ndim == 0 and parameter.requires_grad:
            _average_gradient(parameter, processes)
    # True of the memory projections; nothing is changed in place here.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def total_norm(gradients: Sequence[Tensor], processes: Processes) -> Tensor:
    """The Euclidean norm of the gradients of all parameters, the same on every process."""
    parts = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    if not parts:
        return torch.nn.utils.get_total_norm(gradients)
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    mean_square = processes.mean(torch.nn.utils.get_total_norm(parts).square())
    square = mean_square * processes.world_size
    if whole:
        square = square + torch.nn.utils.get_total_norm(whole).square()
    return square.sqrt()


def clip(gradients: Sequence[Tensor], norm: Tensor, longest: float) -> None:
    """Shorten the gradients in place, so that together they are at most `longest`.

    Args:
        gradients: of all parameters.
        norm: theirs, of `total_norm`.
        longest: norm that they may have.
    """
    factor = (longest / (norm + _TINY)).clamp(max=1.0)
    torch._foreach_mul_([local_part(gradient) for gradient in gradients], factor)


def whole_copies(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Copies of tensors, each put together from its parts, on the host of the first process.

    All processes take part; those that are not the first get an empty dictionary.
    """
    copies = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if processes.is_first:
            copies[name] = whole.detach().to("cpu", copy=True)
    return copies


def _units(task: AnyTask) -> Iterator[nn.Module]:
    """What is put together at once: inner modules come before those around them."""
    for module in task.modules():
        if isinstance(module, MemoryAttention):
            # Called by itself, for all layers in a row, before the layers run.
            yield module.key_value
    for module in task.modules():
        if isinstance(module, VisionBlock | TextLayer):
            yield module
        elif isinstance(module, BackboneEncoder):
            yield from module.blocks


def _average_gradient(parameter: nn.Parameter, processes: Processes) -> None:
    """Let every backward leave the mean over the processes, as it does for what is divided."""

    def average(parameter: Tensor) -> None:
        assert parameter.grad is not None
        # What earlier parts of the step have left is the same on every process: it stays so.
        parameter.grad.copy_(processes.mean(parameter.grad))

    parameter.register_post_accumulate_grad_hook(average)  # type: ignore[no-untyped-call]  # torch


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
