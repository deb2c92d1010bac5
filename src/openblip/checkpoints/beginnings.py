"""What others trained as the beginning of a model: an image encoder, and BERT for the text.

As the original begins: ViT-B/16 of ImageNet, and bert-base-uncased for encoder and decoder.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.assembly import NameMap, Section, Table, check_shape, listed
from openblip.checkpoints.folder import CONFIG_FILE, read_json
from openblip.checkpoints.huggingface import find_weights, read_weights
from openblip.checkpoints.original import read_original
from openblip.checkpoints.original_layout import BERT, TIMM_VISION, ratio_of
from openblip.checkpoints.reading import find_model
from openblip.model.backbones import TIMM, TRANSFORMERS, BackboneEncoder, settled, settled_name
from openblip.model.config import TextConfig, VisionConfig
from openblip.model.vision import ImageEncoder, interpolate_positions
from openblip.runtime.errors import CheckpointError, OpenBlipWarning

# Our image encoder in the names of `transformers`' ViT.
_VIT: Table = {
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patch_embed": "embeddings.patch_embeddings.projection",
    "blocks.*.attention_norm": "encoder.layer.*.layernorm_before",
    "blocks.*.attention.qkv": (
        "encoder.layer.*.attention.attention.query",
        "encoder.layer.*.attention.attention.key",
        "encoder.layer.*.attention.attention.value",
    ),
    "blocks.*.attention.output": "encoder.layer.*.attention.output.dense",
    "blocks.*.mlp_norm": "encoder.layer.*.layernorm_after",
    "blocks.*.mlp.up": "encoder.layer.*.intermediate.dense",
    "blocks.*.mlp.down": "encoder.layer.*.output.dense",
    "norm": "layernorm",
}
_WORDS = "embeddings.word_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
# One head per so many channels, as in the released models.
_HEAD_WIDTH = 64
_USUAL_WIDTHS = (192, 384, 768, 1024)
_CLASSIFIERS = ("head.", "head_dist.", "pre_logits.", "classifier.", "pooler.", "fc_norm.")


@dataclass
class KeyReport:
    """What became of the weights of a source, and where a part of the model got none."""

    part: str
    """Of the model: "image_encoder" or "text"."""
    source: str
    """As it was named."""
    used: dict[str, str] = field(default_factory=dict)
    """Keys of the source, and our names (without the part's) that have them."""
    fresh: list[str] = field(default_factory=list)
    """Our names that the source has no weights for, and rows of them."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Keys of the source that have no place, with the reason."""

    def __str__(self) -> str:
        return (
            f"{self.part} from {self.source}: {len(self.used)} keys used, {len(self.fresh)} of "
            f"ours fresh, {len(self.dropped)} dropped"
        )


def image_sizes(source: str, vision: VisionConfig) -> VisionConfig:
    """The configuration of an image encoder that has the weights of a source.

    It is ours where the architectures agree, else a backbone.

    Args:
        source: a folder or hub repository of `transformers` or timm, a file of weights in timm's
            names, or `timm:NAME` with the weights that timm has of it.
        vision: of the model that begins with them; its image size stays.

    Raises:
        CheckpointError: if there is no such source, or it is of another kind.
        RecipeError: if its backbone cannot do what `vision` asks of it.
    """
    found = _ImageSource.find(source)
    backbone = found.backbone
    if vision.backbone is not None:
        if backbone is not None and settled_name(backbone) != settled_name(vision.backbone):
            raise CheckpointError(
                f"{source} is another model than vision.backbone names: leave that out, and the "
                "backbone is the source's"
            )
        return settled(vision)
    sizes = found.sizes(vision)
    if sizes is not None:
        return replace(vision, **sizes)
    if backbone is None:
        raise CheckpointError(
            f"{source}: its weights are not those of a plain vision transformer, and it does not "
            "say of which model they are: give vision.backbone"
        )
    return settled(replace(vision, backbone=backbone))


@torch.no_grad()
def begin_images(encoder: ImageEncoder | BackboneEncoder, source: str) -> KeyReport:
    """Put the weights of a source into an image encoder of its `image_sizes`.

    Positions are interpolated to the encoder's image size.

    Raises:
        CheckpointError: if a weight is missing, unknown or of another shape.
    """
    found = _ImageSource.find(source)
    report = KeyReport("image_encoder", source)
    if isinstance(encoder, BackboneEncoder):
        _begin_backbone(encoder, found, report)
        return report
    tensors, names = found.as_ours()
    unread = set(tensors)
    for name, own in encoder.state_dict().items():
        (place,) = names.places(name)
        _check_there(place, tensors, source)
        # Query, key and value are one weight of ours.
        value = torch.cat([tensors[key] for key in place])
        if name == "positions":
            grid = encoder.config.image_size // encoder.config.patch_size
            value = interpolate_positions(value.float(), (grid, grid))
        check_shape(" + ".join(place), tuple(value.shape), tuple(own.shape), source)
        # `state_dict` gives the module's own tensors, not copies.
        own.copy_(value)
        report.used |= dict.fromkeys(place, name)
        unread -= set(place)
    _drop_rest(report, unread)
    return report


def text_sizes(source: str, text: TextConfig) -> TextConfig:
    """The configuration of a text stack that has the weights of a BERT.

    Args:
        source: a folder or hub repository of `transformers`.
        text: of the model that begins with them; sharing, dropout and vocabulary stay.

    Raises:
        CheckpointError: if there is no such source, or it is no BERT.
    """
    path = _folder(source) / CONFIG_FILE
    config = read_json(path)
    expected = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
    for name, value in expected.items():
        # What is silent has `transformers`' defaults, which are these; the type alone must be said.
        if config.get(name, value if name != "model_type" else None) != value:
            raise CheckpointError(
                f"{path}: {name} is {config.get(name)!r:.40}, expected {value!r}: a text stack "
                "begins with a BERT of transformers"
            )
    try:
        return replace(
            text,
            width=config["hidden_size"],
            depth=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            ffn_width=config["intermediate_size"],
            max_positions=config["max_position_embeddings"],
            norm_eps=config.get("layer_norm_eps", 1e-12),
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: missing {error.args[0]!r}") from error


def text_tokenizer(source: str) -> TextTokenizer:
    """The tokenizer of a BERT, with `[DEC]` and `[ENC]` behind its vocabulary."""
    return TextTokenizer.from_file(_folder(source))


@torch.no_grad()
def begin_text(text: nn.Module, source: str, tokenizer: TextTokenizer) -> KeyReport:
    """Put the weights of a BERT into a text stack of its `text_sizes`.

    Encoder and decoder begin equal; cross-attention, and rows of words that are new, stay fresh.
    Our stack has no token types: that of a single sentence is part of every position, which makes
    its states those of BERT.

    Args:
        text: a `TextStack` or a `FusionText`.
        source: as for `text_sizes`.
        tokenizer: of `text_tokenizer`.

    Raises:
        CheckpointError: if a weight is missing or of another shape.
    """
    tensors = _bert_names(read_weights(find_weights(_folder(source))))
    report = KeyReport("text", source)
    names, unread = NameMap((Section("", "", BERT),)), set(tensors)
    own_types = any(name.endswith("token_type.weight") for name in text.state_dict())
    for name, own in text.state_dict().items():
        # The decoder's own self-attention begins as the encoder's.
        place = next(iter(names.places(name.replace("causal_", ""))), ())
        is_head = name.startswith("lm_head.")
        # Many a BERT is stored without the head of its language model, and is one all the same.
        if not place or (is_head and not set(place) <= set(tensors)):
            report.fresh.append(name)
            continue
        _check_there(place, tensors, source)
        value = torch.cat([tensors[key] for key in place])
        if place == (_WORDS,) or name == "lm_head.bias":
            rows = _known_rows(len(value), tokenizer, source)
            report.fresh += [f"{name}[{rows}:]"] if rows < len(own) else []
            own, value = own[:rows], value[:rows]
        elif name.endswith("embeddings.position.weight") and not own_types and _TYPES in tensors:
            value, place = value + tensors[_TYPES][0], (*place, _TYPES)
        check_shape(" + ".join(place), tuple(value.shape), tuple(own.shape), source)
        own.copy_(value)
        for key in place:
            report.used[key] = f"{report.used[key]}, {name}" if key in report.used else name
        unread -= set(place)
    _drop_rest(report, unread)
    return report


@dataclass(frozen=True)
class _ImageSource:
    """Where image weights are, and of which model."""

    name: str
    path: Path | None
    """None, timm has them."""
    config: Mapping[str, Any]
    """Of a folder; else empty."""

    @staticmethod
    def find(source: str) -> "_ImageSource":
        if source.startswith(f"{TIMM}:"):
            return _ImageSource(source, None, {})
        path = find_model(source)
        config = read_json(path / CONFIG_FILE) if path.is_dir() else {}
        if config and not {"model_type", "architecture"} & set(config):
            raise CheckpointError(
                f"{source}: neither of transformers nor of timm; a model of our own is given as "
                "--init-from"
            )
        return _ImageSource(source, path, config)

    @property
    def backbone(self) -> str | None:
        """As which backbone the model can be built, if it says what it is."""
        if self.path is None:
            return self.name
        if "model_type" in self.config:
            return f"{TRANSFORMERS}:{self.path}"
        architecture = self.config.get("architecture")
        return None if architecture is None else f"{TIMM}:{architecture}"

    @property
    def is_vit(self) -> bool:
        """Whether `transformers` has it as a ViT like ours."""
        return (
            self.config.get("model_type") == "vit"
            and self.config.get("hidden_act", "gelu") == "gelu"
            and self.config.get("qkv_bias", True) is True
            and self.config.get("num_channels", 3) == 3
        )

    def sizes(self, vision: VisionConfig) -> dict[str, Any] | None:
        """Those of our image encoder with these weights; None where it is another architecture."""
        if "model_type" in self.config:
            return _vit_sizes(self.config) if self.is_vit else None
        tensors = self.tensors()
        number = sum(key.endswith(".attn.qkv.weight") for key in tensors)
        expected = {
            key
            for name in _names_of_ours(number)
            for place in NameMap((Section("", "", TIMM_VISION),)).places(name)
            for key in place
        }
        rest = {key for key in tensors if not key.startswith(_CLASSIFIERS)}
        # Exactly these: one more would be a scale, a gate or a norm that our layers do not have.
        if not number or rest != expected or any(k.startswith("fc_norm.") for k in tensors):
            return None
        width = tensors["cls_token"].shape[-1]
        patches = tensors["pos_embed"].shape[1] - 1
        # Images that are no squares, or class tokens beside the first, as DeiT's for distillation.
        if math.isqrt(patches) ** 2 != patches:
            return None
        return {
            "patch_size": tensors["patch_embed.proj.weight"].shape[-1],
            "width": width,
            "depth": number,
            "heads": vision.heads if width == vision.width else _guessed_heads(width, self.name),
            "mlp_ratio": ratio_of(tensors["blocks.0.mlp.fc1.weight"].shape[0], width),
            # No weight shows it: that of every plain ViT in timm.
            "norm_eps": 1e-6,
        }

    def as_ours(self) -> tuple[dict[str, Tensor], NameMap]:
        """The weights, and their names of ours."""
        if "model_type" not in self.config:
            return self.tensors(), NameMap((Section("", "", TIMM_VISION),))
        tensors = {key.removeprefix("vit."): value for key, value in self.tensors().items()}
        return tensors, NameMap((Section("", "", _VIT),))

    def tensors(self) -> dict[str, Tensor]:
        """The weights by the source's names."""
        if self.path is None:
            from openblip.model.library_backbones import TimmBackbone

            made = TimmBackbone(self.name.removeprefix(f"{TIMM}:"), pretrained=True)
            return dict(made.model.state_dict())
        if self.path.is_dir():
            return read_weights(find_weights(self.path))
        return read_original(self.path)


def _begin_backbone(encoder: BackboneEncoder, found: _ImageSource, report: KeyReport) -> None:
    own = encoder.backbone.state_dict()
    library, _, settings = str(encoder.config.backbone).partition(":")
    if library == TRANSFORMERS and "model_type" in found.config:
        from openblip.model.library_backbones import read_transformers_weights

        assert found.path is not None, "a folder"
        tensors, left = read_transformers_weights(found.path, settings)
        report.dropped |= dict.fromkeys(left["unexpected"], "no part of the hidden states")
        missing, report.used = left["missing"], {name: f"backbone.{name}" for name in tensors}
    else:
        prefix = "model." if library == TIMM else ""
        every = {f"{prefix}{key}": tensor for key, tensor in found.tensors().items()}
        tensors = {name: tensor for name, tensor in every.items() if name in own}
        missing = sorted(set(own) - set(tensors))
        report.used = {n.removeprefix(prefix): f"backbone.{n}" for n in tensors}
        report.dropped |= dict.fromkeys(sorted(set(every) - set(own)), "the backbone has none")
    if missing:
        raise CheckpointError(
            f"{report.source}: has no weights for {listed(missing)} of vision.backbone; give "
            "those of the same model"
        )
    for name, value in tensors.items():
        check_shape(name, tuple(value.shape), tuple(own[name].shape), report.source)
        own[name].copy_(value)


def _vit_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    # `transformers` writes what differs from its defaults alone: these are the defaults.
    width = config.get("hidden_size", 768)
    return {
        "patch_size": config.get("patch_size", 16),
        "width": width,
        "depth": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "mlp_ratio": ratio_of(config.get("intermediate_size", 3072), width),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
    }


def _guessed_heads(width: int, source: str) -> int:
    heads = max(1, width // _HEAD_WIDTH)
    if width not in _USUAL_WIDTHS:
        warnings.warn(
            f"{source}: does not say how many attention heads it has; taken as {heads}, one per "
            f"{_HEAD_WIDTH} channels. If it has others, give model.vision.width {width} with its "
            "model.vision.heads",
            OpenBlipWarning,
            stacklevel=2,
        )
    return heads


def _names_of_ours(depth: int) -> Iterator[str]:
    for name in TIMM_VISION:
        for number in range(depth) if "*" in name else (0,):
            ours = name.replace("*", str(number))
            if name in ("class_token", "positions"):
                yield ours
            else:
                yield from (f"{ours}.weight", f"{ours}.bias")


def _bert_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the name of the model, and norms as they are named today."""
    renamed = {}
    for key, tensor in tensors.items():
        # Files of the first BERTs name them as TensorFlow does.
        plain = key.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias")
        renamed[plain.removeprefix("bert.")] = tensor
    return renamed


def _known_rows(rows: int, tokenizer: TextTokenizer, source: str) -> int:
    """How many rows are of words that the source knows: all but `[DEC]` and `[ENC]`, if new."""
    size, special = tokenizer.vocab_size, tokenizer.special
    known = size - 2 if {special.dec, special.enc} == {size - 1, size - 2} else size
    if rows < known:
        raise CheckpointError(
            f"{source}: has {rows} words, but its tokenizer {known}; restore its own tokenizer"
        )
    return known


def _check_there(place: tuple[str, ...], tensors: Mapping[str, Tensor], source: str) -> None:
    if missing := [key for key in place if key not in tensors]:
        raise CheckpointError(f"{source}: missing {listed(missing)}; is it complete?")


def _drop_rest(report: KeyReport, unread: set[str]) -> None:
    """Note why the other keys have no place.

    Raises:
        CheckpointError: one of them is part of the layers that are taken over.
    """
    for key in sorted(unread):
        if key.startswith(("encoder.layer.", "blocks.", "layers.")):
            raise CheckpointError(
                f"{report.source}: {key} has no place in our layers: it is another architecture"
            )
        report.dropped[key] = _why_dropped(key)


def _why_dropped(key: str) -> str:
    if key.endswith(("position_ids", "token_type_ids")):
        return "a constant"
    if key.startswith("cls.predictions.decoder."):
        return "tied to the word embedding and the head's bias"
    return "a head of the source's own training"


def _folder(source: str) -> Path:
    path = find_model(source)
    if not path.is_dir():
        raise CheckpointError(
            f"{source}: is a file; give a folder of transformers, with its tokenizer"
        )
    return path
