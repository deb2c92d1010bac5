"""Names of the original BLIP's and ALBEF's weights beside ours, as tables.

A table maps our name to the original one, or to several that ours holds one below the other. A
name stands for everything below it (`.weight`, `.bias`); `*` is the number of a layer.

What an original checkpoint is and how large, told from its keys and shapes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from openblip.checkpoints.assembly import Shapes, listed
from openblip.model import MedConfig, TextConfig, VisionConfig
from openblip.model.config import AlbefConfig, AlbefHead, Head
from openblip.model.vqa import NlvrConfig, VqaConfig
from openblip.runtime.errors import CheckpointError, RecipeError

Kind = Literal[
    "pretrain",
    "retrieval",
    "itm",
    "caption",
    "feature_extractor",
    "vqa",
    "nlvr",
    "albef_pretrain",
    "albef_retrieval",
]
"""Which of the originals' models: BLIP's, or ALBEF's where the name says so."""
Table = Mapping[str, str | tuple[str, ...]]
Place = tuple[str, ...]
"""Original names that ours holds one below the other."""

_VISION: Table = {
    "class_token": "cls_token",
    "positions": "pos_embed",
    "patch_embed": "patch_embed.proj",
    "blocks.*.attention_norm": "blocks.*.norm1",
    "blocks.*.attention.qkv": "blocks.*.attn.qkv",
    "blocks.*.attention.output": "blocks.*.attn.proj",
    "blocks.*.mlp_norm": "blocks.*.norm2",
    "blocks.*.mlp.up": "blocks.*.mlp.fc1",
    "blocks.*.mlp.down": "blocks.*.mlp.fc2",
    "norm": "norm",
}
_EMBEDDINGS: Table = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
_TOKEN_TYPES: Table = {"embeddings.token_type": "embeddings.token_type_embeddings"}
_SELF_ATTENTION: Table = {
    "layers.*.self_attention.qkv": (
        "encoder.layer.*.attention.self.query",
        "encoder.layer.*.attention.self.key",
        "encoder.layer.*.attention.self.value",
    ),
    "layers.*.self_attention.output": "encoder.layer.*.attention.output.dense",
    "layers.*.self_attention.norm": "encoder.layer.*.attention.output.LayerNorm",
}
_CAUSAL_SELF_ATTENTION: Table = {
    ours.replace("self_attention", "causal_self_attention"): original
    for ours, original in _SELF_ATTENTION.items()
}
_CROSS_ATTENTION: Table = {
    "layers.*.cross_attention.query": "encoder.layer.*.crossattention.self.query",
    "layers.*.cross_attention.key_value": (
        "encoder.layer.*.crossattention.self.key",
        "encoder.layer.*.crossattention.self.value",
    ),
    "layers.*.cross_attention.output": "encoder.layer.*.crossattention.output.dense",
    "layers.*.cross_attention.norm": "encoder.layer.*.crossattention.output.LayerNorm",
}
_TWIN_CROSS_ATTENTION: Table = {
    "layers.*.cross_attention.first.query": "encoder.layer.*.crossattention.self0.query",
    "layers.*.cross_attention.first.key_value": (
        "encoder.layer.*.crossattention.self0.key",
        "encoder.layer.*.crossattention.self0.value",
    ),
    "layers.*.cross_attention.first.output": "encoder.layer.*.crossattention.output.dense0",
    "layers.*.cross_attention.second.query": "encoder.layer.*.crossattention.self1.query",
    "layers.*.cross_attention.second.key_value": (
        "encoder.layer.*.crossattention.self1.key",
        "encoder.layer.*.crossattention.self1.value",
    ),
    "layers.*.cross_attention.second.output": "encoder.layer.*.crossattention.output.dense1",
    "layers.*.cross_attention.merge": "encoder.layer.*.crossattention.output.merge_layer",
    "layers.*.cross_attention.norm": "encoder.layer.*.crossattention.output.LayerNorm",
}
_FFN: Table = {
    "layers.*.ffn.up": "encoder.layer.*.intermediate.dense",
    "layers.*.ffn.down": "encoder.layer.*.output.dense",
    "layers.*.ffn.norm": "encoder.layer.*.output.LayerNorm",
}
_LM_HEAD: Table = {
    "lm_head.transform": "transform.dense",
    "lm_head.norm": "transform.LayerNorm",
    "lm_head.bias": "bias",
}
# The original stores these two a second time.
_LM_HEAD_TIED: Table = {"embeddings.word": "decoder", "lm_head.bias": "decoder.bias"}
_ITM_HEAD: Table = {"itm_head": "itm_head"}
_PROJECTIONS: Table = {"image_projection": "vision_proj", "text_projection": "text_proj"}
_TEMPERATURE: Table = {"temperature": "temp"}
_TEACHER_PROJECTIONS: Table = {
    "image_projection": "vision_proj_m",
    "text_projection": "text_proj_m",
}
_CLASSIFIER: Table = {"hidden": "0", "output": "2"}

