"""A model to use, whatever it comes from and in whichever layout."""

from pathlib import Path

import torch

from openblip.data.tokenizer import TextTokenizer
from openblip.errors import RecipeError
from openblip.inference.blip import Blip
from openblip.inference.finite import check_weights
from openblip.interop.reading import read_model
from openblip.interop.sources import find_model

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


def load(
    source: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    image_size: int | None = None,
    compile: bool = False,
) -> Blip:
    """The model of a folder, a training run, a file, an address or a hub repository.

    Args:
        source: a model folder, ours or one that `transformers` reads; a training run, of which
            the best checkpoint is taken, or the last where none was evaluated; a `.pth` or
            `.safetensors` file of the original BLIP, with the `vocab.txt` or `tokenizer.json` of
            its vocabulary beside it (that of bert-base-uncased is fetched if there is none), or
            the https address of one; or the hub's `organisation/name`, with `@revision` if not
            the main branch.
        device: by default the first of cuda, mps and cpu that there is.
        dtype: of the weights, or its name: float32 by default, bfloat16, float16, or, on the CPU,
            int8: float32 with linear layers that multiply 8-bit integers (extra `int8`).
        image_size: side of the square that images are resized to, in pixels; positions are
            interpolated. By default the checkpoint's own.
        compile: whether to compile the blocks with torch.compile, once for all shapes: the first
            uses take minutes. Not for float32 on an x86 processor, where it is slower.

    Raises:
        CheckpointError: if there is no such model, or it is damaged, incomplete, has weights that
            are NaN or infinite, or is of a kind that OpenBLIP does not use.
        RecipeError: if this machine has no such device, the model no such image size, or int8
            cannot be used.
    """
    weights = _dtype_named(dtype)
    if device is None:
        place = torch.device("cpu") if weights == torch.int8 else default_device()
    else:
        place = _usable(device)
    read = read_model(find_model(source))
    sizes = read.image_size, read.max_tokens
    blip = Blip(read.model, read.tokenizer, read.kind, *sizes, read.trained)
    check_weights(blip.model, str(source))
    if image_size is not None:
        blip.model.resize_images(image_size)
        blip.image_size = image_size
    if weights == torch.int8:
        from openblip.inference.quantise import quantise

        quantise(blip.model.to(device=place, dtype=torch.float32))
    else:
        blip.model.to(device=place, dtype=weights)
    if compile:
        from openblip.inference.compiled import compile_parts

        compile_parts(blip.model)
    return blip


def load_tokenizer(source: str | Path) -> TextTokenizer:
    """The tokenizer of what `load` takes.

    Raises:
        CheckpointError: if there is no such model, or it has no tokenizer that can be read.
    """
    from openblip.interop.reading import read_outline

    return read_outline(find_model(source)).tokenizer


def default_device() -> torch.device:
    """The first of cuda, mps and cpu that this machine has."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype_named(dtype: torch.dtype | str | None) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype or torch.float32
    if found not in _DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in _DTYPES)
        raise RecipeError(f"dtype {dtype!r} cannot be used; give one of {names}")
    return found


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    # Torch asserts where it was built without a kind of device.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise RecipeError(
            f"device {str(device)!r} cannot be used ({reason}); this machine has {default_device()}"
        ) from error
