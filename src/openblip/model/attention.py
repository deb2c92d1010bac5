"""Attention of an image over itself, of a text over itself, and of a text over an image.

A text that is being written keeps its keys and values (`KeyValueCache`).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openblip.model.config import TextConfig
from openblip.model.kernels import Linear, attend, is_processor_product
from openblip.model.memory import AttentionRecord, LayerMemory
from openblip.model.packing import Packing, joined, packed_sizes


def split_heads(
    hidden: Float[Tensor, "rows tokens width"], heads: int
) -> Float[Tensor, "rows heads tokens head_dim"]:
    """The same numbers with the heads as a dimension of their own."""
    rows, tokens, width = hidden.shape
    return hidden.view(rows, tokens, heads, width // heads).transpose(1, 2)


def join_heads(
    hidden: Float[Tensor, "rows heads tokens head_dim"],
) -> Float[Tensor, "rows tokens width"]:
    """The inverse of `split_heads`."""
    return hidden.transpose(1, 2).flatten(2)


class ImageSelfAttention(nn.Module):
    """Multi-head self-attention over the patches of an image."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.output = Linear(width, width)

    def forward(
        self,
        hidden: Float[Tensor, "batch patches width"],
        norm: nn.LayerNorm,
        num_queries: int | None = None,
    ) -> Float[Tensor, "batch queries width"]:
        """What the first `num_queries` patches, by default all, attended to in `norm` of all."""
        qkv = self.qkv.of_normed(hidden, norm)
        query, key, value = (split_heads(x, self.heads) for x in qkv.chunk(3, dim=-1))
        query = query[:, :, :num_queries]
        attended: Tensor = self.output(join_heads(attend(query, key, value)))
        return attended


