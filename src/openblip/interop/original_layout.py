"""Names of the original BLIP's weights beside ours, as tables.

A table maps our name to the original one, or to several that ours holds one below the other. A
name stands for everything below it (`.weight`, `.bias`); `*` is the number of a layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["pretrain", "retrieval", "itm", "caption", "feature_extractor", "vqa", "nlvr"]
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


@dataclass(frozen=True)
class Section:
    """A table and what stands before its names on either side."""

    ours: str
    original: str
    table: Table


def _decoder(ours: str) -> tuple[Section, ...]:
    return (
        Section(ours, "text_decoder.bert.", _DECODER),
        Section(ours, "text_decoder.cls.predictions.", _LM_HEAD),
        Section(ours, "text_decoder.cls.predictions.", _LM_HEAD_TIED),
    )


_IMAGE_ENCODER = Section("image_encoder.", "visual_encoder.", _VISION)
_TEXT_ENCODER = Section("text.", "text_encoder.", _ENCODER)
_FEATURE_EXTRACTOR = (_IMAGE_ENCODER, _TEXT_ENCODER)
_ITM = (*_FEATURE_EXTRACTOR, Section("", "", {**_PROJECTIONS, **_ITM_HEAD}))
_RETRIEVAL = (*_ITM, Section("", "", _TEMPERATURE))

# Where several sections name the same weight of ours, the original stores it several times: the
# first place is the one that it also trains.
SECTIONS: dict[Kind, tuple[Section, ...]] = {
    "pretrain": (*_RETRIEVAL, *_decoder("text.")),
    "retrieval": _RETRIEVAL,
    "itm": _ITM,
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
}
TEACHER_SECTIONS: tuple[Section, ...] = (
    Section("image_encoder.", "visual_encoder_m.", _VISION),
    Section("text.", "text_encoder_m.", _TEACHER_ENCODER),
    Section("", "", _TEACHER_PROJECTIONS),
)
# Part of the teacher in the original, but never run: its text encoder stays unimodal.
UNUSED_TEACHER_SECTION = Section("text.", "text_encoder_m.", _CROSS_ATTENTION)

QUEUE_POSITION: dict[Kind, str] = {"pretrain": "queue_ptr", "retrieval": "ptr_queue"}
"""Name of the queue's write position; a kind that is not here has neither teacher nor queue."""
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
