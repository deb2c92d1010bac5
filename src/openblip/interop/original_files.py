"""Reading and writing files in the original's layout: `.pth`, or `.safetensors`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from openblip.atomic import replace_file
from openblip.errors import CheckpointError
from openblip.interop.assembly import read_safetensors, write_safetensors
from openblip.interop.pickled import check_tensors, read_pickle

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
    content = read_pickle(path, _REMEDY)
    if "model" in content:
        return check_tensors(content["model"], path, "'model'", _REMEDY)
    return check_tensors(content, path, "the file, which has no 'model',", _REMEDY)


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
                _save(detached, temporary)
    except OSError as error:
        raise CheckpointError(str(error)) from error


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        torch.save({"model": tensors}, path)
    except RuntimeError as error:
        # Its own kind of error, for a full disk too; it does not say which.
        raise OSError("the disk is full, or fails") from error
