"""Names of the original BLIP's and ALBEF's weights beside ours, as tables.

A table maps our name to the original one, or to several that ours holds one below the other. A
name stands for everything below it (`.weight`, `.bias`); `*` is the number of a layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
