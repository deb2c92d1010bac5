"""A model to use, whatever it comes from and in whichever layout; compiled or in 8-bit integers.

The only file that imports `torchao`.
"""

import logging
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.families import AnyModel
from openblip.checkpoints.reading import find_model, read_model
from openblip.inference.blip import Blip
from openblip.inference.encoding import all_finite
from openblip.model.text import FeedForward
from openblip.model.vision import VisionBlock
from openblip.runtime.errors import CheckpointError, RecipeError, install_extra, one_line

PUBLISHED = {
    "caption": "Salesforce/blip-image-captioning-base",
    "match": "Salesforce/blip-itm-base-coco",
    "ask": "Salesforce/blip-vqa-base",
}
"""Repositories of the Hugging Face hub with the base-size models of the paper's authors."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
_COMPILED = (VisionBlock, FeedForward)

Model = TypeVar("Model", bound=nn.Module)


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
    blip = Blip(read.model, read.tokenizer, read.kind, *sizes, read.trained, read.given_tokens)
    check_weights(blip.model, str(source))
    if image_size is not None:
        blip.model.resize_images(image_size)
        blip.image_size = image_size
    if weights == torch.int8:
        quantise(blip.model.to(device=place, dtype=torch.float32))
    else:
        blip.model.to(device=place, dtype=weights)
    if compile:
        compile_parts(blip.model)
    return blip


def load_tokenizer(source: str | Path) -> TextTokenizer:
    """The tokenizer of what `load` takes.

    Raises:
        CheckpointError: if there is no such model, or it has no tokenizer that can be read.
    """
    from openblip.checkpoints.reading import read_outline

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


def check_weights(model: nn.Module, source: str) -> None:
    """Nothing, if all weights of a model are numbers.

    Raises:
        CheckpointError: some are NaN or infinite; names the first tensor that has such.
    """
    for name, weights in model.state_dict().items():
        if weights.is_floating_point() and not all_finite(weights):
            bad = int((~torch.isfinite(weights)).sum())
            raise CheckpointError(
                f"{source}: {bad:,} of {weights.numel():,} weights of {name} are NaN or infinite; "
                "the checkpoint is damaged, or its training has diverged: load another one"
            )


def compile_parts(model: AnyModel) -> AnyModel:
    """The same model, its blocks compiled where they are; gives back its argument.

    Compiled are the image encoder's blocks and the text layers' feed-forward networks: what all
    layers do alike, so that one graph serves them all, and where most of the time goes. Sizes are
    symbols in it: another batch or text length compiles nothing. PyTorch keeps a graph of its own
    for a single row and for a single token, so that a handful are made, when first needed.

    The state dict is unchanged. On an x86 processor in float32 the model is faster as it is:
    compiled products go to MKL, not to oneDNN (`docs/log.md`).
    """
    for module in model.modules():
        if isinstance(module, _COMPILED):
            module.compile(dynamic=True)
    return model


def quantise(model: Model) -> Model:
    """The same model, its linear layers changed in place to multiply 8-bit integers.

    Weights are rounded per output channel when this is called, activations per token as they come
    (dynamic quantisation): nothing has to be calibrated, and a text does not depend on its batch.
    Everything else, the embeddings and with them the vocabulary's logits too, stays float32.
    Linear weights take a quarter of the memory. Many rows at once, as in the image encoder, are a
    little faster; a token at a time is slower (`benchmarks/results/int8.md`). Keep the float32
    model to train or to save: this one cannot.

    Args:
        model: a `Med` or any other, float32, on the CPU.

    Raises:
        RecipeError: if torchao is not installed or does not go with this torch, or the model is
            elsewhere or of another type.
    """
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype.itemsize != 4:
            raise RecipeError(
                f"{name} is {parameter.dtype} on {parameter.device}; int8 takes a float32 model "
                "on the CPU; elsewhere use bfloat16 or float16"
            )
    disabled = logging.root.manager.disable
    try:
        # Its import warns of kernels for GPUs, which a CPU does not need.
        logging.disable(logging.WARNING)
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ModuleNotFoundError as error:
        raise RecipeError(f"int8 needs torchao: {install_extra('int8')}") from error
    except ImportError as error:
        # Each release is for some of torch, which its requirements do not say.
        raise RecipeError(
            f"int8: the installed torchao does not go with torch {torch.__version__} "
            f"({one_line(error)}): install another (with torch 2.8 goes torchao 0.13)"
        ) from error
    finally:
        logging.disable(disabled)
    quantize_(model.eval(), Int8DynamicActivationInt8WeightConfig())
    return model
