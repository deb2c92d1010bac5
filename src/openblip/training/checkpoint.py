"""Checkpoints: folders that appear whole or not at all, and what is in them.

A checkpoint is a model folder (see `openblip.checkpoints.folder`) with two things beside the
weights, so that it can be loaded as a model and continued as a run: `run_state.json`, and the
folder `training_state`, which holds weights, teacher, queues and the optimiser's moments as
`torch.distributed.checkpoint` (DCP) writes them: every process a part, which any number of
processes reads, since tensors go by their names and are whole whoever wrote which piece of them.
"""

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, Self, cast
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.assembly import check_names, check_shape, fill
from openblip.checkpoints.families import family_of
from openblip.checkpoints.folder import write_model
from openblip.model.lowrank import merge
from openblip.objectives.task import AnyTask
from openblip.runtime.atomic import begin_folder, finish_folder, force_to_disk
from openblip.runtime.errors import CheckpointError, UnwritableError
from openblip.training.parallelism import Processes, whole_copies

STATE_FOLDER = "training_state"
RUN_STATE_FILE = "run_state.json"


@dataclass(kw_only=True)
class RunState:
    """Where a run stands, besides weights, queues and the optimiser's moments."""

    step: int = 0
    """Optimiser steps done."""
    seconds: float = 0.0
    """Time spent in the loop, over all starts of the run."""
    flops: float | None = 0.0
    """Arithmetic of all processes, each like the first, as `task_flops` counts; over all starts.
    None where it was not counted."""
    best_loss: float = float("inf")
    """The lowest loss that a checkpoint was judged by, nats."""
    best_step: int | None = None
    """Steps of the checkpoint that had it."""
    window_loss: float = 0.0
    """Sum of the training losses since the last regular checkpoint."""
    window_steps: int = 0
    """How many steps that sum is over."""
    terms: dict[str, float] = field(default_factory=dict)
    """Losses of the latest log line, by name."""
    data_fingerprint: str = ""
    """Digest of the rows and texts that the run draws from."""
    skipped: list[tuple[int, int]] = field(default_factory=list)
    """Steps that are left out, as sorted (first, end) ranges; see `openblip.training.guard`."""
    rewinds: int = 0
    """How often the run went back to a checkpoint by itself."""
    recent_losses: list[float] = field(default_factory=list)
    """Losses of the latest steps, which the next one is compared with."""
    products: dict[str, str] = field(default_factory=dict)
    """By machine (`machine_key`), which library does products there (`Products`): a run that goes
    on there takes the same, so that it learns the same bits."""

    @property
    def window_mean(self) -> float:
        """Mean training loss since the last regular checkpoint; infinite without a step."""
        return self.window_loss / self.window_steps if self.window_steps else float("inf")


class CheckpointStore:
    """The folder of a run's checkpoints: `step-*`, and the links `last` and `best` to two of them.

    A checkpoint that bears its name is complete, whenever the process was killed.

    Args:
        folder: of the checkpoints.
        num_last: how many of the latest are kept; a run that may rewind needs one before the last.
    """

    def __init__(self, folder: Path, num_last: int = 1) -> None:
        self.folder = folder
        self._num_last = num_last

    def latest(self) -> Path | None:
        """The checkpoint with the most steps; None if there is none.

        Raises:
            CheckpointError: `last` stands there without the checkpoint that it is a copy of.
        """
        latest = max(self.folder.glob("step-*"), default=None)
        last = self.folder / "last"
        if latest is None and last.is_dir():
            raise CheckpointError(
                f"{last}: a checkpoint, but not under its own name. To go on with it rename it to "
                f"{step_name(1)} with its number of steps ({RUN_STATE_FILE} says it); to begin "
                "anew give another folder"
            )
        return latest

    def by_step(self) -> dict[int, Path]:
        """All checkpoints by the steps that they were made after, in that order."""
        return {int(p.name.removeprefix("step-")): p for p in sorted(self.folder.glob("step-*"))}

    def point(self, last: int, best: int | None) -> None:
        """Let the links name the checkpoints after so many steps, and remove what is not kept.

        Kept are those that the links name, and the latest ones before `last`. Later ones are of a
        course that a rewind has left: nobody may go on from them.
        """
        self._link("last", step_name(last))
        if best is not None and (self.folder / step_name(best)).exists():
            self._link("best", step_name(best))
        elif os.path.lexists(self.folder / "best"):
            self._take_name(self.folder / "best")
        # Links first, then the removal: killed in between, a run has too many checkpoints.
        kept = {(self.folder / link).resolve().name for link in ("last", "best")}
        before = [path.name for step, path in self.by_step().items() if step <= last]
        kept.update(before[-self._num_last :])
        for path in self.folder.glob("step-*"):
            if path.name not in kept:
                self._take_name(path)
        # Names with a dot are that, and what a killed process left unfinished.
        for path in self.folder.glob(".*"):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path)

    def _take_name(self, path: Path) -> None:
        # Before the removal: killed within it, a folder would bear a name that is not complete.
        path.rename(path.with_name(f".{path.name}.{uuid4().hex[:8]}.removed"))

    def _link(self, link: str, target: str) -> None:
        # What copies a run may follow links (scp, object stores). Then this is a checkpoint a
        # second time, and no link can take its place.
        if (self.folder / link).is_dir() and not (self.folder / link).is_symlink():
            self._take_name(self.folder / link)
        # A link cannot be changed, but replaced in one step: no moment without `last`.
        fresh = self.folder / f".{link}.unfinished"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target, target_is_directory=True)
        fresh.replace(self.folder / link)
        force_to_disk(self.folder)


