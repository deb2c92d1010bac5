"""One text stack in three roles: unimodal encoder, image-grounded encoder, image-grounded decoder.

Which parts the decoder has for itself is decided by `TextConfig.sharing`; such a part stands beside
the encoder's under the same name with the prefix `causal_`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openblip.model import packing
from openblip.model.attention import CrossAttention, KeyValueCache, TextSelfAttention, causal_mask
from openblip.model.config import Head, Sharing, TextConfig, initial_std
from openblip.model.kernels import Linear, linear, mlp
from openblip.model.memory import ImageMemory, Memories
from openblip.model.packing import Packing, joined

# Parts that the decoder does not share with the encoder (BLIP, table 3).
_OWN_PARTS: dict[Sharing, frozenset[str]] = {
    "all": frozenset(),
    "all_but_self_attention": frozenset({"self_attention"}),
    "all_but_cross_attention": frozenset({"cross_attention"}),
    "none": frozenset({"embeddings", "self_attention", "cross_attention", "ffn"}),
}


Reads = Literal["all", "tokens", "first"]


@dataclass(frozen=True)
class TextPass:
    """Texts in one role of the stack."""

    ids: Int[Tensor, "rows tokens"]
    """Token ids; those behind `cache.length` earlier ones when there is a cache."""
    mask: Bool[Tensor, "rows keys"] | None = None
    """True = attend; of the cached tokens too. None attends to all."""
    memory: ImageMemory | None = None
    """What to attend to, in the image-grounded roles; rows are grouped by image."""
    causal: bool = False
    """Decode: a token attends to itself and those before it."""
    reads: Reads = "all"
    """Which hidden states are read: those of padding too; those of tokens, where padding gets
    zeros; or that of each text's first token alone, which is then all that there is."""


@dataclass(frozen=True)
class Role:
    """What a layer needs of a pass."""

    packing: Packing
    """Of the texts."""
    attend: Bool[Tensor, "_ 1 _ keys"] | None
    """Which tokens may attend to which; None, all to all."""
    memory: ImageMemory | None = None
    """What to attend to besides; None in the unimodal role."""
    causal: bool = False
    """Uses the decoder's parts."""
    kept: Packing | None = None
    """Of the states that the layer gives, if they are those of the first tokens alone."""

    @property
    def given(self) -> Packing:
        """Of the states that the layer gives."""
        return self.packing if self.kept is None else self.kept


class TextEmbeddings(nn.Module):
    """Word plus position embeddings, layer norm, dropout; BERT's without token types."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, ids: Int[Tensor, "rows tokens"], start: int = 0
    ) -> Float[Tensor, "rows tokens width"]:
        positions = self.position.weight[start : start + ids.shape[1]]
        out: Tensor = self.dropout(self.norm(self.word(ids) + positions))
        return out


class FeedForward(nn.Module):
    """BERT's feed-forward block: up, exact GELU, down, residual, layer norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, config.ffn_width)
        self.down = Linear(config.ffn_width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Float[Tensor, "packed width"]) -> Float[Tensor, "packed width"]:
        out: Tensor = self.norm(hidden + self.dropout(mlp(hidden, self.up, self.down)))
        return out