_ENCODER: Table = {**_EMBEDDINGS, **_SELF_ATTENTION, **_CROSS_ATTENTION, **_FFN}
_DECODER: Table = {**_EMBEDDINGS, **_CAUSAL_SELF_ATTENTION, **_CROSS_ATTENTION, **_FFN}
_TWIN_ENCODER: Table = {**_EMBEDDINGS, **_SELF_ATTENTION, **_TWIN_CROSS_ATTENTION, **_FFN}
_TEACHER_ENCODER: Table = {**_EMBEDDINGS, **_SELF_ATTENTION, **_FFN}
# Layers without cross-attention have no weight that its rows name.
_FUSION_ENCODER: Table = {**_ENCODER, **_TOKEN_TYPES}


TIMM_VISION = _VISION
"""Our image encoder in timm's names, which the originals have from there."""
BERT: Table = {
    **_EMBEDDINGS,
    **_TOKEN_TYPES,
    **_SELF_ATTENTION,
    **_FFN,
    **{ours: f"cls.predictions.{original}" for ours, original in _LM_HEAD.items()},
}
"""What a text stack has of BERT, in the names of `transformers`."""


@dataclass(frozen=True)
class Section:
    """A table and what stands before its names on either side."""

    ours: str
    original: str
    table: Table


def _with_lm_head(ours: str, original: str, table: Table) -> tuple[Section, ...]:
    return (
        Section(ours, f"{original}.bert.", table),
        Section(ours, f"{original}.cls.predictions.", _LM_HEAD),
        Section(ours, f"{original}.cls.predictions.", _LM_HEAD_TIED),
    )


def _decoder(ours: str) -> tuple[Section, ...]:
    return _with_lm_head(ours, "text_decoder", _DECODER)


_IMAGE_ENCODER = Section("image_encoder.", "visual_encoder.", _VISION)
_TEXT_ENCODER = Section("text.", "text_encoder.", _ENCODER)
_FEATURE_EXTRACTOR = (_IMAGE_ENCODER, _TEXT_ENCODER)
_HEADS = Section("", "", {**_PROJECTIONS, **_ITM_HEAD, **_TEMPERATURE})
_RETRIEVAL = (*_FEATURE_EXTRACTOR, _HEADS)

# Where several sections name the same weight of ours, the original stores it several times: the
# first place is the one that it also trains.
SECTIONS: dict[Kind, tuple[Section, ...]] = {
    "pretrain": (*_RETRIEVAL, *_decoder("text.")),
    "retrieval": _RETRIEVAL,
    "itm": (*_FEATURE_EXTRACTOR, Section("", "", {**_PROJECTIONS, **_ITM_HEAD})),
    "caption": (_IMAGE_ENCODER, *_decoder("text.")),
    "feature_extractor": _FEATURE_EXTRACTOR,
    "vqa": (
        _IMAGE_ENCODER,
        Section("question.", "text_encoder.", _ENCODER),
        *_decoder("answer."),
    ),
    "nlvr": (
        _IMAGE_ENCODER,
        Section("text.", "text_encoder.", _TWIN_ENCODER),
        Section("classifier.", "cls_head.", _CLASSIFIER),
    ),
    "albef_pretrain": (
        _IMAGE_ENCODER,
        *_with_lm_head("text.", "text_encoder", _FUSION_ENCODER),
        _HEADS,
    ),
    "albef_retrieval": (
        _IMAGE_ENCODER,
        Section("text.", "text_encoder.", _FUSION_ENCODER),
        _HEADS,
    ),
}


