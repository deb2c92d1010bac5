"""The multimodal mixture of encoder-decoder (BLIP, section 3.1 and figure 2)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openblip.model.attention import KeyValueCache
from openblip.model.config import Head, MedConfig
from openblip.model.kernels import Linear
from openblip.model.memory import ImageMemory, Memories
from openblip.model.text import TextPass, TextStack
from openblip.model.vision import ImageModel
from openblip.runtime.errors import MissingHead

_MATCHING = "a pre-trained, retrieval or filter checkpoint (such as demo/filter)"
KINDS_WITH: dict[Head, str] = {
    "itc": _MATCHING,
    "itm": _MATCHING,
    "lm": "a pre-trained or captioner checkpoint (such as demo/captioner)",
    "multimodal": _MATCHING,
}
"""What to load where a head is missing; the demo's models work at once."""


def build_heads(model: Any) -> None:
    """Give a `Med` or an `Albef` those heads of contrast and matching that its `config` lists."""
    config = model.config
    if "itc" in config.heads:
        model.image_projection = Linear(config.vision.width, config.embed_dim)
        model.text_projection = Linear(config.text.width, config.embed_dim)
        # Itself a weight and not, as in CLIP, its logarithm: so the original's files have it.
        model.temperature = nn.Parameter(torch.tensor(0.07))
    if "itm" in config.heads:
        model.itm_head = Linear(config.text.width, 2)


class Med(ImageModel[MedConfig]):
    """Image encoder, text stack and the three heads; only what `config.heads` lists is built.

    Ids given to `embed_texts` begin with `[CLS]`, to `match` with `[ENC]`, to `decode` with
    `[DEC]`: the model knows no tokenizer. Arguments are those of `ImageModel`.
    """

    image_projection: Linear
    text_projection: Linear
    temperature: nn.Parameter
    itm_head: Linear

    def __init__(self, config: MedConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config, backbone)
        config = self.config
        # Not the argument: a backbone has settled the width that cross-attention is built for.
        self.text = TextStack(config.text, config.vision.width, config.heads)
        build_heads(self)

    def require(self, head: Head) -> None:
        """Check that the model has a head.

        Raises:
            MissingHead: if it has not; names the kind of checkpoint that has.
        """
        if head not in self.config.heads:
            has = ", ".join(self.config.heads)
            raise MissingHead(
                f"this checkpoint has no {head} head (it has: {has}); load {KINDS_WITH[head]}"
            )

    def embed_images(
        self, image_hidden: Float[Tensor, "batch patches vision_width"]
    ) -> Float[Tensor, "batch embed"]:
        """Unit-length embeddings of encoded images, from their class tokens."""
        self.require("itc")
        # In float32 also under autocast: a length rounded to 8 bits is not 1, and the contrast
        # divides cosines by a small temperature.
        return F.normalize(self.image_projection(image_hidden[:, 0]).float(), dim=-1)

    def embed_texts(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows embed"]:
        """Unit-length embeddings of texts, in the unimodal role."""
        self.require("itc")
        (hidden,) = self.text(TextPass(ids, mask, reads="first"))
        return F.normalize(self.text_projection(hidden[:, 0]).float(), dim=-1)

    def memories(self, image_hidden: Float[Tensor, "images patches vision_width"]) -> Memories:
        """Cross-attention keys and values of encoded images, for encoder and decoder."""
        # Such a text stack has no cross-attention, and there would be nothing to index.
        if set(self.config.heads) == {"itc"}:
            self.require("multimodal")
        return self.text.memories(image_hidden)

    def match(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows tokens"],
        memory: ImageMemory,
    ) -> Float[Tensor, "rows 2"]:
        """Logits of (no match, match) for texts against images, in the encoder role."""
        self.require("itm")
        (hidden,) = self.text(TextPass(ids, mask, memory, reads="first"))
        return self.match_logits(hidden)

    def match_logits(self, hidden: Float[Tensor, "rows tokens width"]) -> Float[Tensor, "rows 2"]:
        """Logits of (no match, match) for hidden states of the encoder role."""
        logits: Tensor = self.itm_head(hidden[:, 0])
        return logits

    def decode(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows keys"] | None,
        memory: ImageMemory,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "rows tokens vocab"]:
        """Next-token logits of texts given images, in the decoder role."""
        self.require("lm")
        (hidden,) = self.text(TextPass(ids, mask, memory, causal=True), cache=cache)
        return self.text.logits(hidden)
