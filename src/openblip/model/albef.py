"""ALBEF: a text encoder whose upper layers fuse the text with the image (ALBEF, section 3.1)."""

from dataclasses import replace
from functools import partial

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openblip.model.config import AlbefConfig, AlbefHead, TextConfig, initial_std
from openblip.model.kernels import Linear
from openblip.model.med import build_heads
from openblip.model.memory import ImageMemory
from openblip.model.packing import Packing
from openblip.model.text import (
    LmHead,
    Role,
    TextEmbeddings,
    TextLayer,
    initialise,
    remember,
    run_layers,
)
from openblip.model.vision import ImageModel
from openblip.runtime.errors import MissingHead

# As in BERT: sentences of one kind are all of type 0, and id 0 is `[PAD]`.
_TOKEN_TYPES = 2
_PADDING_ID = 0


class TypedTextEmbeddings(TextEmbeddings):
    """BERT's embeddings with token types, of which texts use the first alone."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.token_type = nn.Embedding(_TOKEN_TYPES, config.width)
        # `[PAD]` can be drawn as the random word of a masked position; as in BERT, its row learns
        # nothing from there.
        self.word.padding_idx = _PADDING_ID

    def forward(
        self, ids: Int[Tensor, "rows tokens"], start: int = 0
    ) -> Float[Tensor, "rows tokens width"]:
        positions = self.position.weight[start : start + ids.shape[1]]
        summed = self.word(ids) + self.token_type.weight[0] + positions
        out: Tensor = self.dropout(self.norm(summed))
        return out


class FusionText(nn.Module):
    """BERT whose layers from `fusion_layer` on attend to the image as well.

    Args:
        config: sizes.
        memory_width: channels of what cross-attention attends to.
        fusion_layer: layers without cross-attention, below the others.
        fills_masks: has the head for masked words.
    """

    def __init__(
        self, config: TextConfig, memory_width: int, fusion_layer: int, *, fills_masks: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.fusion_layer = fusion_layer
        self.embeddings = TypedTextEmbeddings(config)
        self.layers = nn.ModuleList(
            TextLayer(config, memory_width, ("itc",) if number < fusion_layer else ("multimodal",))
            for number in range(config.depth)
        )
        if fills_masks:
            self.lm_head = LmHead(config)
        self.apply(partial(initialise, std=initial_std(config.width)))

    def encode(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens width"]:
        """States of texts alone, after the layers below fusion."""
        # Checkpointed layers are counted from the end, and the fusion layers come last.
        fusion_layers = self.config.depth - self.fusion_layer
        (states,) = run_layers(
            self.layers[: self.fusion_layer],
            [self.embeddings(ids)],
            [Role(Packing(*ids.shape), mask[:, None, None])],
            checkpoint_layers=max(self.config.checkpoint_layers - fusion_layers, 0),
        )
        return states

    def remember(
        self,
        image_hidden: Float[Tensor, "images patches memory_width"],
        *,
        num_tokens: int | None = None,
    ) -> ImageMemory:
        """Every fusion layer's cross-attention keys and values; else as the function."""
        return remember(self.layers[self.fusion_layer :], image_hidden, num_tokens=num_tokens)

    def fuse(
        self,
        states: Float[Tensor, "rows tokens width"],
        mask: Bool[Tensor, "rows tokens"],
        memory: ImageMemory,
    ) -> Float[Tensor, "rows tokens width"]:
        """States after the fusion layers."""
        (fused,) = run_layers(
            self.layers[self.fusion_layer :],
            [states],
            [Role(Packing(*mask.shape), mask[:, None, None], memory)],
            checkpoint_layers=self.config.checkpoint_layers,
        )
        return fused