@dataclass(frozen=True)
class Momentum:
    """What a kind that is trained with a momentum model stores for it."""

    queue_position: str
    """Name of the queue's write position."""
    queue_size: int
    """Pairs in the queue of the released checkpoint."""
    has_image_ids: bool
    """Whether the queue knows which image each pair is of."""
    sections: tuple[Section, ...]
    """The momentum model."""
    unused: tuple[Section, ...] = ()
    """Parts of the momentum model that are never run."""


_TEACHER_IMAGE_ENCODER = Section("image_encoder.", "visual_encoder_m.", _VISION)
_TEACHER_HEADS = Section("", "", _TEACHER_PROJECTIONS)
_TEACHER = (
    _TEACHER_IMAGE_ENCODER,
    Section("text.", "text_encoder_m.", _TEACHER_ENCODER),
    _TEACHER_HEADS,
)
# BLIP's momentum text encoder stays unimodal.
_UNUSED_TEACHER = (Section("text.", "text_encoder_m.", _CROSS_ATTENTION),)

MOMENTUM: dict[Kind, Momentum] = {
    "pretrain": Momentum("queue_ptr", 57600, False, _TEACHER, _UNUSED_TEACHER),
    "retrieval": Momentum("ptr_queue", 57600, True, _TEACHER, _UNUSED_TEACHER),
    "albef_pretrain": Momentum(
        "queue_ptr",
        65536,
        False,
        (
            _TEACHER_IMAGE_ENCODER,
            *_with_lm_head("text.", "text_encoder_m", _FUSION_ENCODER),
            _TEACHER_HEADS,
        ),
    ),
    "albef_retrieval": Momentum(
        "queue_ptr",
        65536,
        True,
        (
            _TEACHER_IMAGE_ENCODER,
            Section("text.", "text_encoder_m.", _FUSION_ENCODER),
            _TEACHER_HEADS,
        ),
    ),
}
"""A kind that is not here has neither momentum model nor queue."""
POSITION_IDS = ".embeddings.position_ids"
"""Ending of the buffers 0, 1, 2, ... that the original stores for each text stack."""


class NameMap:
    """Where the original stores a weight of ours."""

    def __init__(self, sections: tuple[Section, ...]) -> None:
        """Joins the tables of all sections."""
        self._places: dict[str, list[Place]] = {}
        for section in sections:
            for ours, original in section.table.items():
                parts = (original,) if isinstance(original, str) else original
                place = tuple(section.original + part for part in parts)
                self._places.setdefault(section.ours + ours, []).append(place)

    def places(self, name: str) -> list[Place]:
        """Every place of one of our weights, the trained one first; [] if no table names it."""
        components = name.split(".")
        number = next((c for c in components if c.isdigit()), "")
        components = ["*" if c == number else c for c in components]
        for length in range(len(components), 0, -1):
            rest = "".join(f".{component}" for component in components[length:])
            if places := self._places.get(".".join(components[:length])):
                return [
                    tuple(part.replace("*", number) + rest for part in place) for place in places
                ]
        return []


OriginalConfig = MedConfig | VqaConfig | NlvrConfig | AlbefConfig

# Channels of an attention head at every released size.
_HEAD_DIM = 64
MED_HEADS: dict[Kind, tuple[Head, ...]] = {
    "pretrain": ("itc", "itm", "lm"),
    "retrieval": ("itc", "itm"),
    "itm": ("itc", "itm"),
    "caption": ("lm",),
    "feature_extractor": ("multimodal",),
}
"""Heads of the kinds that are a MED."""
ALBEF_HEADS: dict[Kind, tuple[AlbefHead, ...]] = {
    "albef_pretrain": ("itc", "itm", "mlm"),
    "albef_retrieval": ("itc", "itm"),
}
"""Heads of the kinds that are an ALBEF."""