class LmHead(nn.Module):
    """BERT's language-model head; its output weight is the word embedding."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.transform = Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, hidden: Float[Tensor, "rows tokens width"], words: Float[Tensor, "vocab width"]
    ) -> Float[Tensor, "rows tokens vocab"]:
        return linear(self.norm(self.transform.with_gelu(hidden)), words, self.bias)


class TextLayer(nn.Module):
    """Self-attention, cross-attention where there is a memory, feed-forward."""

    def __init__(self, config: TextConfig, memory_width: int, heads: tuple[Head, ...]) -> None:
        super().__init__()
        block = (config.heads, config.dropout, config.norm_eps)
        grounded = "itm" in heads or "multimodal" in heads
        encodes = "itc" in heads or grounded
        decodes = "lm" in heads
        own = _OWN_PARTS[config.sharing]

        def add(name: str, make: Callable[[], nn.Module], encoder: bool, decoder: bool) -> None:
            if encoder or (decoder and name not in own):
                setattr(self, name, make())
            if decoder and name in own:
                setattr(self, f"causal_{name}", make())

        add("self_attention", lambda: TextSelfAttention(config.width, *block), encodes, decodes)
        add(
            "cross_attention",
            lambda: CrossAttention(config.width, memory_width, *block),
            grounded,
            decodes,
        )
        add("ffn", lambda: FeedForward(config), encodes, decodes)

    def part(self, name: str, causal: bool) -> nn.Module:
        """The encoder's or the decoder's part; the same one where it is shared."""
        own = f"causal_{name}"
        return cast("nn.Module", getattr(self, own if causal and hasattr(self, own) else name))

    def forward(
        self,
        hidden: Float[Tensor, "packed width"],
        roles: Sequence[Role],
        cache: KeyValueCache | None,
        layer: int,
    ) -> Float[Tensor, "packed_given width"]:
        """The next hidden states of the texts of all roles, in their order."""

        def attend_to_texts(part: nn.Module, own: Tensor, roles: Sequence[Role]) -> Tensor:
            masks = [role.attend for role in roles]
            packings = [role.packing for role in roles], [role.given for role in roles]
            out: Tensor = part(own, masks, *packings, cache, layer)
            return out

        def attend_to_images(part: nn.Module, own: Tensor, roles: Sequence[Role]) -> Tensor:
            memories = [cast("ImageMemory", role.memory).layer(layer) for role in roles]
            out: Tensor = part(own, memories, [role.given for role in roles])
            return out

        def feed_forward(part: nn.Module, own: Tensor, roles: Sequence[Role]) -> Tensor:
            out: Tensor = part(own)
            return out

        packed = [role.packing.count for role in roles]
        hidden = self._apply_part("self_attention", attend_to_texts, hidden, roles, packed)
        packed = [role.given.count for role in roles]
        if roles[0].memory is not None:
            hidden = self._apply_part("cross_attention", attend_to_images, hidden, roles, packed)
        return self._apply_part("ffn", feed_forward, hidden, roles, packed)

    def _apply_part(
        self,
        name: str,
        function: Callable[[nn.Module, Tensor, Sequence[Role]], Tensor],
        hidden: Float[Tensor, "packed width"],
        roles: Sequence[Role],
        packed: Sequence[int],
    ) -> Float[Tensor, "packed_given width"]:
        """A part applied to all texts, `packed` states a role: to those of one module at once."""
        # Neighbours alone are put together: their states stand one behind the other, so that a
        # group is a slice and the results come out in the roles' order, without a copy. Callers
        # give the encoder's passes before the decoder's, and nothing is left to bring together.
        sized = zip(roles, packed, strict=True)
        groups = [
            (part, list(own))
            for part, own in groupby(sized, lambda r: self.part(name, r[0].causal))
        ]
        pieces = torch.split(hidden, [sum(size for _, size in own) for _, own in groups])
        return joined(
            [
                function(part, piece, [role for role, _ in own])
                for (part, own), piece in zip(groups, pieces, strict=True)
            ]
        )


class TextStack(nn.Module):
    """BERT layers that encode a text alone, encode it with an image, or decode it from one.

    Args:
        config: sizes and sharing.
        memory_width: channels of what cross-attention attends to.
        heads: only the parts that these need are built.
    """

    def __init__(self, config: TextConfig, memory_width: int, heads: tuple[Head, ...]) -> None:
        super().__init__()
        self.config = config
        own_embeddings = "embeddings" in _OWN_PARTS[config.sharing] and "lm" in heads
        if not own_embeddings or set(heads) != {"lm"}:
            self.embeddings = TextEmbeddings(config)
        if own_embeddings:
            self.causal_embeddings = TextEmbeddings(config)
        self.layers = nn.ModuleList(
            TextLayer(config, memory_width, heads) for _ in range(config.depth)
        )
        if "lm" in heads:
            self.lm_head = LmHead(config)
        self.apply(partial(initialise, std=initial_std(config.width)))

    def embeddings_of(self, causal: bool) -> TextEmbeddings:
        """The encoder's or the decoder's embeddings; the same ones where they are shared."""
        own = causal and hasattr(self, "causal_embeddings")
        return self.causal_embeddings if own else self.embeddings

    def forward(
        self, *passes: TextPass, cache: KeyValueCache | None = None
    ) -> tuple[Float[Tensor, "rows tokens width"], ...]:
        """Hidden states of the last layer, for the texts of every pass.

        What passes share goes through them as one batch: fewer and larger products, and every
        weight's gradient is made once.

        Args:
            passes: texts of one length, all of them with a memory or none.
            cache: keys and values of earlier tokens, extended by this call; for a single pass.
        """
        cached = cache.length if cache is not None else 0
        roles = [_role(each, cached, packs=cache is None) for each in passes]
        first = [_reads_first(each) for each in passes]
        # A size, not a length, which an exported graph would take for a constant.
        sizes = [each.ids.shape[0] for each in passes]
        states = torch.split(self._embed(passes, cached), sizes)
        hidden = run_layers(self.layers, states, roles, cache, self.config.checkpoint_layers, first)
        if cache is not None:
            cache.advance(passes[0].ids.shape[1])
        return hidden

    def _embed(self, passes: Sequence[TextPass], start: int) -> Tensor:
        # As in a layer: neighbours with the same embeddings.
        groups = groupby(passes, lambda each: self.embeddings_of(each.causal))
        return joined(
            [embeddings(joined([each.ids for each in own]), start) for embeddings, own in groups]
        )

    def empty_cache(self, rows: int, max_tokens: int, like: Tensor) -> KeyValueCache:
        """A cache with room for `max_tokens` tokens of `rows` texts, of `like`'s type and place."""
        return KeyValueCache.empty(self.config, rows, max_tokens, like.device, like.dtype)

    def logits(
        self, hidden: Float[Tensor, "rows tokens width"]
    ) -> Float[Tensor, "rows tokens vocab"]:
        """Next-token logits of the decoder's hidden states."""
        out: Tensor = self.lm_head(hidden, self.embeddings_of(causal=True).word.weight)
        return out

    def remember(
        self,
        image_hidden: Float[Tensor, "images patches memory_width"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "images patches"] | None = None,
        num_tokens: int | None = None,
    ) -> ImageMemory:
        """Every layer's cross-attention keys and values of the images; else as `remember`."""
        return remember(self.layers, image_hidden, causal=causal, mask=mask, num_tokens=num_tokens)

    def memories(self, image_hidden: Float[Tensor, "images patches memory_width"]) -> Memories:
        """What encoder and decoder attend to; computed once where there is one cross-attention."""
        built = [causal for causal in (False, True) if self._has_cross_attention(causal)]
        memories = [self.remember(image_hidden, causal=causal) for causal in built]
        # Of a single one this is the same object twice: whoever reads either adds to one gradient.
        return Memories(memories[0], memories[-1])

    def _has_cross_attention(self, causal: bool) -> bool:
        """Whether the layers have cross-attention for one role (False) or the decoder's own."""
        return hasattr(self.layers[0], "causal_cross_attention" if causal else "cross_attention")


