"""Names of `transformers`' BLIP weights beside ours: the original's, but for the image encoder."""

from collections.abc import Iterable
from typing import Literal

from openblip.errors import CheckpointError
from openblip.interop.assembly import listed
from openblip.interop.original_layout import SECTIONS as ORIGINAL_SECTIONS
from openblip.interop.original_layout import Kind, Section, Table
from openblip.model.config import Head

HuggingFaceKind = Literal["caption", "retrieval", "vqa", "dual"]

CLASSES: dict[HuggingFaceKind, str] = {
    "caption": "BlipForConditionalGeneration",
    "retrieval": "BlipForImageTextRetrieval",
    "vqa": "BlipForQuestionAnswering",
    "dual": "BlipModel",
}
"""The class of each kind."""
MED_HEADS: dict[HuggingFaceKind, tuple[Head, ...]] = {
    "caption": ("lm",),
    "retrieval": ("itc", "itm"),
}
"""The heads of the kinds that are a MED."""
TIED = "text_decoder.cls.predictions.decoder."
"""What stands before copies of the word embedding and of the output bias; files leave them out."""
LOGIT_SCALE = "logit_scale"
"""Logarithm of the inverse temperature; a weight of the kind "dual" alone."""

_VISION: Table = {
    "class_token": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding",
    "patch_embed": "embeddings.patch_embedding",
    "blocks.*.attention_norm": "encoder.layers.*.layer_norm1",
    "blocks.*.attention.qkv": "encoder.layers.*.self_attn.qkv",
    "blocks.*.attention.output": "encoder.layers.*.self_attn.projection",
    "blocks.*.mlp_norm": "encoder.layers.*.layer_norm2",
    "blocks.*.mlp.up": "encoder.layers.*.mlp.fc1",
    "blocks.*.mlp.down": "encoder.layers.*.mlp.fc2",
    "norm": "post_layernorm",
}
_DUAL_HEADS: Table = {
    "text_pooler": "text_model.pooler.dense",
    "image_projection": "visual_projection",
    "text_projection": "text_projection",
    "logit_scale": LOGIT_SCALE,
}


def _sections(original: Kind, **renamed: str) -> tuple[Section, ...]:
    """The original's sections with the image encoder's names, and some prefixes, replaced."""
    image_encoder = Section("image_encoder.", "vision_model.", _VISION)
    others = [s for s in ORIGINAL_SECTIONS[original] if s.ours != image_encoder.ours]
    return (
        image_encoder,
        *(
            Section(s.ours, renamed.get(s.original.rstrip("."), s.original), s.table)
            for s in others
        ),
    )


SECTIONS: dict[HuggingFaceKind, tuple[Section, ...]] = {
    "caption": _sections("caption"),
    "retrieval": _sections("itm"),
    "vqa": _sections("vqa"),
    "dual": (
        *_sections("feature_extractor", text_encoder="text_model."),
        Section("", "", _DUAL_HEADS),
    ),
}


def detect_kind(keys: Iterable[str], source: str) -> HuggingFaceKind:
    """Which of `transformers`' models a state dict belongs to.

    Raises:
        CheckpointError: if it is none of them.
    """
    tops = {key.split(".")[0] for key in keys}
    if "vision_model" in tops:
        if "text_model" in tops:
            return "dual"
        if "itm_head" in tops:
            return "retrieval"
        if "text_decoder" in tops:
            return "vqa" if "text_encoder" in tops else "caption"
    raise CheckpointError(
        f"{source}: no BLIP weights of transformers; expected vision_model.* with text_decoder.*, "
        f"itm_head.* or text_model.*, found {listed(tops)}"
    )