@dataclass(frozen=True)
class _Shapes:
    """Shapes by key, and the file that errors name."""

    shapes: Shapes
    source: str

    def get(self, key: str, dimensions: int) -> tuple[int, ...]:
        shape = self.shapes.get(key)
        if shape is None:
            raise CheckpointError(f"{self.source}: missing {key}; is the checkpoint complete?")
        if len(shape) != dimensions:
            raise CheckpointError(
                f"{self.source}: {key} has shape {shape}, expected {dimensions} dimensions"
            )
        if 0 in shape:
            raise CheckpointError(f"{self.source}: {key} has shape {shape}, which is empty")
        return shape

    def layers(self, pattern: str) -> list[int]:
        """Numbers of the layers that have a key of the pattern, whose `*` is the number."""
        layer = re.compile(re.escape(pattern).replace(r"\*", r"(\d{1,9})"))
        return [int(match[1]) for match in map(layer.match, self.shapes) if match]

    def depth(self, pattern: str) -> int:
        return 1 + max(self.layers(pattern), default=-1)


def detect_kind(keys: Mapping[str, Tensor], source: str) -> Kind:
    """Which of the original's models a state dict belongs to.

    Raises:
        CheckpointError: if it is none of them.
    """
    tops = {key.split(".")[0] for key in keys}
    if "visual_encoder" not in tops or not tops & {"text_encoder", "text_decoder"}:
        raise CheckpointError(
            f"{source}: no original BLIP checkpoint; expected visual_encoder.* with text_encoder.* "
            f"or text_decoder.*, found {listed(tops)}"
        )
    if any(".token_type_embeddings." in key for key in keys):
        return _albef_kind(keys, tops, source)
    if "text_encoder" not in tops:
        return "caption"
    if "text_decoder" in tops:
        return "pretrain" if "itm_head" in tops else "vqa"
    if "cls_head" in tops:
        return "nlvr"
    if "itm_head" not in tops:
        return "feature_extractor"
    # The class for matching has no temperature.
    return "retrieval" if tops & {"idx_queue", "temp"} else "itm"


def _albef_kind(keys: Mapping[str, Tensor], tops: set[str], source: str) -> Kind:
    """BERT's token types are part of ALBEF, not of BLIP."""
    if any(key.startswith("text_encoder.cls.") for key in keys):
        return "albef_pretrain"
    heads, of_others = {"itm_head", "vision_proj", "text_proj"}, {"cls_head", "text_decoder"}
    # Its queue knows the images; many leave it out, as whatever training alone needs.
    has_whole_queue = "idx_queue" in tops or "image_queue" not in tops
    if heads <= tops and not tops & of_others and has_whole_queue:
        return "albef_retrieval"
    raise CheckpointError(
        f"{source}: an ALBEF checkpoint without the masked-word head of pre-training or the heads "
        "of retrieval; ALBEF's other models cannot be read"
    )


