"""Fine-tuning a captioner: language modelling on human captions (BLIP, section 3.3)."""

from typing import NamedTuple, Self

from torch import Tensor

from openblip.data.loader import Batch
from openblip.data.tokenizer import SpecialTokens
from openblip.model import ImageMemory, Med, TextPass
from openblip.objectives.lm import IGNORED, lm_loss, next_token_labels
from openblip.tasks.named import CAPTIONER
from openblip.tasks.pool import Texts
from openblip.tasks.protocol import StepOutput, StepPosition, Task, TaskContext
from openblip.tasks.settings import CaptionerObjectives


class CaptionLoss(NamedTuple):
    """The loss of some captions and over how much it is a mean."""

    loss: Tensor
    """Scalar, nats per label."""
    num_labels: Tensor
    """Scalar int64."""


def caption_pass(texts: Texts, memory: ImageMemory, special: SpecialTokens) -> TextPass:
    """Captions in the decoder role: whatever their first token is, it becomes `[DEC]`.

    Args:
        texts: captions.
        memory: of one image per caption.
        special: where `[DEC]` is.
    """
    ids = texts.beginning_with(special.dec)
    return TextPass(ids, texts.mask, memory, causal=True, reads="tokens")


def caption_loss(
    student: Med,
    captions: TextPass,
    hidden: Tensor,
    *,
    prompt_tokens: int = 0,
    label_smoothing: float = 0.1,
) -> CaptionLoss:
    """The language-modelling loss of captions given their images.

    Args:
        student: has the head "lm".
        captions: of `caption_pass`.
        hidden: (rows, tokens, width) of their pass through the text stack.
        prompt_tokens: tokens at the beginning that are no labels, `[DEC]` included.
        label_smoothing: as in `lm_loss`.
    """
    assert captions.mask is not None
    labels = next_token_labels(captions.ids, captions.mask, prompt_tokens)
    labelled = labels != IGNORED
    # About half of a batch is padding, and the vocabulary is the largest product of the decoder.
    logits = student.text.logits(hidden[labelled][None])[0]
    return CaptionLoss(lm_loss(logits, labels, label_smoothing), labelled.sum())


class CaptionerTask(Task[Batch]):
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

    needs = CAPTIONER
    kind = "captioner"
    student: Med

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

    @classmethod
    def build(cls, student: Med, settings: CaptionerObjectives, context: TaskContext) -> Self:
        """As `Task.build`."""
        return cls(
            student,
            context.tokenizer.special,
            context.prompt_tokens,
            settings.label_smoothing,
        )

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """The lm head."""
        return ("lm",)

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """The language-modelling loss of a batch; draws nothing, so the position is unused."""
        hidden = self.student.encode_images(batch.images)
        memory = self.student.text.remember(hidden, causal=True)
        captions = caption_pass(Texts(batch.tokens, batch.mask), memory, self.special)
        (states,) = self.student.text(captions)
        loss = caption_loss(
            self.student,
            captions,
            states,
            prompt_tokens=self.prompt_tokens,
            label_smoothing=self.label_smoothing,
        ).loss
        return StepOutput(loss, {"lm": loss.detach()})
