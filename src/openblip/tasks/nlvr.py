"""Fine-tuning for sentences about two images (BLIP, section 5.4)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.data.examples import Examples
from openblip.model.nlvr import Nlvr
from openblip.tasks.protocol import StepOutput, StepPosition, Task


@dataclass(frozen=True, kw_only=True)
class NlvrObjectives:
    """Cross-entropy of true and false; it has no settings."""


@dataclass(frozen=True)
class ImagePairBatch(Examples):
    """Sentences about two images each, ready for a model."""

    ids: tuple[str, ...]
    """Ids of the examples."""
    first_images: Tensor
    """float32 (pairs, 3, height, width), normalised."""
    second_images: Tensor
    """float32 (pairs, 3, height, width), likewise."""
    tokens: Tensor
    """int64 (pairs, tokens), the first token is `[ENC]`."""
    mask: Tensor
    """bool (pairs, tokens), True = attend."""
    labels: Tensor
    """int64 (pairs,): 1 where the sentence is true of its images, else 0."""
    step: int
    """Number of the global batch that this is (a part of), from 0."""


class NlvrTask(Task[ImagePairBatch]):
    """Trains a two-image model; both images of all pairs are encoded as one batch.

    Args:
        student: the model.
    """

    kind = "nlvr"
    student: Nlvr

    def __init__(self, student: Nlvr) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: ImagePairBatch, position: StepPosition) -> StepOutput:
        """The cross-entropy of a batch; draws nothing, so the position is unused."""
        images = torch.cat([batch.first_images, batch.second_images])
        memory = self.student.memory(*self.student.encode_images(images).chunk(2))
        logits = self.student.compare(batch.tokens, batch.mask, memory)
        loss = F.cross_entropy(logits.float(), batch.labels)
        right = (logits.argmax(dim=1) == batch.labels).float().mean()
        return StepOutput(loss, {"truth": loss.detach(), "accuracy": right})
