"""`transformers`' BLIP models: their `config.json` and our configurations, and names of weights.

Names are the original's, but for the image encoder.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from openblip.batches.tokenizer import SpecialTokens
from openblip.checkpoints.assembly import Section, Table, listed
from openblip.checkpoints.original_layout import MODELS as ORIGINAL_MODELS
from openblip.checkpoints.original_layout import Kind, ratio_of
from openblip.model import MedConfig, TextConfig, VisionConfig
from openblip.model.config import Head
from openblip.model.dual import DualConfig
from openblip.model.vqa import VqaConfig
from openblip.runtime.errors import CheckpointError, RecipeError

HuggingFaceConfig = MedConfig | VqaConfig | DualConfig

_MODEL_TYPE = "blip"
DEFAULTS: dict[str, dict[str, Any]] = {
    "": {
        "projection_dim": 512,
        "image_text_hidden_size": 256,
        "logit_scale_init_value": 2.6592,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 384,
        "patch_size": 16,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    },
    "text_config": {
        "vocab_size": 30524,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        # Not 12: so it stands in `BlipTextConfig`.
        "num_attention_heads": 8,
        "max_position_embeddings": 512,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.0,
        "is_decoder": True,
        "bos_token_id": 30522,
        "sep_token_id": 102,
        "pad_token_id": 0,
    },
}
"""What `transformers` takes where a part of `config.json` is silent; "" is its top level.

