"""What the originals' checkpoints hold: names beside ours, and their models' sizes from shapes.

The originals are BLIP, and ALBEF where a name says so.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from openblip.checkpoints.assembly import Section, Shapes, Table, listed
from openblip.model import MedConfig, TextConfig, VisionConfig
from openblip.model.config import AlbefConfig
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

OriginalConfig = MedConfig | VqaConfig | NlvrConfig | AlbefConfig


@dataclass(frozen=True, kw_only=True)
class OriginalModel:
    """One of the originals' models."""

    sections: tuple[Section, ...]
    """Its weights. Where several name the same one of ours, it is stored several times: the first
    place is the one that is also trained."""
    config: type[OriginalConfig] = MedConfig
    """Which of our models it is."""
    heads: tuple[str, ...] = ()
    """Of a MED or an ALBEF."""
    momentum: Momentum | None = None
    """None where it is trained without a momentum model."""
    bert: str = "text_encoder."
    """What stands before the names of the first BERT."""


MODELS: dict[Kind, OriginalModel] = {
    "pretrain": OriginalModel(
        sections=(*_RETRIEVAL, *_decoder("text.")),
        heads=("itc", "itm", "lm"),
        momentum=Momentum("queue_ptr", 57600, False, _TEACHER, _UNUSED_TEACHER),
    ),
    "retrieval": OriginalModel(
        sections=_RETRIEVAL,
        heads=("itc", "itm"),
        momentum=Momentum("ptr_queue", 57600, True, _TEACHER, _UNUSED_TEACHER),
    ),
    "itm": OriginalModel(
        sections=(*_FEATURE_EXTRACTOR, Section("", "", {**_PROJECTIONS, **_ITM_HEAD})),
        heads=("itc", "itm"),
    ),
    "caption": OriginalModel(
        sections=(_IMAGE_ENCODER, *_decoder("text.")), heads=("lm",), bert="text_decoder.bert."
    ),
    "feature_extractor": OriginalModel(sections=_FEATURE_EXTRACTOR, heads=("multimodal",)),
    "vqa": OriginalModel(
        sections=(
            _IMAGE_ENCODER,
            Section("question.", "text_encoder.", _ENCODER),
            *_decoder("answer."),
        ),
        config=VqaConfig,
    ),
    "nlvr": OriginalModel(
        sections=(
            _IMAGE_ENCODER,
            Section("text.", "text_encoder.", _TWIN_ENCODER),
            Section("classifier.", "cls_head.", _CLASSIFIER),
        ),
        config=NlvrConfig,
    ),
    "albef_pretrain": OriginalModel(
        sections=(
            _IMAGE_ENCODER,
            *_with_lm_head("text.", "text_encoder", _FUSION_ENCODER),
            _HEADS,
        ),
        config=AlbefConfig,
        heads=("itc", "itm", "mlm"),
        momentum=Momentum(
            "queue_ptr",
            65536,
            False,
            (
                _TEACHER_IMAGE_ENCODER,
                *_with_lm_head("text.", "text_encoder_m", _FUSION_ENCODER),
                _TEACHER_HEADS,
            ),
        ),
        bert="text_encoder.bert.",
    ),
    "albef_retrieval": OriginalModel(
        sections=(
            _IMAGE_ENCODER,
            Section("text.", "text_encoder.", _FUSION_ENCODER),
            _HEADS,
        ),
        config=AlbefConfig,
        heads=("itc", "itm"),
        momentum=Momentum(
            "queue_ptr",
            65536,
            True,
            (
                _TEACHER_IMAGE_ENCODER,
                Section("text.", "text_encoder_m.", _FUSION_ENCODER),
                _TEACHER_HEADS,
            ),
        ),
    ),
}
"""The originals' models, by their kinds."""

# Channels of an attention head at every released size.
_HEAD_DIM = 64


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
        # A key comes with a stranger's file: Python refuses to read numbers of thousands of digits.
        layer = re.compile(re.escape(pattern).replace(r"\*", r"(\d{1,9})"))
        return [int(match[1]) for match in map(layer.match, self.shapes) if match]

    def depth(self, pattern: str) -> int:
        return 1 + max(self.layers(pattern), default=-1)


def kind_of_original(keys: Mapping[str, Tensor], source: str) -> Kind:
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
    sizes: dict[str, Any] = {"vision": vision, "text": text}
    config, heads = MODELS[kind].config, MODELS[kind].heads
    if config is NlvrConfig:
        merging = "text_encoder.encoder.layer.*.crossattention.output.merge_layer.weight"
        # Without such a weight in any layer nothing is merged.
        sizes["merge_from_layer"] = min(shapes.layers(merging), default=text.depth)
    if "itc" in heads:
        sizes["embed_dim"] = shapes.get("vision_proj.weight", 2)[0]
    if config is AlbefConfig:
        sizes["fusion_layer"] = _fusion_layer(kind, shapes, text.depth)
    if heads:
        sizes["heads"] = heads
    return config(**sizes)


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
    bert = MODELS[kind].bert
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
    query = f"{MODELS[kind].bert}encoder.layer.*.crossattention.self.query.weight"
    shapes.get(query.replace("*", str(depth - 1)), 2)
    first = min(shapes.layers(query))
    if first == 0:
        raise CheckpointError(
            f"{shapes.source}: {query.replace('*', '0')} attends to the image in the first text "
            "layer; expected layers of the text alone below, as in ALBEF"
        )
    return first


def _num_heads(argument: str, given: int | None, width: int, source: str) -> int:
    if given is None and width % _HEAD_DIM:
        raise CheckpointError(
            f"{source}: width {width} is not a multiple of {_HEAD_DIM}, so the number of attention "
            f"heads cannot be told; give {argument}"
        )
    return width // _HEAD_DIM if given is None else given


def ratio_of(hidden_width: int, width: int) -> float:
    """A ratio whose product with the width, rounded down, is the hidden width."""
    # The product of floats may come out below the whole number, and be rounded down by one.
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
