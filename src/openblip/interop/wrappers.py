"""What training programs put around a model's weights, taken off: dictionaries and prefixes."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from openblip.errors import CheckpointError, OpenBlipWarning
from openblip.interop.assembly import listed

# The first that is there is taken: the trained weights go before their running means.
_CONTAINERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "ema_state_dict",
    "model_ema",
    "ema",
)
# Parts of names by DistributedDataParallel, torch.compile, FullyShardedDataParallel and
# activation checkpointing. No layout has weights of such a name.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Every layout has one of these, once for each whole model.
_ANCHORS = ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding")
_LOW_RANK = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_magnitude_vector")


def innermost(content: Mapping[str, Any]) -> tuple[Any, str]:
    """What a file's outer dictionaries have as weights, and their names, the innermost first."""
    state: Any = content
    places: list[str] = []
    while isinstance(state, Mapping):
        name = next((name for name in _CONTAINERS if name in state), None)
        if name is None:
            break
        state = state[name]
        places.append(f"'{name}'")
    return state, " in ".join(reversed(places))


def plain_names(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights by the names that their model gives them.

    Raises:
        CheckpointError: if two become one, the file holds several models, or changes of low rank.

    Warns:
        OpenBlipWarning: what else the file holds, where the model is a part of something.
    """
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        plain = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if plain in named:
            raise CheckpointError(
                f"{source}: holds {plain:.80} twice, once as {key:.80}; save the state dict of one "
                "model"
            )
        named[plain] = tensor
    if any(mark in key for key in named for mark in _LOW_RANK):
        raise CheckpointError(
            f"{source}: holds changes of low rank (LoRA) beside the weights; merge them first, "
            "with `merge_and_unload()` of peft, and save the state dict of that"
        )
    prefix = _prefix(named, source)
    if not prefix:
        return named
    if others := [key for key in named if not key.startswith(prefix)]:
        warnings.warn(
            f"{source}: the weights of the model are those in {prefix}*; left out: "
            f"{listed(others)}",
            OpenBlipWarning,
            stacklevel=2,
        )
    return {k.removeprefix(prefix): t for k, t in named.items() if k.startswith(prefix)}


def _prefix(named: Mapping[str, Tensor], source: str) -> str:
    """What stands before all names of the model, such as the attribute of a Lightning module."""
    found = {
        key.removesuffix(anchor)
        for key in named
        for anchor in _ANCHORS
        if key == anchor or key.endswith(f".{anchor}")
    }
    # Its running mean is not the model that was trained.
    trained = {prefix for prefix in found if "ema" not in prefix} or found
    if "" in trained or not trained:
        return ""
    if len(trained) > 1:
        raise CheckpointError(
            f"{source}: holds several models, {listed(trained)}; save the state dict of one"
        )
    return trained.pop()
