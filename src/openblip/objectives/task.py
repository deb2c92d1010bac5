"""What a training loop and a task say to each other."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from torch import Tensor, nn

from openblip.batches.step_loader import Examples
from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.families import family_of
from openblip.model import Med, MedConfig
from openblip.model.albef import Albef
from openblip.model.vqa import Nlvr, Vqa
from openblip.objectives.named import TaskNeeds
from openblip.runtime.errors import TrainingError

BatchT = TypeVar("BatchT", bound=Examples)
Student = Med | Albef | Vqa | Nlvr
# What a line of metrics says besides the terms of a step.
_TAKEN = frozenset(
    {"step", "kind", "epoch", "lr", "loss", "grad_norm"}
    | {"pairs_per_second", "utilisation", "loader_share"}
)


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

    def __post_init__(self) -> None:
        # Said by the first step, and not when its numbers are to be written, many steps later.
        if taken := _TAKEN & self.terms.keys():
            raise TrainingError(
                f"a step has a term {min(taken)!r}, which the log calls something else: choose "
                f"another name than {', '.join(sorted(_TAKEN))}"
            )


class Collectives(Protocol):
    """Communication between the processes of a run, given to a task by the loop."""

    rank: int
    world_size: int

    def gather(self, tensor: Tensor) -> Tensor:
        # Apart from the next one, since a teacher's features need no message on the way back.
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


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What a run gives a task besides the student and the settings."""

    tokenizer: TextTokenizer
    """Of the texts; its `special` says where `[CLS]`, `[DEC]` and the others are."""
    collectives: Collectives
    """To the other processes of the run."""
    seed: int
    """Of the run: with the position it decides every draw."""
    prompt_tokens: int
    """Tokens of the prompt that stands before every caption (`data.prefix`): with the first,
    special one and without `[SEP]`."""


class Task(nn.Module, ABC, Generic[BatchT]):
    """A model with its objectives; `state_dict` holds all that a resumed run needs.

    One optimiser step of the loop is: `begin_step`, then `forward` and backward for each
    accumulated batch, the optimiser, then `finish_step` for each batch's update.

    A recipe names a task by `module:Class`, and `build` makes it. Parameters of its own are trained
    with the student's. A model folder has the student alone.
    """

    needs: ClassVar[TaskNeeds]
    """What the task needs of a recipe and of the data."""
    student: Student
    """The model that is trained."""

    @classmethod
    def build(cls, student: Any, settings: Any, context: TaskContext) -> Self:
        """The task of a recipe; unless this is overridden, the class is called with all three.

        Args:
            student: of the recipe, on the host or without content; the task keeps it as `student`.
            settings: the recipe's `objectives`, of the type that `needs` says.
            context: what the run gives.
        """
        return cls(student, settings, context)

    @classmethod
    def student_from(cls, model: nn.Module) -> Student | None:
        """The student that a trained model gives to start from; None where it can give none."""
        student: Student | None = family_of(cls.needs.model or MedConfig).begun_from(model)
        return student

    @property
    def kind(self) -> str:
        """What the student can be used as: the kind of a model folder."""
        return family_of(self.student).kinds[0]

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """The heads of the student that the loss reaches; of a student without heads none."""
        return ()

    @property
    def trains_all_weights(self) -> bool:
        """Whether the loss reaches every weight of the student; some may belong to other heads."""
        return set(self.trained_heads) == set(getattr(self.student.config, "heads", ()))

    def begin_step(self, position: StepPosition) -> None:
        """Changes that come before the forward: temperature clamp, teacher update."""

    @abstractmethod
    def forward(self, batch: BatchT, position: StepPosition) -> StepOutput:
        """Losses of a batch, free of side effects."""

    # No part of `forward`: a validation runs that too, and what a step that is not finite has made
    # must not come into the queues.
    def finish_step(self, update: QueueUpdate | None) -> None:
        """Changes that come after the optimiser: new features enter the queues."""


AnyTask = Task[Any]
