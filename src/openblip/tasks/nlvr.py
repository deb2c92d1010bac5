"""Fine-tuning for sentences about two images (BLIP, section 5.4)."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from openblip.data.image_pairs import ImagePairBatch
from openblip.model import Med
from openblip.model.derived import nlvr_from
from openblip.model.nlvr import Nlvr
from openblip.tasks.named import NLVR
from openblip.tasks.protocol import StepOutput, StepPosition, Task, TaskContext
from openblip.tasks.settings import NlvrObjectives


class NlvrTask(Task[ImagePairBatch]):
    """Trains a two-image model; both images of all pairs are encoded as one batch.

    Args:
        student: the model.
    """

    needs = NLVR
    kind = "nlvr"
    student: Nlvr

    def __init__(self, student: Nlvr) -> None:
        super().__init__()
        self.student = student

    @classmethod
    def build(cls, student: Nlvr, settings: NlvrObjectives, context: TaskContext) -> Self:
        """As `Task.build`."""
        return cls(student)

    @classmethod
    def student_from(cls, model: nn.Module) -> Nlvr | None:
        """A model of this kind, or one that is made out of a pre-trained MED."""
        if isinstance(model, Med):
            return nlvr_from(model)
        return model if isinstance(model, Nlvr) else None

    def forward(self, batch: ImagePairBatch, position: StepPosition) -> StepOutput:
        """The cross-entropy of a batch; draws nothing, so the position is unused."""
        images = torch.cat([batch.first_images, batch.second_images])
        memory = self.student.memory(*self.student.encode_images(images).chunk(2))
        logits = self.student.compare(batch.tokens, batch.mask, memory)
        loss = F.cross_entropy(logits.float(), batch.labels)
        right = (logits.argmax(dim=1) == batch.labels).float().mean()
        return StepOutput(loss, {"truth": loss.detach(), "accuracy": right})
