"""Conversion between `transformers`' BLIP models and ours, both ways and strictly.

Every key is either converted, or dropped with a reason that the result names, or an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from openblip.data.tokenizer import SpecialTokens
from openblip.errors import CheckpointError
from openblip.interop.assembly import Shapes, check_names, fill, shapes_of
from openblip.interop.conversion import StateReader, write_state
from openblip.interop.huggingface_config import (
    HuggingFaceConfig,
    check_readable,
    config_from_huggingface,
    config_to_huggingface,
    temperature_of,
)
from openblip.interop.huggingface_layout import (
    CLASSES,
    LOGIT_SCALE,
    MED_HEADS,
    SECTIONS,
    HuggingFaceKind,
    detect_kind,
)
from openblip.interop.models import AnyModel, empty_model, state_to_write
from openblip.interop.original_layout import NameMap
from openblip.model import Med
from openblip.model.albef import Albef
from openblip.model.dual import DualEncoder
from openblip.model.nlvr import Nlvr
from openblip.model.vqa import Vqa, VqaConfig

_SHARING = "all_but_self_attention"


@dataclass(frozen=True)
class HuggingFaceCheckpoint:
    """A checkpoint of `transformers` in our names."""

    kind: HuggingFaceKind
    """Which of its models it is."""
    config: HuggingFaceConfig
    """Sizes of the model."""
    state: dict[str, Tensor]
    """State of the model; not copied from the input where the names map one to one."""
    dropped: dict[str, str]
    """Keys that have no place in ours, with the reason."""
    source: str
    """What errors name."""

    def model(self) -> AnyModel:
        """The `Med`, `Vqa` or `DualEncoder`, whose weights are the tensors of `state`."""
        return fill(empty_model(self.config), self.state, self.source)


def from_huggingface(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    source: str = "the checkpoint",
    *,
    config_source: str = "config.json",
) -> HuggingFaceCheckpoint:
    """The checkpoint in our names; tensors on the meta device are checked by shape alone.

    Args:
        tensors: the state dict; tied weights may be stored once or several times.
        config: what `config.json` holds. Where it is silent, `transformers`' defaults hold; which
            class it is, the keys of `tensors` tell.
        source: what errors about weights name, usually the file.
        config_source: what errors about `config` name.

    Raises:
        CheckpointError: if the configuration is of another model, or a key is missing, unknown,
            of another shape than it says, or unequal to the one that it is tied to.
    """
    check_readable(config, config_source)
    kind = detect_kind(tensors, source)
    ours = config_from_huggingface(config, kind, config_source)
    if isinstance(ours, VqaConfig) and _decoder_is_built_for_images(tensors, ours):
        ours = replace(ours, answer_memory_width=ours.vision.width)
    shapes, names = shapes_of(empty_model(ours)), NameMap(SECTIONS[kind])
    complete, stands_in = _with_tied(tensors, shapes, names)
    reader = StateReader(complete, source)
    state = reader.state(shapes, names)
    if kind == "retrieval":
        state["temperature"] = torch.tensor(temperature_of(config, config_source))
    reader.drop_position_ids(ours.text.max_positions)
    if LOGIT_SCALE in reader.unread:
        reader.take(LOGIT_SCALE, ())
        reader.dropped[LOGIT_SCALE] = f"not part of a {CLASSES[kind]}"
    check_names(set(), reader.unread, source)
    _check_floating(tensors, set(reader.dropped), source)
    dropped = {k: why for k, why in reader.dropped.items() if k in tensors and k not in stands_in}
    return HuggingFaceCheckpoint(kind, ours, state, dropped, source)


def to_huggingface(
    model: AnyModel, special: SpecialTokens, kind: HuggingFaceKind | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The complete state dict of a model's class in `transformers`, and what `config.json` holds.

    Tensors are shared with the model, not copied, and tied weights stand under every name.

    Args:
        model: what is written.
        special: the ids of its tokenizer.
        kind: as which class; needed where a model can be written as several.

    Raises:
        MissingHead: if the model lacks a head that the kind has.
        CheckpointError: if there is no class for the model, it is not of the kind, or the kind
            must be given; or if the decoder shares other parts than in the original.
    """
    if isinstance(model, Nlvr | Albef):
        raise CheckpointError(
            f"transformers has no class for a model like {type(model).__name__}; write it in the "
            "original layout or ours"
        )
    kind = _kind_of(model, kind)
    if model.config.text.sharing != _SHARING:
        raise CheckpointError(
            f"text.sharing {model.config.text.sharing!r} has no place in the Hugging Face layout,"
            f" which knows {_SHARING!r} alone"
        )
    temperature = None
    if isinstance(model, Med) and kind == "retrieval" and not model.temperature.is_meta:
        temperature = model.temperature.item()
    written = write_state(state_to_write(model), NameMap(SECTIONS[kind]))
    return written, config_to_huggingface(model.config, kind, special, temperature)


def _decoder_is_built_for_images(tensors: Mapping[str, Tensor], config: VqaConfig) -> bool:
    """Whether the answer decoder's cross-attention expects the image encoder's channels.

    `transformers` builds it so where the image encoder is wider than the text; it attends to
    questions all the same, so that such a model cannot be run.
    """
    key = tensors.get("text_decoder.bert.encoder.layer.0.crossattention.self.key.weight")
    return key is not None and config.text.width != key.shape[-1] == config.vision.width


def _with_tied(
    tensors: Mapping[str, Tensor], shapes: Shapes, names: NameMap
) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors with every tied weight under all its names, whichever a file has.

    Returns:
        the tensors, and the keys that stand in for one that comes before them.
    """
    complete, stands_in = dict(tensors), set()
    for name in shapes:
        # Weights that are fused from several have no copies.
        first, *copies = [place[0] for place in names.places(name)] or [""]
        stored = next((key for key in (first, *copies) if key in tensors), None)
        if not copies or stored is None:
            continue
        if stored != first:
            stands_in.add(stored)
        for key in (first, *copies):
            complete.setdefault(key, tensors[stored])
    return complete, stands_in


def _check_floating(tensors: Mapping[str, Tensor], dropped: set[str], source: str) -> None:
    for key, tensor in tensors.items():
        if key not in dropped and not tensor.is_floating_point():
            raise CheckpointError(
                f"{source}: {key} holds {tensor.dtype}, expected floating-point numbers; quantised "
                "weights cannot be read, load the checkpoint that they were made from"
            )


def _kind_of(model: Med | Vqa | DualEncoder, kind: HuggingFaceKind | None) -> HuggingFaceKind:
    if isinstance(model, Med):
        fitting = [k for k, heads in MED_HEADS.items() if set(heads) <= set(model.config.heads)]
        return _kind_of_med(model, kind, fitting)
    only: HuggingFaceKind = "vqa" if isinstance(model, Vqa) else "dual"
    if kind not in (None, only):
        raise CheckpointError(f"a {type(model).__name__} cannot be written as a {kind} checkpoint")
    return only


def _kind_of_med(
    med: Med, kind: HuggingFaceKind | None, fitting: list[HuggingFaceKind]
) -> HuggingFaceKind:
    if kind is None:
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise CheckpointError(
                f"this model can be written as {' and as '.join(fitting)}, which transformers has "
                "as separate classes; give one of them as kind"
            )
        raise CheckpointError(
            f"transformers has no class for a model with the heads {', '.join(med.config.heads)} "
            "alone; it needs lm, or itc and itm"
        )
    if kind not in MED_HEADS:
        raise CheckpointError(f"a Med cannot be written as a {kind} checkpoint")
    for head in MED_HEADS[kind]:
        med.require(head)
    return kind
