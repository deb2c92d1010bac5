"""A model divided among the processes of a run: fully sharded data parallelism (FSDP2).

Every process keeps a part of each parameter, and with it that part's gradient, its moments, and the
teacher's parameter. What a layer computes with is put together before it runs and given up after.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from openblip.interop.assembly import beside_state, put_back
from openblip.model.attention import MemoryAttention
from openblip.model.backbones import BackboneEncoder
from openblip.model.text import TextLayer
from openblip.model.vision import VisionBlock
from openblip.tasks.protocol import AnyTask
from openblip.training.distributed import Processes

# As in `torch.nn.utils.clip_grad_norm_`: no division by nothing.
_TINY = 1e-6


def shard(task: AnyTask, processes: Processes) -> None:
    """Divide a task among the processes, in place; with one process it stays whole.

    Args:
        task: with the values of the first process. On the others it may be on the meta device, so
            that one process alone ever holds the whole.
        processes: of the run.
    """
    if processes.world_size == 1:
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
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
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
