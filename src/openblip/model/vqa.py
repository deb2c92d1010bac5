"""Visual question answering: a question encoder and an answer decoder (BLIP, section 5.3)."""

from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor

from openblip.model.cache import KeyValueCache
from openblip.model.config import TextConfig, VisionConfig, check_size
from openblip.model.memory import ImageMemory
from openblip.model.text import TextPass, TextStack
from openblip.model.vision import ImageEncoder, ImageModel


@dataclass(frozen=True, kw_only=True)
class VqaConfig:
    """Sizes of a question-answering model."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    """The image encoder."""
    text: TextConfig = field(default_factory=TextConfig)
    """The question encoder, and the answer decoder likewise."""
    answer_memory_width: int | None = None
    """Channels that the answer decoder's cross-attention is built for; None, those of a question.
    Any other model can be converted between layouts, but not run."""

    def __post_init__(self) -> None:
        if self.answer_memory_width is not None:
            check_size("answer_memory_width", self.answer_memory_width)


class Vqa(ImageModel[VqaConfig]):
    """Answers are decoded from the states of a question that was read together with its image.

    Ids of a question begin with `[ENC]`, those of an answer with `[DEC]`.
    """

    def __init__(self, config: VqaConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config.vision)
        self.question = TextStack(config.text, config.vision.width, ("multimodal",))
        memory_width = config.answer_memory_width or config.text.width
        self.answer = TextStack(config.text, memory_width, ("lm",))

    def image_memory(
        self, image_hidden: Float[Tensor, "images patches vision_width"]
    ) -> ImageMemory:
        """What the questions about encoded images attend to."""
        return self.question.remember(image_hidden)

    def read_questions(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows tokens"],
        memory: ImageMemory,
    ) -> Float[Tensor, "rows tokens width"]:
        """States of questions about images; rows are grouped by image."""
        states: Tensor = self.question(TextPass(ids, mask, memory))[0]
        return states

    def question_memory(
        self,
        states: Float[Tensor, "questions tokens width"],
        mask: Bool[Tensor, "questions tokens"] | None,
    ) -> ImageMemory:
        """What the answers attend to; answers are grouped by question, or use its `select`.

        Args:
            states: of `read_questions`.
            mask: of the questions. None attends to their padding too, as the original does when
                it generates an answer freely.
        """
        return self.answer.remember(states, causal=True, mask=mask)

    def decode(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows keys"] | None,
        memory: ImageMemory,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "rows tokens vocab"]:
        """Next-token logits of answers, given `question_memory`."""
        (hidden,) = self.answer(TextPass(ids, mask, memory, causal=True), cache=cache)
        return self.answer.logits(hidden)
