"""A model to use, whatever it comes from and in whichever layout; compiled, or by a backend."""

import os
from pathlib import Path

import torch
from torch import nn

from openblip.batches.image_states import STATES_FOLDER, ImageStates, encoder_fingerprint
from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.families import AnyModel
from openblip.checkpoints.fingerprints import RememberedHashes, default_hashes
from openblip.checkpoints.folder import read_config
from openblip.checkpoints.reading import (
    BackendName,
    find_model,
    is_exported,
    model_fingerprint,
    read_model,
    read_outline,
    split_backend,
    with_backend,
)
from openblip.deploy.models import VERSION, open_model, read_manifest
from openblip.deploy.runtimes import Format, check_installed
from openblip.inference.blip import Blip
from openblip.inference.encoding import all_finite
from openblip.inference.export import write_graphs
from openblip.model.text import FeedForward
from openblip.model.vision import VisionBlock
from openblip.model.vqa import Nlvr
from openblip.runtime.atomic import cache_folder
from openblip.runtime.errors import CheckpointError, RecipeError
from openblip.runtime.locks import in_turn
from openblip.runtime.progress import Progress

INT8: BackendName = "onnx-int8"
_RUNS: dict[BackendName, tuple[Format, bool]] = {
    "onnx": ("onnx", False),
    INT8: ("onnx", True),
    "openvino": ("openvino", False),
}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
_COMPILED = (VisionBlock, FeedForward)