class Albef(ImageModel[AlbefConfig]):
    """Image encoder, text encoder with fusion layers, and the heads that `config.heads` lists.

    A text is encoded once: its states give its embedding, and go on through the fusion layers.
    Ids begin with `[CLS]`; `[PAD]` has id 0. The momentum model is an `Albef` without itm head.
    """

    image_projection: Linear
    text_projection: Linear
    temperature: nn.Parameter
    itm_head: Linear

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__(config)
        config = self.config
        self.text = FusionText(
            config.text,
            config.vision.width,
            config.fusion_layer,
            fills_masks="mlm" in config.heads,
        )
        build_heads(self)

    def require(self, head: AlbefHead) -> None:
        """Check that the model has a head.

        Raises:
            MissingHead: if it has not; names the kind of checkpoint that has.
        """
        if head not in self.config.heads:
            has = ", ".join(self.config.heads)
            kind = "pre-training" if head == "mlm" else "pre-training or retrieval"
            raise MissingHead(
                f"this ALBEF has no {head} head (it has: {has}); load a {kind} checkpoint of ALBEF"
            )

    def add_words(self, count: int) -> None:
        """Appends words that the model has never seen: their embeddings are 0."""
        embedding = self.text.embeddings.word
        weight = F.pad(embedding.weight.detach(), (0, 0, 0, count))
        embedding.weight, embedding.num_embeddings = nn.Parameter(weight), len(weight)
        if "mlm" in self.config.heads:
            self.text.lm_head.bias = nn.Parameter(
                F.pad(self.text.lm_head.bias.detach(), (0, count))
            )
        self.config = replace(self.config, text=replace(self.config.text, vocab_size=len(weight)))

    def embed_images(
        self, image_hidden: Float[Tensor, "batch patches vision_width"]
    ) -> Float[Tensor, "batch embed"]:
        """Unit-length embeddings of encoded images, from their class tokens."""
        self.require("itc")
        return F.normalize(self.image_projection(image_hidden[:, 0]).float(), dim=-1)

    def encode_texts(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens width"]:
        """States of texts alone, from the layers below fusion; what `fuse` goes on with."""
        return self.text.encode(ids, mask)

    def embed_texts(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows embed"]:
        """Unit-length embeddings of texts."""
        return self.embed_states(self.encode_texts(ids, mask))

    def embed_states(
        self, states: Float[Tensor, "rows tokens width"]
    ) -> Float[Tensor, "rows embed"]:
        """Unit-length embeddings of texts, from the first of their `encode_texts` states."""
        self.require("itc")
        return F.normalize(self.text_projection(states[:, 0]).float(), dim=-1)

    def memory(self, image_hidden: Float[Tensor, "images patches vision_width"]) -> ImageMemory:
        """What texts attend to in the fusion layers, of encoded images."""
        return self.text.remember(image_hidden)

    def fuse(
        self,
        states: Float[Tensor, "rows tokens width"],
        mask: Bool[Tensor, "rows tokens"],
        memory: ImageMemory,
    ) -> Float[Tensor, "rows tokens width"]:
        """States of texts together with images, from `encode_texts` states grouped by image."""
        return self.text.fuse(states, mask, memory)

    def match(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows tokens"],
        memory: ImageMemory,
    ) -> Float[Tensor, "rows 2"]:
        """Logits of (no match, match) for texts against images, grouped by image."""
        return self.match_logits(self.fuse(self.encode_texts(ids, mask), mask, memory))

    def match_logits(self, fused: Float[Tensor, "rows tokens width"]) -> Float[Tensor, "rows 2"]:
        """Logits of (no match, match) for fused states, from the first token's."""
        self.require("itm")
        logits: Tensor = self.itm_head(fused[:, 0])
        return logits

    def mlm_logits(
        self, fused: Float[Tensor, "rows tokens width"]
    ) -> Float[Tensor, "rows tokens vocab"]:
        """Logits of the words at each position, for fused states of texts with masked words."""
        self.require("mlm")
        logits: Tensor = self.text.lm_head(fused, self.text.embeddings.word.weight)
        return logits
