"""Natural-language visual reasoning: is a sentence true of two images (BLIP, section 5.4)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openblip.model.attention import MemoryAttention
from openblip.model.config import TextConfig, VisionConfig, check_size, initial_std
from openblip.model.linear import Linear
from openblip.model.memory import ImageMemory, LayerMemory
from openblip.model.packing import Packing
from openblip.model.text import TextLayer, TextPass, TextStack, initialise
from openblip.model.vision import ImageEncoder, ImageModel


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
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config.vision)
        self.text = TextStack(config.text, config.vision.width, ("multimodal",))
        for number, layer in enumerate(self.text.layers):
            merges = number >= config.merge_from_layer
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