def infer_config(
    kind: Kind,
    tensors: Mapping[str, Tensor],
    source: str,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> OriginalConfig:
    """Sizes of a checkpoint, from its shapes.

    Args:
        kind: what it is.
        tensors: the state dict; its numbers are not looked at.
        source: what errors name.
        vision_heads: attention heads, which no shape shows; one per 64 channels by default.
        text_heads: the same for the text.

    Raises:
        CheckpointError: if a key that tells a size is missing or is of no use.
    """
    shapes = _Shapes({key: tuple(tensor.shape) for key, tensor in tensors.items()}, source)
    try:
        return _config(kind, shapes, vision_heads, text_heads)
    except RecipeError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _config(
    kind: Kind, shapes: _Shapes, vision_heads: int | None, text_heads: int | None
) -> OriginalConfig:
    vision = _vision(kind, shapes, vision_heads)
    text = _text(kind, shapes, text_heads)
    if kind == "vqa":
        return VqaConfig(vision=vision, text=text)
    if kind == "nlvr":
        merging = "text_encoder.encoder.layer.*.crossattention.output.merge_layer.weight"
        first_merging = min(shapes.layers(merging), default=text.depth)
        return NlvrConfig(vision=vision, text=text, merge_from_layer=first_merging)
    if kind in ALBEF_HEADS:
        return AlbefConfig(
            vision=vision,
            text=text,
            embed_dim=shapes.get("vision_proj.weight", 2)[0],
            fusion_layer=_fusion_layer(kind, shapes, text.depth),
            heads=ALBEF_HEADS[kind],
        )
    heads = MED_HEADS[kind]
    embed_dim = shapes.get("vision_proj.weight", 2)[0] if "itc" in heads else MedConfig.embed_dim
    return MedConfig(vision=vision, text=text, embed_dim=embed_dim, heads=heads)


def _vision(kind: Kind, shapes: _Shapes, heads: int | None) -> VisionConfig:
    _, patches, width = shapes.get("visual_encoder.pos_embed", 3)
    patch_size = shapes.get("visual_encoder.patch_embed.proj.weight", 4)[-1]
    hidden_width = shapes.get("visual_encoder.blocks.0.mlp.fc1.weight", 2)[0]
    side = round(max(patches - 1, 0) ** 0.5)
    if side == 0 or side**2 != patches - 1:
        raise CheckpointError(
            f"{shapes.source}: visual_encoder.pos_embed has {patches} positions, expected a square "
            "grid and the class token"
        )
    # Released configurations: always for ViT-large, for ViT-base in these two tasks only.
    drop_path = 0.1 if kind in ("vqa", "nlvr") or width >= 1024 else 0.0
    return VisionConfig(
        image_size=side * patch_size,
        patch_size=patch_size,
        width=width,
        depth=shapes.depth("visual_encoder.blocks.*.norm1.weight"),
        heads=_num_heads("vision_heads", heads, width, shapes.source),
        mlp_ratio=ratio_of(hidden_width, width),
        drop_path=drop_path,
    )


def _text(kind: Kind, shapes: _Shapes, heads: int | None) -> TextConfig:
    bert = _bert(kind)
    vocab_size, width = shapes.get(f"{bert}embeddings.word_embeddings.weight", 2)
    return TextConfig(
        vocab_size=vocab_size,
        width=width,
        depth=shapes.depth(f"{bert}encoder.layer.*.intermediate.dense.weight"),
        heads=_num_heads("text_heads", heads, width, shapes.source),
        ffn_width=shapes.get(f"{bert}encoder.layer.0.intermediate.dense.weight", 2)[0],
        max_positions=shapes.get(f"{bert}embeddings.position_embeddings.weight", 2)[0],
    )


def _fusion_layer(kind: Kind, shapes: _Shapes, depth: int) -> int:
    """The first layer with cross-attention."""
    query = f"{_bert(kind)}encoder.layer.*.crossattention.self.query.weight"
    shapes.get(query.replace("*", str(depth - 1)), 2)
    first = min(shapes.layers(query))
    if first == 0:
        raise CheckpointError(
            f"{shapes.source}: {query.replace('*', '0')} attends to the image in the first text "
            "layer; expected layers of the text alone below, as in ALBEF"
        )
    return first


def _bert(kind: Kind) -> str:
    """What stands before the names of BERT."""
    prefixes: dict[Kind, str] = {
        "caption": "text_decoder.bert.",
        "albef_pretrain": "text_encoder.bert.",
    }
    return prefixes.get(kind, "text_encoder.")


def _num_heads(argument: str, given: int | None, width: int, source: str) -> int:
    if given is None and width % _HEAD_DIM:
        raise CheckpointError(
            f"{source}: width {width} is not a multiple of {_HEAD_DIM}, so the number of attention "
            f"heads cannot be told; give {argument}"
        )
    return width // _HEAD_DIM if given is None else given


def ratio_of(hidden_width: int, width: int) -> float:
    """A ratio whose product with the width, rounded down, is the hidden width."""
    ratio = hidden_width / width
    return ratio if int(width * ratio) == hidden_width else math.nextafter(ratio, math.inf)


def teacher_config(config: OriginalConfig) -> MedConfig | AlbefConfig:
    """Sizes of the momentum model: of a MED, what the contrast needs; of ALBEF, all but matching.

    Raises:
        AssertionError: for a model that is not trained with one.
    """
    if isinstance(config, AlbefConfig):
        return replace(config, heads=tuple(head for head in config.heads if head != "itm"))
    assert isinstance(config, MedConfig)
    return replace(config, heads=("itc",))
