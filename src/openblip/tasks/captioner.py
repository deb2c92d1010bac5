"""Fine-tuning a captioner: language modelling on human captions (BLIP, section 3.3)."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from openblip.data.loader import Batch
from openblip.data.tokenizer import SpecialTokens
from openblip.errors import RecipeError
from openblip.model import ImageMemory, Med
from openblip.objectives.lm import IGNORED, lm_loss, next_token_labels
from openblip.tasks.protocol import StepOutput, StepPosition, Task


@dataclass(frozen=True, kw_only=True)
class CaptionerObjectives:
    """Language modelling alone; the default is that of the paper."""

    label_smoothing: float = 0.1
    """Probability that is spread over the vocabulary."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise RecipeError(f"objectives.label_smoothing {self.label_smoothing} is not in [0, 1)")


class CaptionLoss(NamedTuple):
    """The loss of some captions and over how much it is a mean."""

    loss: Tensor
    """Scalar, nats per label."""
    num_labels: Tensor
    """Scalar int64."""


def caption_loss(
    student: Med,
    tokens: Tensor,
    mask: Tensor,
    memory: ImageMemory,
    special: SpecialTokens,
    *,
    prompt_tokens: int = 0,
    label_smoothing: float = 0.1,
) -> CaptionLoss:
    """The language-modelling loss of captions given their images, in the decoder role.

    Args:
        student: has the head "lm".
        tokens: int64 (rows, tokens); whatever the first one is, the decoder gets `[DEC]`.
        mask: bool (rows, tokens).
        memory: of one image per row.
        special: where `[DEC]` is.
        prompt_tokens: tokens at the beginning that are no labels, `[DEC]` included.
        label_smoothing: as in `lm_loss`.
    """
    ids = tokens.clone()
    ids[:, 0] = special.dec
    labels = next_token_labels(ids, mask, prompt_tokens)
    hidden = student.text(ids, mask, memory=memory, causal=True)
    labelled = labels != IGNORED
    # About half of a batch is padding, and the vocabulary is the largest product of the decoder.
    logits = student.text.logits(hidden[labelled][None])[0]
    return CaptionLoss(lm_loss(logits, labels, label_smoothing), labelled.sum())


class CaptionerTask(Task):
    """Trains a captioner from a pre-trained model.

    Args:
        student: has the head "lm".
        special: where `[DEC]` is.
        prompt_tokens: tokens of the prompt that the loader puts before every caption, with the
            first, special one and without `[SEP]` (4 for "a picture of "); they are no labels.
        label_smoothing: as in `lm_loss`.

    Raises:
        MissingHead: if the student cannot generate.
    """

    kind = "captioner"

    def __init__(
        self,
        student: Med,
        special: SpecialTokens,
        prompt_tokens: int = 0,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        student.require("lm")
        self.student = student
        self.special = special
        self.prompt_tokens = prompt_tokens
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """The language-modelling loss of a batch; draws nothing, so the position is unused."""
        hidden = self.student.encode_images(batch.images)
        loss = caption_loss(
            self.student,
            batch.tokens,
            batch.mask,
            self.student.text.remember(hidden, causal=True),
            self.special,
            prompt_tokens=self.prompt_tokens,
            label_smoothing=self.label_smoothing,
        ).loss
        return StepOutput(loss, {"lm": loss.detach()})
