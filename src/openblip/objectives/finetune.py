"""Fine-tuning: captions, questions about images, sentences about two images.

BLIP, sections 5.2 to 5.4. Fine-tuning a filter is pre-training's step: `objectives.pretrain`.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.batches.image_pairs import ImagePairBatch
from openblip.batches.loader import Batch
from openblip.batches.questions import QuestionBatch
from openblip.batches.tokenizer import SpecialTokens
from openblip.checkpoints.families import family_of
from openblip.model import ImageMemory, Med, TextPass
from openblip.model.vqa import Nlvr, Vqa
from openblip.objectives.lm import label_places, lm_loss, next_token_labels
from openblip.objectives.named import CAPTIONER, NLVR, VQA
from openblip.objectives.pool import Texts
from openblip.objectives.settings import CaptionerObjectives, NlvrObjectives, VqaObjectives
from openblip.objectives.task import StepOutput, StepPosition, Task, TaskContext


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
    host_mask: Tensor,
    *,
    prompt_tokens: int | Tensor = 0,
    label_smoothing: float = 0.1,
) -> CaptionLoss:
    """The language-modelling loss of captions given their images.

    Args:
        student: has the head "lm".
        captions: of `caption_pass`.
        hidden: (rows, tokens, width) of their pass through the text stack.
        host_mask: of the captions as the loader gave them (`Examples.on_host`).
        prompt_tokens: tokens at the beginning that are no labels, `[DEC]` included; of all
            captions, or int64 (rows,) on the host.
        label_smoothing: as in `lm_loss`.
    """
    assert captions.mask is not None
    labels = next_token_labels(captions.ids, captions.mask, prompt_tokens)
    labelled = label_places(host_mask, labels.shape[1], labels.device, prompt_tokens)
    # About half of a batch is padding, and the vocabulary is the largest product of the decoder.
    logits = student.text.logits(labelled.pack(hidden)[None])[0]
    loss = lm_loss(logits, labels, label_smoothing, places=labelled.places)
    return CaptionLoss(loss, torch.full((), labelled.count, device=loss.device))


class CaptionerTask(Task[Batch]):
    """Trains a captioner from a pre-trained model.

    Args:
        student: has the head "lm".
        special: where `[DEC]` is.
        prompt_tokens: tokens of the prompt that the loader puts before every caption, with the
            first, special one and without `[SEP]` (4 for "a picture of "); they are no labels, nor
            are those of a text that is given before it.
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
        # The decoder's alone: an encoder that is not trained would only cost.
        memory = self.student.text.remember(hidden, causal=True)
        captions = caption_pass(Texts(*batch.written), memory, self.special)
        (states,) = self.student.text(captions)
        given = batch.on_host.given_tokens
        loss = caption_loss(
            self.student,
            captions,
            states,
            batch.on_host.written[1],
            prompt_tokens=self.prompt_tokens if given is None else self.prompt_tokens + given,
            label_smoothing=self.label_smoothing,
        ).loss
        return StepOutput(loss, {"lm": loss.detach()})


class VqaTask(Task[QuestionBatch]):
    """Trains a question encoder and an answer decoder.

    Every question is read once with its image, and its states' keys and values serve all of its
    answers. The loss of an answer is the *sum* over its tokens, weighted, and divided by the number
    of questions, as in the original.

    Args:
        student: the model.
        objectives: settings.
    """

    needs = VQA
    kind = "vqa"
    student: Vqa

    def __init__(self, student: Vqa, objectives: VqaObjectives) -> None:
        super().__init__()
        self.student = student
        self.objectives = objectives

    @classmethod
    def build(cls, student: Vqa, settings: VqaObjectives, context: TaskContext) -> Self:
        """As `Task.build`."""
        return cls(student, settings)

    @classmethod
    def student_from(cls, model: nn.Module) -> Vqa | None:
        """A model of this kind, or one that is made out of a pre-trained MED."""
        student: Vqa | None = family_of(Vqa).begun_from(model)
        return student

    def forward(self, batch: QuestionBatch, position: StepPosition) -> StepOutput:
        """The weighted loss of the answers; draws nothing, so the position is unused."""
        memory = self.student.image_memory(self.student.encode_images(batch.images))
        # Grouped by image, one question each.
        states = self.student.read_questions(batch.tokens, batch.mask, memory)
        questions = self.student.question_memory(states, batch.mask)
        answers = TextPass(
            batch.answers,
            batch.answers_mask,
            # By index: a question's keys and values are not computed for each of its answers.
            questions.select(batch.question_of_answer),
            causal=True,
        )
        (hidden,) = self.student.answer(answers)
        labels = next_token_labels(batch.answers, batch.answers_mask)
        labelled = label_places(batch.on_host.answers_mask, labels.shape[1], labels.device)
        logits = self.student.answer.logits(labelled.pack(hidden)[None])[0]
        smoothing = self.objectives.label_smoothing
        losses = lm_loss(logits, labels, smoothing, "sum_per_row", labelled.places)
        loss = (batch.weights * losses).sum() / len(batch.images)
        return StepOutput(loss, {"lm": loss.detach()})


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
        student: Nlvr | None = family_of(Nlvr).begun_from(model)
        return student

    def forward(self, batch: ImagePairBatch, position: StepPosition) -> StepOutput:
        """The cross-entropy of a batch; draws nothing, so the position is unused."""
        # Halves, as the cross-attention of two images takes them apart again.
        images = torch.cat([batch.first_images, batch.second_images])
        memory = self.student.memory(*self.student.encode_images(images).chunk(2))
        logits = self.student.compare(batch.tokens, batch.mask, memory)
        # Under autocast the logits are bfloat16, in which a sure answer's loss would be 0.
        loss = F.cross_entropy(logits.float(), batch.labels)
        right = (logits.argmax(dim=1) == batch.labels).float().mean()
        return StepOutput(loss, {"truth": loss.detach(), "accuracy": right})
