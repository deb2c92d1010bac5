"""The models made out of a MED: for questions (BLIP, section 5.3), and for two images (5.4).

The latter is for natural-language visual reasoning: is a sentence true of two images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openblip.model.attention import KeyValueCache, MemoryAttention
from openblip.model.config import TextConfig, VisionConfig, check_size, initial_std
from openblip.model.kernels import Linear
from openblip.model.med import Med
from openblip.model.memory import ImageMemory, LayerMemory
from openblip.model.packing import Packing
from openblip.model.text import TextLayer, TextPass, TextStack, initialise
from openblip.model.vision import ImageModel
from openblip.runtime.errors import MissingHead


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
        super().__init__(config)
        config = self.config
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

    def remember_questions(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows tokens"],
        memory: ImageMemory,
    ) -> ImageMemory:
        """What the answers to questions about images attend to: the two before it in one."""
        return self.question_memory(self.read_questions(ids, mask, memory), mask)

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


@dataclass(frozen=True, kw_only=True)
class NlvrConfig:
    """Sizes of a two-image model."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    """The image encoder, used for both images."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text encoder."""
    merge_from_layer: int = 6
    """First layer that joins the two images by a learned map; those below average them."""

    def __post_init__(self) -> None:
        check_size("merge_from_layer", self.merge_from_layer, least=0)


class TwinCrossAttention(nn.Module):
    """Cross-attention over two images, joined before the residual and the one layer norm.

    Keys and values hold the first images of all pairs, then the second ones.
    """

    def __init__(self, config: TextConfig, memory_width: int, *, merges: bool) -> None:
        super().__init__()
        sizes = (config.width, memory_width, config.heads, config.dropout)
        self.first = MemoryAttention(*sizes)
        self.second = MemoryAttention(*sizes)
        self.merge = Linear(2 * config.width, config.width) if merges else None
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def remember(
        self, image_hidden: Float[Tensor, "images patches memory_width"]
    ) -> tuple[
        Float[Tensor, "images heads patches head_dim"],
        Float[Tensor, "images heads patches head_dim"],
    ]:
        """Keys and values of the first images, then of the second ones."""
        # Halves, not pairs side by side: both images of all pairs were encoded as one batch.
        first, second = image_hidden.chunk(2)
        pairs = zip(self.first.remember(first), self.second.remember(second), strict=True)
        keys, values = (torch.cat(pair) for pair in pairs)
        return keys, values

    def forward(
        self,
        hidden: Float[Tensor, "packed width"],
        memories: Sequence[LayerMemory],
        packings: Sequence[Packing],
    ) -> Float[Tensor, "packed width"]:
        halves = [_halves(memory) for memory in memories]
        first = self.first(hidden, [half for half, _ in halves], packings)
        second = self.second(hidden, [half for _, half in halves], packings)
        if self.merge is None:
            joined = (first + second) / 2
        else:
            joined = self.merge(torch.cat([first, second], dim=-1))
        out: Tensor = self.norm(hidden + self.dropout(joined))
        return out


def _halves(memory: LayerMemory) -> tuple[LayerMemory, LayerMemory]:
    """The keys and values of the first images of all pairs, and of the second ones."""
    keys, values = memory.keys.chunk(2), memory.values.chunk(2)
    return LayerMemory(keys[0], values[0]), LayerMemory(keys[1], values[1])


class Nlvr(ImageModel[NlvrConfig]):
    """A sentence that attends to two images, and whether it is true of them.

    Ids of a sentence begin with `[ENC]`.
    """

    def __init__(self, config: NlvrConfig) -> None:
        super().__init__(config)
        config = self.config
        self.text = TextStack(config.text, config.vision.width, ("multimodal",))
        for number, layer in enumerate(self.text.layers):
            merges = number >= config.merge_from_layer
            # The stack has drawn its weights already: what is put in later would keep PyTorch's
            # own.
            twin = TwinCrossAttention(config.text, config.vision.width, merges=merges)
            cast("TextLayer", layer).cross_attention = twin.apply(
                partial(initialise, std=initial_std(config.text.width))
            )
        self.classifier = Classifier(config.text.width)

    def memory(
        self,
        first_hidden: Float[Tensor, "pairs patches vision_width"],
        second_hidden: Float[Tensor, "pairs patches vision_width"],
    ) -> ImageMemory:
        """What sentences about pairs of encoded images attend to."""
        return self.text.remember(torch.cat([first_hidden, second_hidden]))

    def compare(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows tokens"],
        memory: ImageMemory,
    ) -> Float[Tensor, "rows 2"]:
        """Logits of (false, true) for sentences about pairs; rows are grouped by pair."""
        (hidden,) = self.text(TextPass(ids, mask, memory, reads="first"))
        logits: Tensor = self.classifier(hidden[:, 0])
        return logits


class Classifier(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = Linear(width, width)
        self.output = Linear(width, 2)

    def forward(self, state: Float[Tensor, "rows width"]) -> Float[Tensor, "rows 2"]:
        logits: Tensor = self.output(F.relu(self.hidden(state)))
        return logits


# The original merges the two images in the upper half of the text layers.
_MERGE_FROM = 0.5


def vqa_from(med: Med) -> Vqa:
    """A model for questions that begins as the MED (BLIP, figure 5b).

    The question encoder has the weights of the image-grounded encoder, the answer decoder those of
    the decoder, which attends to the states of a question. Where these are as wide as an
    image's, its keys and values are the decoder's, as in the original; else they are fresh.

    Raises:
        MissingHead: if the MED has no encoder or no decoder.
    """
    med.require("lm")
    _require_encoder(med)
    vqa = Vqa(VqaConfig(vision=med.config.vision, text=med.config.text))
    vqa.image_encoder.load_state_dict(med.image_encoder.state_dict())
    _take_over(vqa.question, med.text)
    _take_over(vqa.answer, med.text)
    return vqa


def nlvr_from(med: Med) -> Nlvr:
    """A two-image model with the weights of the MED's image-grounded encoder (BLIP, figure 5c).

    Both cross-attentions of a layer begin as copies of the one; the maps that merge them and the
    classifier are fresh.

    Raises:
        MissingHead: if the MED has no image-grounded encoder.
    """
    _require_encoder(med)
    text = med.config.text
    nlvr = Nlvr(
        NlvrConfig(
            vision=med.config.vision,
            text=text,
            merge_from_layer=int(text.depth * _MERGE_FROM),
        )
    )
    nlvr.image_encoder.load_state_dict(med.image_encoder.state_dict())
    weights = med.text.state_dict()
    for name in [name for name in weights if ".cross_attention." in name]:
        before, part = name.split(".cross_attention.")
        # Both images share one norm, which keeps its name.
        if not part.startswith("norm."):
            for twin in ("first", "second"):
                weights[f"{before}.cross_attention.{twin}.{part}"] = weights[name]
    _take_over(nlvr.text, med.text, weights)
    return nlvr


def _require_encoder(med: Med) -> None:
    if not {"itm", "multimodal"} & set(med.config.heads):
        raise MissingHead(
            "this checkpoint has no image-grounded encoder (it has: "
            f"{', '.join(med.config.heads)}); load a pre-trained, retrieval or filter checkpoint"
        )


def _take_over(
    stack: TextStack, source: TextStack, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Copies into a stack every weight of the same name and shape."""
    known = source.state_dict() if weights is None else weights
    own = stack.state_dict()
    # All names, as it refuses to load a part: what the source lacks stays as it was drawn.
    stack.load_state_dict(
        own | {k: v for k, v in known.items() if k in own and own[k].shape == v.shape}
    )
