"""Files written by `torch.save`: tensors and plain values alone, without what is put around them.

No code of a file is run. Training programs put weights into dictionaries and give their names
prefixes, which are taken off.
"""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openblip.checkpoints.assembly import check_content, listed, reason_of
from openblip.runtime.errors import CheckpointError, OpenBlipWarning

# Names that torch's message has of what it does not run.
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)|class '([\w.]+)'")


def read_pickle(path: Path, remedy: str) -> Mapping[str, Any]:
    """The dictionary that a file holds, its tensors memory-mapped; no code of the file is run.

    Args:
        path: a file by `torch.save`.
        remedy: what errors advise.

    Raises:
        CheckpointError: if the file is damaged, or holds more than tensors and plain values.
    """
    check_content(path)
    content = _load(path, remedy)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors; {remedy}"
        )
    return content


def read_state(path: Path, remedy: str, whole: str = "the file") -> dict[str, Tensor]:
    """The weights that a file holds, without the dictionaries that training programs put around.

    Args:
        path: a file by `torch.save`.
        remedy: what errors advise.
        whole: what errors call a file without such dictionaries.

    Raises:
        CheckpointError: as `read_pickle`; or if it holds no dictionary of tensors.
    """
    state, place = _innermost(read_pickle(path, remedy))
    return _check_tensors(state, path, place or whole, remedy)


def _check_tensors(state: object, path: Path, place: str, remedy: str) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: {place} holds no dictionary of tensors; {remedy}")
    for key, value in state.items():
        if not isinstance(key, str):
            raise CheckpointError(
                f"{path}: {key!r:.40} in {place} is no name of a weight, but a "
                f"{type(key).__name__}; {remedy}"
            )
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {key:.80} in {place} is a {type(value).__name__}, expected a tensor; "
                f"{remedy}"
            )
    return dict(state)


def _load(path: Path, remedy: str) -> Any:
    # Files older than torch 1.6 are no zip archives and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_values()):
            # It warns of programs (TorchScript), which are refused.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    # A damaged pickle makes its reader raise whatever comes.
    except Exception as error:
        text = str(error)
        if "TorchScript" in text:
            raise CheckpointError(
                f"{path}: is a program (TorchScript), which is not run; save the state dict of "
                "the model that it was made from"
            ) from error
        if named := _GLOBAL.search(text):
            raise CheckpointError(
                f"{path}: holds more than tensors and plain values, {named[1] or named[2]}, and "
                "code is not run for safety; where it was trained, save model.state_dict() alone"
            ) from error
        if mapped and "weights_only" in text:
            raise CheckpointError(
                f"{path}: holds more than tensors and plain values, and code is not run for "
                "safety; where it was trained, save model.state_dict() alone"
            ) from error
        # A text stumbles over its first letters, of which the reader knows no such instruction.
        is_foreign = "weights_only" in text or isinstance(error, LookupError)
        reason = "not by torch.save" if is_foreign else reason_of(error)
        raise CheckpointError(
            f"{path}: truncated, or no checkpoint of tensors ({reason}); {remedy}"
        ) from error


def _plain_values() -> list[Any]:
    """What training programs store beside weights, and what is no more than numbers and names."""
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    scalar = np.float64(0).__reduce__()[0]
    # Under the name that it has in numpy 1 too.
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *kinds, argparse.Namespace]


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


def _innermost(content: Mapping[str, Any]) -> tuple[Any, str]:
    """What a file's outer dictionaries have as weights, and their names, the _innermost first."""
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
