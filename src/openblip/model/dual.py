"""Two towers with unit-length embeddings: the plain contrastive model of `transformers`.

Not part of the paper; there it is the class `BlipModel`.
"""

from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openblip.model.config import TextConfig, VisionConfig, check_size
from openblip.model.kernels import Linear
from openblip.model.text import TextPass, TextStack
from openblip.model.vision import ImageEncoder, ImageModel
from openblip.runtime.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class DualConfig:
    """Sizes of a dual encoder."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    """The image encoder."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text encoder."""
    embed_dim: int = 512
    """Dimensions of the space in which images and texts are contrasted."""

    def __post_init__(self) -> None:
        check_size("embed_dim", self.embed_dim)


class DualEncoder(ImageModel[DualConfig]):
    """Embeds images and texts apart; the text stack has cross-attention, which embeddings skip.

    Ids of a text begin with `[CLS]`.
    """

    def __init__(self, config: DualConfig) -> None:
        super().__init__(config)
        if not isinstance(self.image_encoder, ImageEncoder):
            raise RecipeError("a dual encoder of transformers has no backbone but its own")
        self.text = TextStack(config.text, config.vision.width, ("multimodal",))
        self.text_pooler = Linear(config.text.width, config.text.width)
        self.image_projection = Linear(config.vision.width, config.embed_dim, bias=False)
        self.text_projection = Linear(config.text.width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """What cosine similarities are divided by: exp(-logit_scale)."""
        return (-self.logit_scale).exp()

    def embed_images(
        self, image_hidden: Float[Tensor, "batch patches vision_width"]
    ) -> Float[Tensor, "batch embed"]:
        """Unit-length embeddings of encoded images, from their class tokens."""
        # `transformers` applies the last layer norm to the class token a second time.
        encoder = cast("ImageEncoder", self.image_encoder)
        pooled = encoder.norm(image_hidden[:, 0])
        return F.normalize(self.image_projection(pooled).float(), dim=-1)

    def embed_texts(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows embed"]:
        """Unit-length embeddings of texts, from their first tokens."""
        (hidden,) = self.text(TextPass(ids, mask))
        pooled = torch.tanh(self.text_pooler(hidden[:, 0]))
        return F.normalize(self.text_projection(pooled).float(), dim=-1)
