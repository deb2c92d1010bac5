"""Fine-tuning for questions about images (BLIP, section 5.3)."""

from openblip.data.questions import QuestionBatch
from openblip.model import TextPass
from openblip.model.vqa import Vqa
from openblip.objectives.lm import IGNORED, lm_loss, next_token_labels
from openblip.tasks.protocol import StepOutput, StepPosition, Task
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
