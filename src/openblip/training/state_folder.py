"""The training state of all processes as files, by `torch.distributed.checkpoint` (DCP).

Every process writes a part, and any number of processes reads them: tensors go by their names, and
are whole whoever wrote which piece of them.
"""

import pickle
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from openblip.checkpoints.assembly import check_names, check_shape
from openblip.objectives.task import AnyTask
from openblip.runtime.errors import CheckpointError
from openblip.training.parallelism import Processes

_TASK, _MOMENTS = "task.", "optimiser."
# A damaged file raises many kinds; what happens in another process is no `Exception` of DCP's.
_FAILURES = (Exception, CheckpointException)
# All that a list of contents is made of.
_IN_CONTENTS = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}


def begin_writing(
    folder: Path, task: AnyTask, optimiser: torch.optim.Optimizer, processes: Processes
) -> Callable[[], None]:
    """Copy what this process has to write, and begin to write it in a thread.

    Args:
        folder: made if it is absent; the same on every process.
        task: all of its state is written.
        optimiser: its moments, by the names of the parameters.
        processes: of the run; every one calls this.

    Returns:
        A function that returns when every process has written its part, and all of it is on the
        disk; it raises CheckpointError where a process could not.
    """
    values = {
        **{f"{_TASK}{name}": tensor for name, tensor in task.state_dict().items()},
        **_moments(task, optimiser),
    }
    _silence()
    written = async_save(
        _share(values, processes),
        checkpoint_id=folder,
        process_group=processes.background,
        **_alone(processes),
    )

    def finish() -> None:
        try:
            cast("Future[Any]", written).result()
        except _FAILURES as error:
            raise CheckpointError(f"{folder}: cannot be written ({_reason(error)})") from error

    return finish


def read_into(folder: Path, task: AnyTask, optimiser: torch.optim.Optimizer) -> None:
    """Put what `begin_writing` wrote into a task and an optimiser.

    Every process calls this. How many wrote, and whether the task was divided among them, makes no
    difference.

    Raises:
        CheckpointError: if a file is missing or damaged, or is of another task.
    """
    reader = _Reader(folder)
    try:
        contents = reader.read_metadata().state_dict_metadata
    except _FAILURES as error:
        raise CheckpointError(f"{folder}: cannot be read ({_reason(error)})") from error
    sizes = {
        name: tuple(entry.size)
        for name, entry in contents.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    values = {f"{_TASK}{name}": tensor for name, tensor in task.state_dict().items()}
    parameters = dict(task.named_parameters())
    # A fresh optimiser remembers nothing: what it will remember is listed in the contents.
    moments: dict[str, dict[str, Tensor]] = {}
    for key, size in sizes.items():
        name, _, kind = key.removeprefix(_MOMENTS).rpartition(".")
        if key.startswith(_MOMENTS) and name in parameters:
            values[key] = _empty_moment(parameters[name], size)
            moments.setdefault(name, {})[kind] = values[key]
    check_names(set(values), set(sizes), str(folder))
    for key, size in sizes.items():
        check_shape(key, size, tuple(values[key].shape), str(folder))
    # Everything was checked: from here on the task's own tensors are written to.
    _silence()
    try:
        load(values, storage_reader=reader, no_dist=not dist.is_initialized())
    except _FAILURES as error:
        raise CheckpointError(f"{folder}: cannot be read ({_reason(error)})") from error
    _set_moments(optimiser, task, moments)


class _Reader(FileSystemReader):
    """Takes from the list of contents, which is a pickle, nothing that could run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        assert isinstance(metadata, Metadata)
        assert metadata.storage_meta is not None
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in _IN_CONTENTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def _moments(task: AnyTask, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that the optimiser remembers of a parameter, by the parameter's name."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in task.named_parameters()}
    return {
        f"{_MOMENTS}{names[parameter]}.{kind}": value
        for parameter, state in optimiser.state.items()
        for kind, value in state.items()
    }


def _set_moments(
    optimiser: torch.optim.Optimizer, task: AnyTask, moments: Mapping[str, dict[str, Tensor]]
) -> None:
    names = {parameter: name for name, parameter in task.named_parameters()}
    # By name: an optimiser numbers its parameters group by group, and groups may be cut otherwise.
    groups = optimiser.state_dict()["param_groups"]
    every = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state = {
        number: moments[names[parameter]]
        for number, parameter in enumerate(every)
        if names[parameter] in moments
    }
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _empty_moment(parameter: Tensor, size: tuple[int, ...]) -> Tensor:
    """Room for what is remembered of a parameter: divided as it is, or a count of steps."""
    if size == tuple(parameter.shape):
        return torch.empty_like(parameter, requires_grad=False)
    return torch.empty(size)


def _share(values: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """What this process writes: its parts, and as much as any other of what all of them have."""
    # Every process goes through the same names and comes to the same division: nobody asks.
    loads = [0] * processes.world_size
    own = {}
    for name, value in values.items():
        writer = processes.rank
        if not isinstance(value, DTensor):
            writer = loads.index(min(loads))
            loads[writer] += value.nbytes
        if writer == processes.rank:
            own[name] = value
    return own


def _alone(processes: Processes) -> dict[str, Any]:
    """What tells `async_save` of a single process; PyTorch 2.8 finds that out by itself."""
    known = "no_dist" in signature(async_save).parameters
    return {"no_dist": processes.world_size == 1} if known else {}


def _silence() -> None:
    """Let DCP not warn of what is meant, nor of itself, from whichever thread it would."""
    if not dist.is_initialized():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
    # PyTorch 2.8 asks for the size of a storage by a name that it has given up itself. The thread
    # that writes does so, which a filter for the time of one call would not reach.
    module = r"torch\.distributed\.checkpoint\.filesystem"
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated", module=module)


def _reason(error: BaseException) -> str:
    """The last line: DCP's errors hold those of all processes with their traces."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