def run_layers(
    layers: nn.ModuleList,
    states: Sequence[Float[Tensor, "_ tokens width"]],
    roles: Sequence[Role],
    cache: KeyValueCache | None = None,
    checkpoint_layers: int = 0,
    reads_first: Sequence[bool] = (),
) -> tuple[Float[Tensor, "_ _ width"], ...]:
    """Hidden states after some text layers, of the texts of each role.

    Args:
        layers: each a `TextLayer`; the first uses the first layer of every memory and cache.
        states: of the texts of each role.
        roles: all of them with a memory or none.
        cache: keys and values of earlier tokens, for a single role.
        checkpoint_layers: in training, the last so many of these recompute their activations in
            the backward pass.
        reads_first: for which roles only the first token's state is wanted, which is then all that
            the last layer computes; by default none.
    """
    # Packed once for all layers: every layer but its attention treats tokens alike.
    hidden = joined([role.packing.pack(own) for role, own in zip(roles, states, strict=True)])
    # The last ones, as the original counts image blocks. Which they are hardly matters for memory:
    # it is fullest where the backward pass begins, and there any of them keeps its input alone.
    first_checkpointed = len(layers) - checkpoint_layers
    for number, layer in enumerate(layers):
        if number == len(layers) - 1 and any(reads_first):
            wanted = zip(roles, reads_first, strict=True)
            roles = [_narrowed(role) if is_first else role for role, is_first in wanted]
        if layer.training and number >= first_checkpointed:
            # The reentrant kind would ask that an input has a gradient, and know no keywords.
            own = [_checkpointed(role) for role in roles]
            hidden = checkpoint(layer, hidden, own, cache, number, use_reentrant=False)
        else:
            hidden = layer(hidden, roles, cache, number)
    pieces = torch.split(hidden, [role.given.count for role in roles])
    return tuple(role.given.pad(piece) for role, piece in zip(roles, pieces, strict=True))


