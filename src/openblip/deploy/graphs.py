"""The parts of a model that other runtimes carry out as graphs, and what each takes and gives.

A part computes with the model's own code. Its inputs say which of their axes may have any size:
images, texts an image, tokens of a text, tokens that are cached already.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openblip.checkpoints.families import AnyModel
from openblip.model import ImageMemory, KeyValueCache, Med, TextPass
from openblip.model.albef import Albef
from openblip.model.dual import DualEncoder
from openblip.model.text import TextStack
from openblip.model.vqa import Nlvr, Vqa
from openblip.runtime.errors import RecipeError

Kind = Literal["float32", "int64", "bool"]
Tensors = tuple[Tensor, ...]
_SEED = 0


@dataclass(frozen=True)
class Port:
    """A tensor that a graph takes or gives."""

    name: str
    """In the graph."""
    shape: tuple[int | str, ...]
    """A word is the name of an axis of any size."""
    kind: Kind = "float32"
    """Type of its numbers; int64 are token ids, bool a mask."""


@dataclass(frozen=True)
class Part:
    """A graph to be."""

    name: str
    """Of the graph and its file."""
    module: nn.Module
    """Takes the inputs, gives the outputs, each one after the other."""
    inputs: tuple[Port, ...]
    """What it takes."""
    outputs: tuple[Port, ...]
    """What it gives."""
    vocab_size: int
    """Token ids are below it."""

    def example(self, sizes: Mapping[str, int]) -> Tensors:
        """Inputs with these sizes of the axes, drawn from a fixed seed.

        The last two tokens of a mask are padding, if there are as many.
        """
        # Not the global one, whose state is the caller's.
        generator = torch.Generator().manual_seed(_SEED)

        def drawn(port: Port) -> Tensor:
            shape = [sizes[axis] if isinstance(axis, str) else axis for axis in port.shape]
            if port.kind == "float32":
                return torch.randn(shape, generator=generator)
            if port.kind == "int64":
                return torch.randint(self.vocab_size, shape, generator=generator)
            return torch.arange(shape[-1]).expand(shape) < max(1, shape[-1] - 2)

        return tuple(drawn(port) for port in self.inputs)


class _Graph(nn.Module):
    """A function of a model and tensors, as a module that `torch.export` takes."""

    def __init__(self, model: nn.Module, compute: Callable[..., Tensors]) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, *tensors: Tensor) -> Tensors:
        """What the graph gives."""
        return self.compute(self.model, *tensors)


class _GrowingCache(KeyValueCache):
    """Keys and values that grow by every token: a graph has no storage to write into."""

    def __init__(self, past: Tensors) -> None:
        # `super().__init__` is not called: it wants storage for the longest text.
        self.past = past
        self.present: list[Tensor] = []
        self.length = past[0].shape[2]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer."""
        earlier = self.past[2 * layer : 2 * layer + 2]
        grown = [torch.cat(both, dim=2) for both in zip(earlier, (keys, values), strict=True)]
        self.present += grown
        return grown[0], grown[1]

    def advance(self, tokens: int) -> None:
        """Nothing: the next call is another graph's."""


def parts_of(model: AnyModel) -> list[Part]:
    """The graphs that a model comes to.

    Raises:
        RecipeError: the model compares two images, for which there is no graph.
    """
    if isinstance(model, Nlvr):
        raise RecipeError(
            "a two-image (nlvr) model cannot be exported; give a pre-trained, captioner, "
            "retrieval, filter or vqa checkpoint, an ALBEF or a dual encoder"
        )
    if isinstance(model, Vqa):
        return [_image_encoder(model, False), *_parts_of_questions(model)]
    heads = {"itc"} if isinstance(model, DualEncoder) else set(model.config.heads)
    parts = [_image_encoder(model, "itc" in heads)]
    if "itc" in heads:
        parts += [_image_embedding(model), _text_encoder(model)]
    if isinstance(model, Med) and "lm" in heads:
        parts += [_memory(model, "image_memory", _remember_to_write), _decoder(model, "text")]
    if isinstance(model, Med | Albef) and "itm" in heads:
        parts += _parts_of_matching(model)
    return parts