def step_name(step: int) -> str:
    """Name of the checkpoint after `step` steps; names sort as the steps do."""
    return f"step-{step:08d}"


class CheckpointWriter:
    """Writes checkpoints while training goes on, one after the other.

    A context that ends when the last one stands.

    Args:
        processes: all of them write; the first one puts the folder in its place once they have.
        tokenizer: goes into the model folder.
        max_tokens: longest text, likewise.
        given_tokens: longest text that a captioner reads before it writes, likewise.
        name_tokens: what it writes from that text alone, packed, likewise.
    """

    def __init__(
        self,
        processes: Processes,
        tokenizer: TextTokenizer,
        max_tokens: int,
        given_tokens: int = 0,
        name_tokens: str = "",
    ) -> None:
        self._processes = processes
        self._tokenizer = tokenizer
        self._max_tokens, self._given = max_tokens, (given_tokens, name_tokens)
        # One thread: checkpoints stand in the order of their steps.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[Path, Future[None]] | None = None

    def write(
        self,
        folder: Path,
        task: AnyTask,
        optimiser: torch.optim.Optimizer,
        state: RunState,
        notes: Mapping[str, str] | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Copy the student as a model, and all else that a run needs to go on, and begin to write.

        Waits for the checkpoint before. Every process calls this.

        Args:
            folder: appears whole, in place of one that may exist.
            task: its student and its teacher, queues and whatever else its state has; it may
                change as soon as this returns.
            optimiser: its moments, likewise.
            state: where the run stands, likewise.
            notes: contents of further files by name.
            then: called by the first process when the folder stands.

        Raises:
            CheckpointError: the checkpoint before could not be written.
        """
        self.wait()
        first = self._processes.is_first
        try:
            begun = begin_folder(folder) if first else None
        except OSError as error:
            raise _cannot_write(folder, error) from error
        # Nobody writes before the folder is there and empty.
        unfinished: Path = self._processes.gather_objects(begun)[0]
        # Everything is copied or written down here: from its return on, training changes it.
        texts = {RUN_STATE_FILE: json.dumps(asdict(state), indent=2) + "\n", **(notes or {})}
        weights = whole_copies(task.student.state_dict(), self._processes)
        if first:
            merge(weights, task.student)
        finish_state = begin_writing(unfinished / STATE_FOLDER, task, optimiser, self._processes)

        # The folder gets its name last, when every process's part is on the disk.
        def finish() -> None:
            try:
                finish_state()
                if first:
                    empty = family_of(task.student).empty(task.student.config)
                    model = fill(empty, weights, str(folder))
                    write_model(
                        unfinished,
                        model,
                        self._tokenizer,
                        task.kind,
                        self._max_tokens,
                        task.trained_heads,
                        *self._given,
                    )
                    for name, text in texts.items():
                        (unfinished / name).write_text(text, encoding="utf-8")
                    finish_folder(unfinished, folder)
                    if then is not None:
                        then()
            finally:
                if first:
                    shutil.rmtree(unfinished, ignore_errors=True)

        self._pending = folder, self._thread.submit(finish)

    def wait(self) -> None:
        """Return when no checkpoint is being written.

        Raises:
            CheckpointError: the last one could not be written.
        """
        if self._pending is None:
            return
        (folder, finished), self._pending = self._pending, None
        try:
            finished.result()
        except (OSError, CheckpointError) as error:
            raise _cannot_write(folder, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def read_checkpoint(folder: Path, task: AnyTask, optimiser: torch.optim.Optimizer) -> RunState:
    """Put a checkpoint's weights, queues and moments into `task` and `optimiser`.

    Every process calls this; how many wrote it makes no difference.

    Returns:
        where the run stood.

    Raises:
        CheckpointError: if a file is missing or damaged, or is of another model.
    """
    state = read_run_state(folder)
    try:
        read_into(folder / STATE_FOLDER, task, optimiser)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; remove {folder} to go on from an earlier checkpoint, or choose another run "
            "directory"
        ) from error
    return state


def _cannot_write(folder: Path, error: Exception) -> CheckpointError:
    named = isinstance(error, UnwritableError)
    said = str(error) if named else f"{folder}: cannot be written ({error})"
    return CheckpointError(
        f"{said}; the checkpoint before it is whole: make room, and "
        "the same call goes on from there"
    )


def read_run_state(folder: Path) -> RunState:
    """Where the run of a checkpoint stood.

    Raises:
        CheckpointError: the file that tells it is missing or damaged, or of an earlier version.
    """
    path = folder / RUN_STATE_FILE
    if (folder / "training_state.pt").exists():
        raise CheckpointError(
            f"{folder}: was written by an earlier version, whose runs cannot be continued; begin "
            "a run in another directory, with init_from: that folder to start from its weights"
        )
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return RunState(**values)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); remove {folder} to go on from an earlier checkpoint"
        ) from error


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