It writes what differs from these alone, so that most files lack most fields.
"""

_EXACT_GELU = ("gelu", "gelu_python")
_TEMPERATURE = 0.07
_LARGEST_NUMBER = 100.0
_LARGEST_SIZE = 1 << 24
HuggingFaceKind = Literal["caption", "retrieval", "vqa", "dual"]

_GENERATING: tuple[HuggingFaceKind, ...] = ("caption", "vqa")


class _Part:
    """One part of a configuration, whose fields errors name in full."""

    def __init__(self, config: Mapping[str, Any], name: str, source: str) -> None:
        values = config.get(name, {}) if name else config
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{source}: {name} is {values!r:.60}, expected an object")
        self._values = values
        self._defaults = DEFAULTS[name]
        self._prefix = f"{name}." if name else ""
        self._source = source

    def error(self, field: str, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self._source}: {self._prefix}{field} is {self.value(field)!r:.60}; {expected}"
        )

    def value(self, field: str) -> Any:
        return self._values.get(field, self._defaults[field])

    def size(self, field: str) -> int:
        value = self.value(field)
        # To Python `true` is a whole number.
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        # The bound is far above any model.
        if not is_whole or not 1 <= value <= _LARGEST_SIZE:
            raise self.error(field, f"expected a whole number from 1 to {_LARGEST_SIZE}")
        return int(value)

    def number(self, field: str) -> float:
        value = self.value(field)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # No number of a configuration is larger; NaN compares as False.
        if not is_number or not abs(value) <= _LARGEST_NUMBER:
            raise self.error(field, "expected a number")
        return float(value)

    def check_activation(self) -> None:
        if self.value("hidden_act") not in _EXACT_GELU:
            raise self.error(
                "hidden_act",
                "BLIP has the exact 'gelu', and another one gives other outputs; "
                "load a checkpoint that was trained with it",
            )


def check_readable(config: Mapping[str, Any], source: str) -> None:
    """Nothing, if a `config.json` is of a BLIP model with plain weights and no code of its own.

    Raises:
        CheckpointError: naming the field that says otherwise.
    """
    model_type = config.get("model_type")
    if model_type != _MODEL_TYPE:
        raise CheckpointError(
            f"{source}: model_type is {model_type!r:.60}; of Hugging Face checkpoints those of "
            f"model_type {_MODEL_TYPE!r} can be read: {', '.join(CLASSES.values())}"
        )
    check_no_code(config, source)
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{source}: quantization_config is set; quantised weights cannot be read, load the "
            "checkpoint that they were made from"
        )


def check_no_code(values: Mapping[str, Any], source: str) -> None:
    """Nothing, if a JSON file names no code.

    Raises:
        CheckpointError: if it does; the code is not run.
    """
    if "auto_map" in values:
        raise CheckpointError(
            f"{source}: auto_map asks to run code that comes with the checkpoint, which is never "
            "run; load a checkpoint of transformers' own BLIP classes"
        )


def config_from_huggingface(
    config: Mapping[str, Any], kind: HuggingFaceKind, source: str
) -> HuggingFaceConfig:
    """Our configuration.

    Args:
        config: what `config.json` holds.
        kind: what the weights are.
        source: what errors name.

    Raises:
        CheckpointError: if a field is of no use, or of another function than ours.
    """
    try:
        # Sizes that contradict each other are the file's fault here, and no recipe's.
        return _config(config, kind, source)
    except RecipeError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _config(config: Mapping[str, Any], kind: HuggingFaceKind, source: str) -> HuggingFaceConfig:
    vision = _vision(_Part(config, "vision_config", source))
    text = _text(_Part(config, "text_config", source))
    if kind == "vqa":
        return VqaConfig(vision=vision, text=text)
    top = _Part(config, "", source)
    if kind == "dual":
        return DualConfig(vision=vision, text=text, embed_dim=top.size("projection_dim"))
    # A captioner has no projection, whatever its file says of one.
    embed_dim = top.size("image_text_hidden_size") if kind == "retrieval" else MedConfig.embed_dim
    return MedConfig(vision=vision, text=text, embed_dim=embed_dim, heads=MED_HEADS[kind])


def temperature_of(config: Mapping[str, Any], source: str) -> float:
    """The temperature of a retrieval model, which has it in no weight.

    Raises:
        CheckpointError: if `logit_scale_init_value` is no number.
    """
    top = _Part(config, "", source)
    scale = top.number("logit_scale_init_value")
    # The default is the logarithm of 1 / 0.07, rounded: taken back, it is BLIP's own 0.07 again.
    is_default = scale == DEFAULTS[""]["logit_scale_init_value"]
    return _TEMPERATURE if is_default else math.exp(-scale)


def check_token_ids(
    config: Mapping[str, Any], kind: HuggingFaceKind, special: SpecialTokens, source: str
) -> None:
    """Nothing, if the ids that a model generates with are those of its tokenizer.

    Raises:
        CheckpointError: naming the field and both ids.
    """
    # The other classes never write a token of their own.
    if kind not in _GENERATING:
        return
    part = _Part(config, "text_config", source)
    expected = {"bos_token_id": special.dec, "sep_token_id": special.sep}
    for field, token in (*expected.items(), ("pad_token_id", special.pad)):
        if part.value(field) != token:
            raise part.error(field, f"in its tokenizer it is {token}; restore the model's own")


def config_to_huggingface(
    config: HuggingFaceConfig,
    kind: HuggingFaceKind,
    special: SpecialTokens,
    temperature: float | None = None,
) -> dict[str, Any]:
    """What `config.json` holds of a model.

    Args:
        config: its sizes.
        kind: as which class it is written.
        special: the ids of its tokenizer.
        temperature: of a model that contrasts.

    Raises:
        CheckpointError: if it has no logarithm.
    """
    written: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": _MODEL_TYPE,
        "vision_config": _vision_to_dict(config.vision),
        "text_config": _text_to_dict(config.text, config.vision.width, special),
        # Said, because files leave the tied copies out (`TIED`).
        "tie_word_embeddings": True,
    }
    if isinstance(config, DualConfig):
        written["projection_dim"] = config.embed_dim
    elif isinstance(config, MedConfig):
        written["image_text_hidden_size"] = config.embed_dim
    if temperature is not None:
        if not 0 < temperature < math.inf:
            raise CheckpointError(
                f"the model's temperature is {temperature}, whose logarithm the Hugging Face "
                "layout stores; train it to a number above 0, or write another layout"
            )
        # A weight in float32 is not exactly 0.07.
        is_default = math.isclose(temperature, _TEMPERATURE, rel_tol=1e-7)
        written["logit_scale_init_value"] = (
            DEFAULTS[""]["logit_scale_init_value"] if is_default else -math.log(temperature)
        )
    return written


def _vision(part: _Part) -> VisionConfig:
    part.check_activation()
    width = part.size("hidden_size")
    return VisionConfig(
        image_size=part.size("image_size"),
        patch_size=part.size("patch_size"),
        width=width,
        depth=part.size("num_hidden_layers"),
        heads=part.size("num_attention_heads"),
        mlp_ratio=ratio_of(part.size("intermediate_size"), width),
        norm_eps=part.number("layer_norm_eps"),
    )


def _text(part: _Part) -> TextConfig:
    part.check_activation()
    if part.value("is_decoder") is not True:
        raise part.error("is_decoder", "expected true: a text stack with cross-attention")
    return TextConfig(
        vocab_size=part.size("vocab_size"),
        width=part.size("hidden_size"),
        depth=part.size("num_hidden_layers"),
        heads=part.size("num_attention_heads"),
        ffn_width=part.size("intermediate_size"),
        max_positions=part.size("max_position_embeddings"),
        dropout=part.number("hidden_dropout_prob"),
        norm_eps=part.number("layer_norm_eps"),
    )


def _vision_to_dict(vision: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "blip_vision_model",
        "hidden_size": vision.width,
        "intermediate_size": int(vision.width * vision.mlp_ratio),
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": "gelu",
        "layer_norm_eps": vision.norm_eps,
    }


def _text_to_dict(text: TextConfig, memory_width: int, special: SpecialTokens) -> dict[str, Any]:
    return {
        "model_type": "blip_text_model",
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "encoder_hidden_size": memory_width,
        "intermediate_size": text.ffn_width,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.max_positions,
        "hidden_act": "gelu",
        "layer_norm_eps": text.norm_eps,
        "hidden_dropout_prob": text.dropout,
        "attention_probs_dropout_prob": text.dropout,
        "is_decoder": True,
        "bos_token_id": special.dec,
        "eos_token_id": special.sep,
        "sep_token_id": special.sep,
        "pad_token_id": special.pad,
    }


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
    others = [s for s in ORIGINAL_MODELS[original].sections if s.ours != image_encoder.ours]
    return (
        image_encoder,
        *(Section(s.ours, renamed.get(s.theirs.rstrip("."), s.theirs), s.table) for s in others),
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


def kind_of_huggingface(keys: Iterable[str], source: str) -> HuggingFaceKind:
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