def remember(
    layers: nn.ModuleList,
    image_hidden: Float[Tensor, "images patches memory_width"],
    *,
    causal: bool = False,
    mask: Bool[Tensor, "images patches"] | None = None,
    num_tokens: int | None = None,
) -> ImageMemory:
    """The cross-attention keys and values of images, for some text layers that have it.

    Args:
        layers: each a `TextLayer`.
        image_hidden: of the images.
        causal: of the decoder.
        mask: True = attend; None attends to every token.
        num_tokens: of all texts that will read an image, where that is known: for a few the states
            themselves are remembered, if that is less work. None is any number.
    """
    parts = [
        cast("CrossAttention", cast("TextLayer", layer).part("cross_attention", causal))
        for layer in layers
    ]
    if num_tokens is not None and all(p.reads_states(image_hidden, num_tokens) for p in parts):
        return ImageMemory.of_states(image_hidden, len(parts), mask)
    pairs = [part.remember(image_hidden) for part in parts]
    return ImageMemory(tuple(k for k, _ in pairs), tuple(v for _, v in pairs), mask)


def _role(texts: TextPass, cached: int, *, packs: bool) -> Role:
    """Which tokens may attend to which, and what a layer needs besides."""
    attend = None if texts.mask is None else texts.mask[:, None, None]
    # None where it can be: flash attention takes no mask, not even one of ones.
    if texts.causal:
        later = causal_mask(texts.ids.shape[1], cached, texts.ids.device)
        attend = later if attend is None else attend if later is None else attend & later
    placed = Packing(*texts.ids.shape)
    # Asked of its module, where a plan for an accelerator puts that one's answer.
    packs = packs and packing.removes_padding(texts.ids.device)
    if packs and texts.reads != "all" and texts.mask is not None:
        placed = Packing.without_padding(texts.mask)
    return Role(placed, attend, texts.memory, texts.causal)


def _reads_first(texts: TextPass) -> bool:
    """Whether the last layer is computed for the first token alone."""
    # An attention that is recorded is that of all tokens.
    is_recorded = texts.memory is not None and texts.memory.record is not None
    return texts.reads == "first" and not is_recorded


def _checkpointed(role: Role) -> Role:
    """The same for a layer that is computed again: what it keeps for that is left to checkpointing.

    PyTorch asks the innermost alone what becomes of a tensor that is saved.
    """
    if role.memory is None:
        return role
    return replace(role, memory=replace(role.memory, keeps_copies=True))


def _narrowed(role: Role) -> Role:
    """The same up to a layer's self-attention, from which only the first tokens go on."""
    assert not role.causal, "a decoded text is read as a whole"
    return replace(role, kept=Packing(role.packing.rows, 1))


def initialise(module: nn.Module, std: float) -> None:
    """Draw a module's own weights as BERT does, but for the width's `initial_std`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
