"""Files written by `torch.save`, of which nothing but tensors and plain values is taken."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.errors import CheckpointError


def read_pickle(path: Path, remedy: str) -> Mapping[str, Any]:
    """The dictionary that a file holds, its tensors memory-mapped; no code of the file is run.

    Args:
        path: a file by `torch.save`.
        remedy: what errors advise.

    Raises:
        CheckpointError: if the file is damaged, or holds more than tensors and plain values.
    """
    content = _load(path, remedy)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors; {remedy}"
        )
    return content


def check_tensors(state: object, path: Path, place: str, remedy: str) -> dict[str, Tensor]:
    """What a file holds, if it is a dictionary of tensors.

    Args:
        state: what `read_pickle` gave, or a part of it.
        path: what errors name.
        place: where in the file it is.
        remedy: what errors advise.

    Raises:
        CheckpointError: if it is not, or empty.
    """
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: {place} holds no dictionary of tensors; {remedy}")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {key} in {place} is a {type(value).__name__}, expected a tensor; {remedy}"
            )
    return dict(state)


def _load(path: Path, remedy: str) -> Any:
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
            f"{path}: truncated, or no checkpoint of tensors ({_first_line(error)}); {remedy}"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read ({_first_line(error)}); {remedy}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
