"""Fine-tuning for questions about images (BLIP, section 5.3)."""

from dataclasses import dataclass

from torch import Tensor

from openblip.data.examples import Examples
from openblip.errors import RecipeError
from openblip.model import TextPass
from openblip.model.vqa import Vqa
from openblip.objectives.lm import IGNORED, lm_loss, next_token_labels
from openblip.tasks.protocol import StepOutput, StepPosition, Task


@dataclass(frozen=True, kw_only=True)
class VqaObjectives:
    """Language modelling of answers; the default is that of the paper."""

    label_smoothing: float = 0.1
    """Probability that is spread over the vocabulary."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise RecipeError(f"objectives.label_smoothing {self.label_smoothing} is not in [0, 1)")


@dataclass(frozen=True)
class QuestionBatch(Examples):
    """Questions about images with their answers, ready for a model."""

    ids: tuple[str, ...]
    """Ids of the rows."""
    images: Tensor
    """float32 (questions, 3, height, width), normalised."""
    tokens: Tensor
    """int64 (questions, tokens), the first token is `[ENC]`."""
    mask: Tensor
    """bool (questions, tokens), True = attend."""
    answers: Tensor
    """int64 (answers, tokens), the first token is `[DEC]`; a question's follow each other."""
    answers_mask: Tensor
    """bool (answers, tokens), True = attend."""
    question_of_answer: Tensor
    """int64 (answers,), which question each answers."""
    weights: Tensor
    """float32 (answers,): the share of the annotators who gave it, which sum to 1 per question."""
    step: int
    """Number of the global batch that this is (a part of), from 0."""


class VqaTask(Task[QuestionBatch]):
    """Trains a question encoder and an answer decoder.

    Every question is read once with its image, and its states' keys and values serve all of its
    answers. The loss of an answer is the *sum* over its tokens, weighted, and divided by the number
    of questions, as in the original.

    Args:
        student: the model.
        objectives: settings.
    """

    kind = "vqa"
    student: Vqa

    def __init__(self, student: Vqa, objectives: VqaObjectives) -> None:
        super().__init__()
        self.student = student
        self.objectives = objectives

    def forward(self, batch: QuestionBatch, position: StepPosition) -> StepOutput:
        """The weighted loss of the answers; draws nothing, so the position is unused."""
        memory = self.student.image_memory(self.student.encode_images(batch.images))
        states = self.student.read_questions(batch.tokens, batch.mask, memory)
        questions = self.student.question_memory(states, batch.mask)
        answers = TextPass(
            batch.answers,
            batch.answers_mask,
            questions.select(batch.question_of_answer),
            causal=True,
        )
        (hidden,) = self.student.answer(answers)
        labels = next_token_labels(batch.answers, batch.answers_mask)
        logits = self.student.answer.logits(hidden[labels != IGNORED][None])[0]
        losses = lm_loss(logits, labels, self.objectives.label_smoothing, "sum_per_row")
        loss = (batch.weights * losses).sum() / len(batch.images)
        return StepOutput(loss, {"lm": loss.detach()})
