"""Reading and writing files in the original's layout: `.pth`, or `.safetensors`."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.errors import CheckpointError
from openblip.interop.assembly import read_safetensors, write_safetensors
from openblip.interop.atomic import replace_file

_REMEDY = "fetch the file again, or give a .pth or .safetensors file of the original BLIP"


def read_original(path: Path) -> dict[str, Tensor]:
    """The state dict of an original checkpoint, memory-mapped; see `original.from_original`.

    No code of the file is run: a pickle of anything but tensors and plain values is refused.

    Args:
        path: a `.safetensors` file, or one by `torch.save` that holds the state dict, or holds it
            under "model" as the original's training scripts do.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors; {_REMEDY}"
        )
    state = content.get("model", content)
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: 'model' holds no dictionary of tensors; {_REMEDY}")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            place = "'model'" if "model" in content else "the file, which has no 'model',"
            raise CheckpointError(
                f"{path}: {key} in {place} is a {type(value).__name__}, expected a tensor; "
                f"{_REMEDY}"
            )
    return dict(state)


def write_original(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a state dict, whole or not at all: `.safetensors` by its ending, else for `torch.load`.

    A `.pth` has the state dict under "model", and stores tied weights once.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    detached = {key: tensor.detach() for key, tensor in tensors.items()}
    try:
        with replace_file(path) as temporary:
            if path.suffix == ".safetensors":
                # The format stores no tensor twice, so that each key needs bytes of its own.
                write_safetensors(temporary, {k: v.clone() for k, v in detached.items()})
            else:
                torch.save({"model": detached}, temporary)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error


def _load(path: Path) -> Any:
    # Files older than torch 1.6 are no zip archives and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if mapped:
            raise CheckpointError(
                f"{path}: holds more than tensors and plain values, and is not run for safety "
                f"({_first_line(error)}); save its state dict alone"
            ) from error
        raise CheckpointError(
            f"{path}: truncated, or no checkpoint of tensors ({_first_line(error)}); {_REMEDY}"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({_first_line(error)}); {_REMEDY}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