def load(
    source: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    image_size: int | None = None,
    compile: bool = False,
    backend: str | None = None,
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
            int8, which is the backend "onnx-int8".
        image_size: side of the square that images are resized to, in pixels; positions are
            interpolated. By default the checkpoint's own.
        compile: whether to compile the blocks with torch.compile, once for all shapes: the first
            uses take minutes. Not for float32 on an x86 processor, where it is slower.
        backend: what computes the model on the CPU in the place of PyTorch: "onnx" (ONNX Runtime,
            extra `export`), "onnx-int8" (products of 8-bit integers) or "openvino" (extra
            `openvino`). Its graphs are made at the first use, and kept in
            `$OPENBLIP_CACHE/graphs`. `onnx:NAME` as a source is the same. A folder of `openblip
            export` needs none.

    Raises:
        CheckpointError: if there is no such model, or it is damaged, incomplete, has weights that
            are NaN or infinite, or is of a kind that OpenBLIP does not use.
        RecipeError: if this machine has no such device, the model no such image size, or a backend
            cannot be what is asked for.
    """
    weights = _dtype_named(dtype)
    source = source_of(source, backend, weights)
    path = find_model(source)
    if split_backend(source)[0] is not None or is_exported(path):
        _check_no_backend_is_asked_more(device, weights, compile)
        return _load_graphs(source, path, image_size)
    place = default_device() if device is None else _usable(device)
    blip = _load_weights(source, path, image_size)
    blip.model.to(device=place, dtype=weights)
    if compile:
        compile_blocks(blip.model)
    if weights == torch.float32:
        _look_up_states(blip)
    return blip


def _load_weights(source: str, path: Path, image_size: int | None) -> Blip:
    """The model itself, in float32 on the CPU."""
    read = read_model(path)
    blip = Blip(
        read.model,
        read.tokenizer,
        read.kind,
        read.image_size,
        read.max_tokens,
        read.trained,
        given_tokens=read.given_tokens,
        name_tokens=read.name_tokens,
        source=source,
    )
    # Before anything is made of it: NaN would come out as captions that say nothing.
    check_weights(blip.model, source)
    if image_size is not None:
        blip.model.resize_images(image_size)
        blip.image_size = image_size
    return blip


def source_of(
    source: str | Path, backend: str | None = None, dtype: torch.dtype | str | None = None
) -> str:
    """A source that names what computes the model, as whoever notes it must know; see `load`.

    Raises:
        RecipeError: there is no such backend or type, or they contradict each other.
    """
    if _dtype_named(dtype) != torch.int8:
        return with_backend(source, backend)
    own, place = split_backend(source)
    asked = backend or own
    if asked not in (None, "onnx", INT8):
        raise RecipeError(f"int8 is computed by the backend {INT8}, not by {asked}: leave one out")
    return with_backend(place, INT8)


def _check_no_backend_is_asked_more(
    device: str | torch.device | None, weights: torch.dtype, compile: bool
) -> None:
    """Nothing, if a backend can be what is asked for.

    Raises:
        RecipeError: it cannot.
    """
    if device is not None and torch.device(device).type != "cpu":
        raise RecipeError(
            f"device {str(device)!r}: a backend computes on the CPU; leave the device or the "
            "backend out"
        )
    if weights not in (torch.float32, torch.int8) or compile:
        what = "compile" if compile else str(weights).removeprefix("torch.")
        raise RecipeError(f"{what} is of PyTorch's models: leave it or the backend out")


def _load_graphs(source: str, path: Path, image_size: int | None) -> Blip:
    """A model that a runtime computes, from an exported folder or from the kept graphs of one."""
    backend = split_backend(source)[0]
    folder = path
    if not is_exported(path):
        assert backend is not None
        folder = _kept_graphs(source, path, backend, image_size)
    elif backend is not None and _RUNS[backend] != _runs(folder):
        raise RecipeError(
            f"{path}: is exported for another runtime than {backend}; leave the backend out"
        )
    outline, config = read_outline(folder), read_config(folder)
    if image_size not in (None, config.image_size):
        raise RecipeError(
            f"{path}: its graphs take images of {config.image_size} pixels; export the model again "
            f"with --image-size {image_size}"
        )
    return Blip(
        open_model(folder),
        outline.tokenizer,
        config.kind,
        config.image_size,
        config.max_tokens,
        config.trained,
        given_tokens=config.given_tokens,
        name_tokens=config.name_tokens,
        source=source,
    )


def _runs(folder: Path) -> tuple[str, bool]:
    """For which runtime a folder is exported, and whether in 8-bit integers."""
    manifest = read_manifest(folder)
    return manifest["runtime"], manifest["weights"] == "int8"


def _kept_graphs(source: str, path: Path, backend: BackendName, image_size: int | None) -> Path:
    """The folder of a model's graphs in the cache; they are made where it has none.

    Raises:
        RecipeError: the model has no graphs, or packages are missing.
        CheckpointError: a graph cannot be made, or does not give what the model gives.
    """
    hashes = RememberedHashes(default_hashes())
    name = model_fingerprint(source, hashes.hash_file)
    size = "" if image_size is None else f"-{image_size}"
    # With the version: graphs that another release has made may have other inputs.
    folder = cache_folder() / "graphs" / f"{name}{size}-{VERSION}"
    if is_exported(folder):
        return folder
    to, int8 = _RUNS[backend]
    # Before a model is read whose graphs then cannot be written.
    check_installed(to, int8)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Several workers that load the same model at once: one makes the graphs, the others wait.
    with in_turn(folder.with_suffix(".lock")):
        if not is_exported(folder):
            # Asked again: whoever held the lock before may have made them.
            blip = _load_weights(split_backend(source)[1], path, image_size)
            if isinstance(blip.model, Nlvr):
                raise RecipeError(
                    f"{path}: no backend computes a two-image (nlvr) model; leave {backend} out"
                )
            with Progress(f"making graphs for {backend}", unit="graphs") as progress:
                write_graphs(blip, folder, to, int8=int8, made=progress.update)
    return folder


def _look_up_states(blip: Blip) -> None:
    """Let images be looked up that a training with this image encoder has encoded before."""
    folder = os.environ.get(STATES_FOLDER)
    if folder is None:
        return
    encoder, vision = blip.model.image_encoder, blip.model.config.vision
    place = Path(folder) / encoder_fingerprint(encoder, blip.image_size)
    # Of other encoders nothing is kept: they may be as many as there are models.
    if place.is_dir():
        states = ImageStates(place, (vision.num_patches, vision.width))
        blip.model.known_states = states.looked_up(encoder)


def load_tokenizer(source: str | Path) -> TextTokenizer:
    """The tokenizer of what `load` takes.

    Raises:
        CheckpointError: if there is no such model, or it has no tokenizer that can be read.
    """
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
        # Tried out: `torch.device` takes the name of a device that is not there.
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


def compile_blocks(model: AnyModel) -> AnyModel:
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
