"""Find and load a model: a model folder, a training run, or an original checkpoint."""

from pathlib import Path

import torch

from openblip.data.tokenizer import TOKENIZER_FILE, VOCABULARY_FILE, TextTokenizer
from openblip.errors import CheckpointError, DataError, RecipeError
from openblip.inference.blip import Blip
from openblip.interop.folder import CONFIG_FILE, WEIGHTS_FILE, read_folder

# Of a training run, the first that is there.
_CHECKPOINTS = ("best", "last")
_EXPECTED = (
    "give a model folder (config.json, model.safetensors, tokenizer.json), a training run's "
    "folder, or an original .pth file with its vocab.txt beside it"
)
# What the original's models serve as, and how many tokens their texts have at most in its code.
_ORIGINAL_KINDS = {
    "pretrain": ("pretrain", 30),
    "caption": ("captioner", 40),
    "retrieval": ("filter", 35),
    "itm": ("filter", 35),
}


def load(
    source: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Blip:
    """The model of a folder, a training run or an original checkpoint.

    Args:
        source: a model folder; a training run, of which the best checkpoint is taken, or the last
            where none was evaluated; or a `.pth` or `.safetensors` file of the original BLIP, with
            the `vocab.txt` or `tokenizer.json` of its vocabulary beside it.
        device: by default the first of cuda, mps and cpu that there is.
        dtype: of the weights; float32 by default.

    Raises:
        CheckpointError: if there is no such model, or it is damaged or incomplete.
        RecipeError: if this machine has no such device.
    """
    place = default_device() if device is None else _usable(device)
    path = find_model(source)
    blip = _read_original(path) if path.is_file() else _read_folder(path)
    blip.med.to(device=place, dtype=dtype or torch.float32)
    return blip


def default_device() -> torch.device:
    """The first of cuda, mps and cpu that this machine has."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    # Torch asserts where it was built without a kind of device.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise RecipeError(
            f"device {str(device)!r} cannot be used ({reason}); this machine has {default_device()}"
        ) from error


def find_model(source: str | Path) -> Path:
    """The model folder or the original file that `load` reads for a source.

    Raises:
        CheckpointError: if there is none.
    """
    path = Path(source)
    if path.is_file():
        is_ours = path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file()
        return path.parent if is_ours else path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder; {_EXPECTED}")
    candidates = [path, *(path / "checkpoints" / name for name in _CHECKPOINTS)]
    for folder in candidates:
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise CheckpointError(f"{path}: holds no model; {_EXPECTED}")


def find_model_files(source: str | Path) -> list[Path]:
    """The files that decide what a model computes, for example to fingerprint it.

    Raises:
        CheckpointError: if there is no model, or a file of it is missing.
    """
    path = find_model(source)
    if path.is_file():
        return [path, _tokenizer_beside(path)]
    files = [path / name for name in (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; {_EXPECTED}")
    return files


def _read_folder(folder: Path) -> Blip:
    model = read_folder(folder)
    return Blip(model.model, model.tokenizer, model.kind, model.image_size, model.max_tokens)


def _read_original(path: Path) -> Blip:
    from openblip.interop.original import from_original
    from openblip.interop.original_files import read_original

    checkpoint = from_original(read_original(path), str(path))
    if checkpoint.kind not in _ORIGINAL_KINDS:
        raise CheckpointError(
            f"{path}: an original {checkpoint.kind} checkpoint; only those of the kinds "
            f"{', '.join(_ORIGINAL_KINDS)} can be loaded"
        )
    kind, max_tokens = _ORIGINAL_KINDS[checkpoint.kind]
    med = checkpoint.med()
    file = _tokenizer_beside(path)
    try:
        tokenizer = TextTokenizer.from_file(file)
    except DataError as error:
        raise CheckpointError(f"{path}: its tokenizer cannot be read ({error})") from error
    if tokenizer.vocab_size != med.config.text.vocab_size:
        raise CheckpointError(
            f"{file} has {tokenizer.vocab_size} tokens, but {path.name} has "
            f"{med.config.text.vocab_size}; put the vocabulary that it was trained with there"
        )
    return Blip(med, tokenizer, kind, med.config.vision.image_size, max_tokens)


def _tokenizer_beside(path: Path) -> Path:
    for name in (TOKENIZER_FILE, VOCABULARY_FILE):
        if (path.parent / name).is_file():
            return path.parent / name
    raise CheckpointError(
        f"{path}: an original checkpoint has no vocabulary in it; put its {VOCABULARY_FILE} "
        "(that of bert-base-uncased for the released ones) into the same folder"
    )
