"""Reading and writing files in the original's layout: `.pth`, or `.safetensors`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from openblip.atomic import replace_file
from openblip.errors import CheckpointError
from openblip.interop.assembly import read_metadata, read_safetensors, write_safetensors
from openblip.interop.original import from_original
from openblip.interop.original_note import NOTE_KEY, OriginalNote
from openblip.interop.pickled import read_pickle, read_state
from openblip.interop.wrappers import plain_names

_REMEDY = "fetch the file again, or give a .pth or .safetensors file of the original BLIP"


def read_original(path: Path) -> dict[str, Tensor]:
    """The state dict of an original checkpoint, memory-mapped; see `original.from_original`.

    No code of the file is run: a pickle of anything but tensors and plain values is refused.

    Args:
        path: a `.safetensors` file, or one by `torch.save` that holds the state dict, or holds it
            under "model" as the original's training scripts do, or wrapped as others do.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return plain_names(read_safetensors(path), str(path))
    return plain_names(read_state(path, _REMEDY, "the file, which has no 'model',"), str(path))


def read_note(path: Path) -> OriginalNote | None:
    """What a file says besides its weights; None of one that OpenBLIP has not written.

    Raises:
        CheckpointError: if the file or its note is damaged.
    """
    if path.suffix == ".safetensors":
        text = read_metadata(path).get(NOTE_KEY)
    else:
        text = read_pickle(path, _REMEDY).get(NOTE_KEY)
    return None if text is None else OriginalNote.from_json(text, str(path))


def write_original(
    path: Path, tensors: Mapping[str, Tensor], note: OriginalNote | None = None
) -> None:
    """Write a state dict, whole or not at all: `.safetensors` by its ending, else for `torch.load`.

    A `.pth` has the state dict under "model", and stores tied weights once.

    Args:
        path: replaced if it exists.
        tensors: see `original.to_original`.
        note: what they do not show; without it, whoever reads the file has to know.

    Raises:
        CheckpointError: if the file cannot be written, or what is read with its note would be
            another model.
    """
    if note is not None:
        from_original({k: t.to("meta") for k, t in tensors.items()}, str(path), note=note)
    metadata = {} if note is None else {NOTE_KEY: note.to_json()}
    detached = {key: tensor.detach() for key, tensor in tensors.items()}
    try:
        with replace_file(path) as temporary:
            if path.suffix == ".safetensors":
                # The format stores no tensor twice, so that each key needs bytes of its own.
                clones = {key: tensor.clone() for key, tensor in detached.items()}
                write_safetensors(temporary, clones, metadata)
            else:
                _save({"model": detached, **metadata}, temporary)
    except OSError as error:
        raise CheckpointError(str(error)) from error


def _save(document: Mapping[str, object], path: Path) -> None:
    try:
        torch.save(document, path)
    except RuntimeError as error:
        # Its own kind of error, for a full disk too; it does not say which.
        raise OSError("the disk is full, or fails") from error