def memories_of(model: AnyModel) -> dict[str, str]:
    """For each graph that reads images, which graph makes the keys and values that it attends to.

    Where encoder and decoder share their cross-attention it is one for both.
    """
    if isinstance(model, DualEncoder | Nlvr):
        return {}
    if isinstance(model, Vqa):
        return {"question_encoder": "image_memory"}
    heads = set(model.config.heads)
    found = {"decoder": "image_memory"} if "lm" in heads else {}
    if "itm" in heads:
        found["matcher"] = "matcher_memory" if _matches_apart(model) else "image_memory"
    return found


def _matches_apart(model: Med | Albef) -> bool:
    shared = ("all", "all_but_self_attention")
    return "lm" in model.config.heads and model.config.text.sharing not in shared


def _image_encoder(model: AnyModel, embeds: bool) -> Part:
    size = model.config.vision.image_size
    pixels = Port("pixels", ("images", 3, size, size))
    if not embeds:
        return _part("image_encoder", model, _encode, [pixels], [_states(model)])
    config: Any = model.config
    given = [_states(model), Port("image_embeds", ("images", config.embed_dim))]
    return _part("image_encoder", model, _encode_and_embed, [pixels], given)


def _encode(model: Any, images: Tensor) -> Tensors:
    return (model.encode_images(images),)


def _encode_and_embed(model: Any, images: Tensor) -> Tensors:
    hidden = model.encode_images(images)
    return hidden, model.embed_images(hidden)


def _image_embedding(model: AnyModel) -> Part:
    """Of states that were kept the embedding alone; of pixels the image encoder gives both."""

    def compute(model: Any, hidden: Tensor) -> Tensors:
        return (model.embed_images(hidden),)

    config: Any = model.config
    out = Port("image_embeds", ("images", config.embed_dim))
    return _part("image_embedding", model, compute, [_states(model)], [out])


def _text_encoder(model: Med | Albef | DualEncoder) -> Part:
    def compute(model: Any, ids: Tensor, mask: Tensor) -> Tensors:
        return (model.embed_texts(ids, mask),)

    axes = ("texts", "tokens")
    ports = [Port("input_ids", axes, "int64"), Port("attention_mask", axes, "bool")]
    out = Port("text_embeds", ("texts", model.config.embed_dim))
    return _part("text_encoder", model, compute, ports, [out])


def _parts_of_matching(model: Med | Albef) -> list[Part]:
    def compute(model: Any, ids: Tensor, mask: Tensor, *memory: Tensor) -> Tensors:
        logits = model.match(ids.flatten(0, 1), mask.flatten(0, 1), as_memory(memory))
        return (logits.unflatten(0, ids.shape[:2]),)

    axes = ("images", "texts", "tokens")
    ports = [Port("input_ids", axes, "int64"), Port("attention_mask", axes, "bool")]
    ports += _memory_ports(model)
    out = Port("match_logits", ("images", "texts", 2))
    matcher = _part("matcher", model, compute, ports, [out])
    own = memories_of(model)["matcher"]
    if own == "image_memory" and "lm" in model.config.heads:
        return [matcher]
    return [_memory(model, own, _remember_to_read), matcher]


def _parts_of_questions(vqa: Vqa) -> list[Part]:
    def compute(model: Any, ids: Tensor, mask: Tensor, *memory: Tensor) -> Tensors:
        tokens = ids.flatten(0, 1), mask.flatten(0, 1)
        return flat_memory(model.remember_questions(*tokens, as_memory(memory)))

    axes = ("images", "questions", "tokens")
    ports = [Port("input_ids", axes, "int64"), Port("attention_mask", axes, "bool")]
    ports += _memory_ports(vqa)
    # A question of an image is what an image is to a caption: the first axis of what is written.
    answered = _memory_ports(vqa, "question_memory", "rows", "tokens")
    question = _part("question_encoder", vqa, compute, ports, answered)
    return [_memory(vqa, "image_memory", _remember_questions), question, _decoder(vqa, "answer")]


