"""CLIP's training: contrast within the batch, without a teacher (Radford et al. 2021)."""

from typing import Self

import torch
from torch import Tensor

from openblip.batches.loader import Batch
from openblip.model import Med
from openblip.objectives.itc import itc_loss, own_pairs, similarities
from openblip.objectives.named import CLIP
from openblip.objectives.settings import ClipObjectives
from openblip.objectives.task import (
    Collectives,
    SingleProcess,
    StepOutput,
    StepPosition,
    Task,
    TaskContext,
)
from openblip.runtime.errors import RecipeError


class ClipTask(Task[Batch]):
    """Trains the image encoder and the unimodal text encoder of a MED alone, as a dual encoder.

    The loss is the symmetric cross-entropy of CLIP's figure 3. Gradients reach both sides of every
    similarity; with several ranks, the features of all are compared.

    Args:
        student: has the head "itc" alone.
        objectives: settings.
        collectives: to the other processes of the run; by default there are none.

    Raises:
        MissingHead: if the student has no "itc" head.
        RecipeError: if it has others, which would not be trained.
    """

    needs = CLIP
    kind = "pretrain"
    student: Med

    def __init__(
        self, student: Med, objectives: ClipObjectives, collectives: Collectives | None = None
    ) -> None:
        super().__init__()
        student.require("itc")
        # Other heads would be saved untrained, and nobody would see it.
        if student.config.heads != ("itc",):
            raise RecipeError(
                f"model.heads are {', '.join(student.config.heads)}; CLIP trains itc alone: "
                "set model.heads to itc"
            )
        self.student = student
        self.objectives = objectives
        self.collectives = collectives or SingleProcess()

    @classmethod
    def build(cls, student: Med, settings: ClipObjectives, context: TaskContext) -> Self:
        """As `Task.build`."""
        return cls(student, settings, context.collectives)

    @torch.no_grad()
    def begin_step(self, position: StepPosition) -> None:
        """Clamp the temperature in place."""
        self.student.temperature.clamp_(min=self.objectives.min_temperature)

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """The itc head."""
        return ("itc",)

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """The contrast of a batch; draws nothing, so the position is unused."""
        hidden = self.student.encode_images(batch.images)
        loss = self._contrast(
            self.student.embed_images(hidden),
            self.student.embed_texts(batch.tokens, batch.mask),
        )
        terms = {
            "itc": loss.detach(),
            "temperature": self.student.temperature.detach().clone(),
        }
        return StepOutput(loss, terms)

    def _contrast(self, image_embed: Tensor, text_embed: Tensor) -> Tensor:
        # A rank's rows against the keys of all; the gradients of keys come back from every rank, so
        # that together they are those of the whole matrix.
        gather = self.collectives.gather_with_gradient
        image_keys, text_keys = gather(image_embed), gather(text_embed)
        rows, temperature = len(image_embed), self.student.temperature
        first = rows * self.collectives.rank
        own = own_pairs(rows, len(image_keys), first, image_embed.device).float()
        return itc_loss(
            similarities(image_embed, text_keys, temperature),
            similarities(text_embed, image_keys, temperature),
            own,
            own,
        )