class KeyValueCache:
    """Keys and values per layer, in storage allocated once for the longest text.

    `keys` and `values` are (layers, rows, heads, max_tokens, head_dim); the first `length` tokens
    are filled. A layer writes its new tokens with `append`; `advance` counts them after the last
    layer.
    """

    def __init__(
        self,
        keys: Float[Tensor, "layers rows heads tokens head_dim"],
        values: Float[Tensor, "layers rows heads tokens head_dim"],
        length: int = 0,
    ) -> None:
        self.keys = keys
        self.values = values
        self.length = length

    @classmethod
    def empty(
        cls,
        config: TextConfig,
        rows: int,
        max_tokens: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "KeyValueCache":
        """A cache with room for `max_tokens` tokens of `rows` texts."""
        head_dim = config.width // config.heads
        shape = (config.depth, rows, config.heads, max_tokens, head_dim)
        keys = torch.zeros(shape, device=device, dtype=dtype)
        return cls(keys, torch.zeros_like(keys))

    @property
    def rows(self) -> int:
        """How many texts it is of."""
        return self.keys.shape[1]

    def append(
        self,
        layer: int,
        keys: Float[Tensor, "rows heads new head_dim"],
        values: Float[Tensor, "rows heads new head_dim"],
    ) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, the new ones written behind the old ones."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count tokens that every layer has appended."""
        self.length += tokens

    def select(self, index: Int[Tensor, " new_rows"]) -> "KeyValueCache":
        """The cache whose row i is this one's row `index[i]`: beams moved, finished rows gone."""
        return KeyValueCache(
            self.keys.index_select(1, index), self.values.index_select(1, index), self.length
        )


class TextSelfAttention(nn.Module):
    """BERT's self-attention block: attention, projection, residual, layer norm."""

    def __init__(self, width: int, heads: int, dropout: float, norm_eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.output = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden: Float[Tensor, "packed width"],
        masks: Sequence[Bool[Tensor, "_ 1 _ keys"] | None],
        given: Sequence[Packing],
        kept: Sequence[Packing],
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "packed_kept width"]:
        """The next hidden states.

        Args:
            hidden: of the texts, first those of the first mask.
            masks: which tokens may attend to which; None, all to all.
            given: of the texts of each mask.
            kept: of the next states: the same, or of the first tokens alone.
            cache: keys and values of earlier tokens, for a single mask.
            layer: whose part of the cache it is.
        """
        # Products over packed states, attention over padded ones: it needs texts as rows.
        # Query, key and value in one product, three times as wide: one reading of the states.
        pieces = self.qkv(hidden).split(packed_sizes(given))
        attended = [
            after.pack(self._attend(before.pad(qkv), mask, after.tokens, cache, layer))
            for qkv, mask, before, after in zip(pieces, masks, given, kept, strict=True)
        ]
        out: Tensor = self.norm(
            _narrowed(hidden, given, kept) + self.dropout(self.output(joined(attended)))
        )
        return out

    def _attend(
        self,
        qkv: Float[Tensor, "rows tokens three_widths"],
        mask: Bool[Tensor, "#rows 1 #tokens keys"] | None,
        num_queries: int,
        cache: KeyValueCache | None,
        layer: int,
    ) -> Float[Tensor, "rows queries width"]:
        query, key, value = (split_heads(x, self.heads) for x in qkv.chunk(3, dim=-1))
        query = query[:, :, :num_queries]
        if cache is not None:
            key, value = cache.append(layer, key, value)
        dropout = self.dropout.p if self.training else 0.0
        attended = attend(query, key, value, mask, dropout)
        return join_heads(attended)


class MemoryAttention(nn.Module):
    """Attention of a text over an image (or over another text), without residual and norm.

    Keys and values are not computed here but by `remember`, once per image.
    """

    def __init__(self, width: int, memory_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key_value = Linear(memory_width, 2 * width)
        self.output = Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def remember(
        self, image_hidden: Float[Tensor, "images patches memory_width"]
    ) -> tuple[
        Float[Tensor, "images heads patches head_dim"],
        Float[Tensor, "images heads patches head_dim"],
    ]:
        """Keys and values of the images."""
        key, value = (
            split_heads(x, self.heads) for x in self.key_value(image_hidden).chunk(2, dim=-1)
        )
        if torch.is_grad_enabled():
            return key, value
        # Generation reads them at every step: a head's keys side by side are read twice as fast.
        return key.contiguous(), value.contiguous()

    def reads_states(
        self, image_hidden: Float[Tensor, "images patches memory_width"], num_tokens: int
    ) -> bool:
        """Whether a few tokens had better read the states than keys and values made for them.

        Args:
            image_hidden: the states.
            num_tokens: of all texts that read an image.
        """
        # Measured for float32 on a processor. What a changed or quantised layer computes with
        # besides its weight, or dropped probabilities, which do not sum to 1, would be missing.
        if torch.is_grad_enabled() or self.training or not self.key_value.is_plain:
            return False
        if not is_processor_product(image_hidden, self.key_value.weight):
            return False
        patches, memory_width = image_hidden.shape[1:]
        width = self.query.out_features
        # Multiply-adds for the keys of an image; for its values they are as many.
        projected = patches * width * (memory_width + num_tokens)
        folded = num_tokens * memory_width * (width + self.heads * patches)
        return folded < projected

    def forward(
        self,
        hidden: Float[Tensor, "packed width"],
        memories: Sequence[LayerMemory],
        packings: Sequence[Packing],
    ) -> Float[Tensor, "packed width"]:
        """What the texts attended to.

        Args:
            hidden: of the texts, first those of the first memory.
            memories: what they attend to.
            packings: of the texts that attend to each memory; they are grouped by image.
        """
        queries = self.query(hidden).split(packed_sizes(packings))
        attended = [
            packing.pack(self._attend(packing.pad(query), memory))
            for query, memory, packing in zip(queries, memories, packings, strict=True)
        ]
        out: Tensor = self.output(joined(attended))
        return out

    def _attend(
        self, query: Float[Tensor, "rows tokens width"], memory: LayerMemory
    ) -> Float[Tensor, "rows tokens width"]:
        rows, tokens, width = query.shape
        images = memory.images
        assert rows % images == 0, f"{rows} texts are not grouped over {images} images"
        if memory.record is not None:
            return self._attend_and_record(query, memory, memory.record)
        # Texts of one image stand one behind the other as one long query, so that its keys and
        # values are read once, not copied per text.
        long_query = query.reshape(images, rows // images * tokens, width)
        if not memory.is_projected:
            return self._attend_to_states(long_query, memory).reshape(rows, tokens, width)
        split = split_heads(long_query, self.heads)
        dropout = self.dropout.p if self.training else 0.0
        with memory.read() as (keys, values):
            attended = attend(split, keys, values, memory.mask, dropout)
        return join_heads(attended).reshape(rows, tokens, width)

    def _attend_to_states(
        self, query: Float[Tensor, "images tokens width"], memory: LayerMemory
    ) -> Float[Tensor, "images tokens width"]:
        """The same without keys and values: their weights go to the queries and to the result.

        q (K h + b) = (q K) h + q b, and q b, the same for all patches, changes no probability. The
        mean of values V h + b is V times the mean of the states, + b.
        """
        images, tokens, width = query.shape
        heads, head_dim = self.heads, width // self.heads
        key, value = self.key_value.weight.view(2, heads, head_dim, -1)
        bias = self.key_value.bias.view(2, heads, 1, head_dim)[1]
        # Heads first: one product a head for the tokens of all images.
        by_head = (query * head_dim**-0.5).view(images * tokens, heads, head_dim).transpose(0, 1)
        folded = torch.bmm(by_head, key).view(heads, images, tokens, -1).transpose(0, 1)
        with memory.read() as (states, _):
            states = states[:, 0]
            # All heads of an image read the same states: they are one long query.
            scores = folded.flatten(1, 2) @ states.mT
            if memory.mask is not None:
                scores = scores.masked_fill(~memory.mask[:, 0], float("-inf"))
            means = scores.softmax(dim=-1) @ states
        by_head = means.view(images, heads, tokens, -1).transpose(0, 1).flatten(1, 2)
        attended = torch.baddbmm(bias, by_head, value.mT)
        return attended.transpose(0, 1).reshape(images, tokens, width)

    def _attend_and_record(
        self,
        query: Float[Tensor, "rows tokens width"],
        memory: LayerMemory,
        record: AttentionRecord,
    ) -> Float[Tensor, "rows tokens width"]:
        """The same with probabilities that exist: the fused attention never forms them."""
        patches, head_dim = memory.keys.shape[2:]
        rows, tokens, _ = query.shape
        grouped = (memory.images, -1, self.heads, tokens, head_dim)
        split = split_heads(query, self.heads).reshape(grouped)
        with memory.read() as (keys, values):
            # Texts of an image are a dimension here: keys and values are broadcast, not copied.
            scores = split @ keys[:, None].mT / head_dim**0.5
            if memory.mask is not None:
                scores = scores.masked_fill(~memory.mask[:, None], float("-inf"))
            probabilities = scores.view(rows, self.heads, tokens, patches)
            probabilities = probabilities.softmax(dim=-1, dtype=torch.float32)
            if not probabilities.requires_grad:  # neither weights nor memory have a gradient
                probabilities.requires_grad_()
            record.probabilities = probabilities
            kept = self.dropout(probabilities).to(query.dtype)
            attended = kept.view(scores.shape) @ values[:, None]
        return join_heads(attended.flatten(0, 1))


class CrossAttention(MemoryAttention):
    """BERT's cross-attention block: attention over a memory, residual, layer norm."""

    def __init__(
        self, width: int, memory_width: int, heads: int, dropout: float, norm_eps: float
    ) -> None:
        super().__init__(width, memory_width, heads, dropout)
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(
        self,
        hidden: Float[Tensor, "packed width"],
        memories: Sequence[LayerMemory],
        packings: Sequence[Packing],
    ) -> Float[Tensor, "packed width"]:
        attended = super().forward(hidden, memories, packings)
        out: Tensor = self.norm(hidden + self.dropout(attended))
        return out


def _narrowed(hidden: Tensor, given: Sequence[Packing], kept: Sequence[Packing]) -> Tensor:
    """The states of the texts' first `kept` tokens."""
    if all(before is after for before, after in zip(given, kept, strict=True)):
        return hidden
    pieces = torch.split(hidden, packed_sizes(given))
    return joined(
        [
            piece if before is after else after.pack(before.pad(piece)[:, : after.tokens])
            for piece, before, after in zip(pieces, given, kept, strict=True)
        ]
    )


def causal_mask(
    tokens: int, cached: int, device: torch.device
) -> Bool[Tensor, "1 1 tokens keys"] | None:
    """Which of the cached and new tokens each new token may attend to; None when to all."""
    # The newest token attends to all; flash attention takes no mask, not even one of ones.
    if tokens == 1:
        return None
    # Not by a triangle's diagonal, which would be a constant of an exported graph.
    places = torch.arange(cached + tokens, device=device)
    return (places <= places[cached:, None])[None, None]