def _remember_to_write(model: Any, hidden: Tensor) -> Tensors:
    return flat_memory(model.text.remember(hidden, causal=True))


def _remember_to_read(model: Any, hidden: Tensor) -> Tensors:
    return flat_memory(model.text.remember(hidden))


def _remember_questions(model: Any, hidden: Tensor) -> Tensors:
    return flat_memory(model.image_memory(hidden))


def _memory(model: Med | Albef | Vqa, name: str, compute: Callable[..., Tensors]) -> Part:
    return _part(name, model, compute, [_states(model)], _memory_ports(model))


def _decoder(model: Med | Vqa, stack: str) -> Part:
    """Logits behind every token, of the prompt with an empty cache or of one token with a full one.

    Of a text that answers a question, the mask of the question comes before its keys and values.
    """
    answers = isinstance(model, Vqa)
    text = model.config.text
    size = 2 * text.depth

    def compute(model: Any, ids: Tensor, *rest: Tensor) -> Tensors:
        mask, rest = (rest[0], rest[1:]) if answers else (None, rest)
        memory = as_memory(rest[:size], mask)
        cache = _GrowingCache(tuple(past.flatten(0, 1) for past in rest[size:]))
        decoder: TextStack = getattr(model, stack)
        texts = TextPass(ids.flatten(0, 1), memory=memory, causal=True)
        (hidden,) = decoder(texts, cache=cache)
        rows = ids.shape[:2]
        given = (decoder.logits(hidden), *cache.present)
        return tuple(each.unflatten(0, rows) for each in given)  # type: ignore[no-untyped-call]

    def cached(prefix: str, tokens: str) -> list[Port]:
        head_dim = text.width // text.heads
        shape = ("images", "texts", text.heads, tokens, head_dim)
        return [Port(name, shape) for name in _names(prefix, text.depth)]

    ports = [Port("input_ids", ("images", "texts", "tokens"), "int64")]
    if answers:
        ports.append(Port("memory_mask", ("images", "memory_tokens"), "bool"))
        ports += _memory_ports(model, "memory", "images", "memory_tokens")
    else:
        ports += _memory_ports(model)
    ports += cached("past", "past")
    logits = Port("logits", ("images", "texts", "tokens", text.vocab_size))
    return _part("decoder", model, compute, ports, [logits, *cached("present", "past+tokens")])


def _states(model: AnyModel) -> Port:
    vision = model.config.vision
    return Port("image_states", ("images", vision.num_patches, vision.width))


def _memory_ports(
    model: AnyModel, prefix: str = "memory", rows: str = "images", tokens: str | None = None
) -> list[Port]:
    """Keys and values of all layers that attend to images; of patches, or of any tokens."""
    text, patches = model.config.text, model.config.vision.num_patches
    # Below, ALBEF's layers read the text alone.
    layers = text.depth - (model.config.fusion_layer if isinstance(model, Albef) else 0)
    shape = (rows, text.heads, tokens or patches, text.width // text.heads)
    return [Port(name, shape) for name in _names(prefix, layers)]


def _names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def as_memory(flat: Sequence[Tensor], mask: Tensor | None = None) -> ImageMemory:
    """Keys and values as models read them, of those of a graph, layer by layer."""
    return ImageMemory(tuple(flat[::2]), tuple(flat[1::2]), mask)


def flat_memory(memory: ImageMemory) -> Tensors:
    """The other way round."""
    pairs = zip(memory.keys, memory.values, strict=True)
    return tuple(each for pair in pairs for each in pair)


def _part(
    name: str,
    model: AnyModel,
    compute: Callable[..., Tensors],
    inputs: Iterable[Port],
    outputs: Iterable[Port],
) -> Part:
    # In training, dropout would become a part of the graph.
    graph = _Graph(model, compute).eval()
    return Part(name, graph, tuple(inputs), tuple(outputs), model.config.text.vocab_size)
