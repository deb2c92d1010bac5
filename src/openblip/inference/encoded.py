"""Images after the image encoder, and what is derived from them, computed when first asked for."""

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from openblip.errors import MissingHead
from openblip.inference.finite import finite
from openblip.model import ImageMemory, Med
from openblip.model.albef import Albef
from openblip.model.dual import DualEncoder

# In these, encoder and decoder have one cross-attention (BLIP, table 3).
_SHARED_CROSS_ATTENTION = ("all", "all_but_self_attention")


@torch.no_grad()
def embed_images(
    model: Med | Albef | DualEncoder, hidden: Float[Tensor, "images patches width"]
) -> Float[Tensor, "images embed"]:
    """Unit-length embeddings of encoded images, on the model's device.

    Raises:
        MissingHead: if the model has no itc head.
        CheckpointError: if a number is none.
    """
    return finite(model.embed_images(hidden), "image embeddings")


class EncodedImages:
    """Patch tokens of some images, and their embeddings and cross-attention keys and values.

    Generation and scoring of any number of texts use the same keys and values: for an image of
    384 px in the base size they take 42 MB, and longer to compute than a caption's token.
    """

    def __init__(self, model: Med | Albef, hidden: Float[Tensor, "images patches width"]) -> None:
        self.model = model
        self.hidden = hidden

    def __len__(self) -> int:
        return len(self.hidden)

    @cached_property
    def embed(self) -> Float[Tensor, "images embed"] | None:
        """Unit-length embeddings; None where the model has no itc head."""
        with torch.no_grad():
            has_head = "itc" in self.model.config.heads
            return embed_images(self.model, self.hidden) if has_head else None

    @cached_property
    def encoder_memory(self) -> ImageMemory:
        """What a text that is matched attends to.

        Raises:
            MissingHead: if the model cannot match.
        """
        self.model.require("itm")
        if self._shares:
            return self.decoder_memory
        with torch.no_grad():
            return self.model.text.remember(self.hidden)

    @cached_property
    def decoder_memory(self) -> ImageMemory:
        """What a text that is generated attends to.

        Raises:
            MissingHead: if the model cannot generate.
        """
        with torch.no_grad():
            return self.med.text.remember(self.hidden, causal=True)

    @property
    def med(self) -> Med:
        """The model, which writes texts.

        Raises:
            MissingHead: if it cannot.
        """
        if not isinstance(self.model, Med):
            raise MissingHead("ALBEF writes no texts; load a pre-trained or captioner checkpoint")
        self.model.require("lm")
        return self.model

    @property
    def _shares(self) -> bool:
        config = self.model.config
        return "lm" in config.heads and config.text.sharing in _SHARED_CROSS_ATTENTION
