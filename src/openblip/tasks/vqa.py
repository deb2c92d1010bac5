"""Fine-tuning for questions about images (BLIP, section 5.3)."""

from typing import Self

from torch import nn

from openblip.data.questions import QuestionBatch
from openblip.model import Med, TextPass
from openblip.model.derived import vqa_from
from openblip.model.vqa import Vqa
from openblip.objectives.lm import IGNORED, lm_loss, next_token_labels
from openblip.tasks.named import VQA
from openblip.tasks.protocol import StepOutput, StepPosition, Task, TaskContext
from openblip.tasks.settings import VqaObjectives


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
        if isinstance(model, Med):
            return vqa_from(model)
        return model if isinstance(model, Vqa) else None

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
