"""What a training loop and a task say to each other."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from openblip.data.examples import Examples
from openblip.model import Med
from openblip.model.albef import Albef
from openblip.model.nlvr import Nlvr
from openblip.model.vqa import Vqa

BatchT = TypeVar("BatchT", bound=Examples)
Student = Med | Albef | Vqa | Nlvr


@dataclass(frozen=True)
class StepPosition:
    """Where a run stands; with the seed it decides every random draw of the step."""

    step: int
    """Optimiser steps done before this one."""
    epoch: float
    """Passes over the data done before this step, with the fraction."""
    micro_step: int = 0
    """Which of the accumulated batches of the step this is."""


@dataclass(frozen=True)
class QueueUpdate:
    """Teacher features of a batch, on their way into the queues."""

    image_embed: Tensor
    """(batch, embed), unit length."""
    text_embed: Tensor
    """(batch, embed), unit length."""
    image_ids: Tensor
    """(batch,), equal for equal images."""
    text_ids: Tensor
    """(batch,), equal for equal texts."""


@dataclass(frozen=True)
class StepOutput:
    """What a step computed: nothing has been changed by it."""

    loss: Tensor
    """Scalar; the mean over this process's batch."""
    terms: Mapping[str, Tensor]
    """Detached scalars by name, for the log."""
    update: QueueUpdate | None = None
    """What `Task.finish_step` shall enqueue."""


class Collectives(Protocol):
    """Communication between the processes of a run, given to a task by the loop."""

    rank: int
    world_size: int

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, concatenated in rank order along the first dimension."""
        ...

    def gather_with_gradient(self, tensor: Tensor) -> Tensor:
        """The same; gradients flow back to the rank that a part came from, summed over ranks."""
        ...


class SingleProcess:
    """Collectives of a run that has one process."""

    rank = 0
    world_size = 1

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def gather_with_gradient(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor


class Task(nn.Module, ABC, Generic[BatchT]):
    """A model with its objectives; `state_dict` holds all that a resumed run needs.

    One optimiser step of the loop is: `begin_step`, then `forward` and backward for each
    accumulated batch, the optimiser, then `finish_step` for each batch's update.
    """

    kind: str
    """What the student can be used as: the kind of a model folder."""
    student: Student
    """The model that is trained."""

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """The heads of the student that the loss reaches; of a student without heads none."""
        return ()

    @property
    def trains_all_weights(self) -> bool:
        """Whether the loss reaches every weight of the student; some may belong to other heads."""
        return True

    def begin_step(self, position: StepPosition) -> None:
        """Changes that come before the forward: temperature clamp, teacher update."""

    @abstractmethod
    def forward(self, batch: BatchT, position: StepPosition) -> StepOutput:
        """Losses of a batch, free of side effects."""

    def finish_step(self, update: QueueUpdate | None) -> None:
        """Changes that come after the optimiser: new features enter the queues."""


AnyTask = Task[Any]
