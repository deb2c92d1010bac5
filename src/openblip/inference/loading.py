"""Find and load a model, whatever it comes from and in whichever layout."""

from pathlib import Path

import torch

from openblip.data.tokenizer import (
    BLIP_TOKENS,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    TextTokenizer,
)
from openblip.errors import CheckpointError, DataError, RecipeError
from openblip.inference.blip import Blip
from openblip.inference.finite import check_weights
from openblip.inference.kinds import FROM_HUGGINGFACE, FROM_ORIGINAL
from openblip.interop.folder import CONFIG_FILE, WEIGHTS_FILE, read_folder
from openblip.model.albef import Albef

# Of a training run, the first that is there.
_CHECKPOINTS = ("best", "last")
_EXPECTED = (
    "give a model folder (ours or of transformers), a training run's folder, an original .pth "
    "file, its https address, or organisation/name of the Hugging Face hub"
)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
# Suffixes of what a folder of `transformers` holds of a model.
_HUGGINGFACE_SUFFIXES = (".json", ".txt", ".safetensors", ".bin")
# Rows of the word embedding of every released BLIP; ALBEF has no `[DEC]` and `[ENC]`.
_BERT_VOCABULARY = 30524


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
    path = find_model(source)
    blip = _read_original(path) if path.is_file() else _read_folder(path)
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
    """The tokenizer of what `load` takes, without the weights.

    Raises:
        CheckpointError: if there is no such model.
        DataError: if it has no tokenizer that can be read.
    """
    from openblip.interop.huggingface_folder import is_huggingface
    from openblip.interop.huggingface_processor import read_tokenizer

    path = find_model(source)
    if path.is_file():
        return TextTokenizer.from_file(_tokenizer_beside(path))
    return read_tokenizer(path) if is_huggingface(path) else TextTokenizer.from_file(path)


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


def find_model(source: str | Path) -> Path:
    """The local model folder or original file of a source; what is elsewhere is fetched first.

    Raises:
        CheckpointError: if there is none.
    """
    from openblip.interop.download import fetch_url, is_url

    text = str(source)
    if is_url(text):
        return fetch_url(text)
    path = Path(source)
    if path.is_file():
        has_config = path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file()
        return path.parent if has_config else path
    if path.is_dir():
        for folder in (path, *(path / "checkpoints" / name for name in _CHECKPOINTS)):
            if (folder / CONFIG_FILE).is_file():
                return folder
        raise CheckpointError(f"{path}: holds no model; {_EXPECTED}")
    return _fetch(text)


def _fetch(name: str) -> Path:
    from openblip.interop.hub import fetch_repository, is_repo_id, split_revision

    repo_id, revision = split_revision(name)
    if not is_repo_id(repo_id):
        raise CheckpointError(f"{name}: no such file or folder; {_EXPECTED}")
    try:
        return fetch_repository(repo_id, revision)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (and no such file or folder is here)") from error


def find_model_files(source: str | Path) -> list[Path]:
    """The files that decide what a model computes, for example to fingerprint it.

    Raises:
        CheckpointError: if there is no model, or a file of it is missing.
    """
    from openblip.interop.huggingface_folder import is_huggingface

    path = find_model(source)
    if path.is_file():
        return [path, _tokenizer_beside(path)]
    if is_huggingface(path):
        return sorted(file for file in path.iterdir() if file.suffix in _HUGGINGFACE_SUFFIXES)
    files = [path / name for name in (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; {_EXPECTED}")
    return files


def _read_folder(folder: Path) -> Blip:
    from openblip.interop.huggingface_folder import is_huggingface, read_huggingface

    if is_huggingface(folder):
        theirs = read_huggingface(folder)
        kind = FROM_HUGGINGFACE[theirs.kind]
        model, tokenizer = theirs.model, theirs.tokenizer
        if theirs.image_size != model.config.vision.image_size:
            model.resize_images(theirs.image_size)
        return Blip(model, tokenizer, kind, theirs.image_size, theirs.max_tokens)
    ours = read_folder(folder)
    sizes = ours.image_size, ours.max_tokens
    return Blip(ours.model, ours.tokenizer, ours.kind, *sizes, ours.trained)


def _read_original(path: Path) -> Blip:
    from openblip.interop.original import from_original
    from openblip.interop.original_files import read_original

    checkpoint = from_original(read_original(path), str(path))
    if checkpoint.kind not in FROM_ORIGINAL:
        raise CheckpointError(
            f"{path}: an original {checkpoint.kind} checkpoint; only those of the kinds "
            f"{', '.join(FROM_ORIGINAL)} can be loaded"
        )
    kind, max_tokens = FROM_ORIGINAL[checkpoint.kind]
    model = checkpoint.model()
    sizes = model.config
    file = _tokenizer_beside(path, sizes.text.vocab_size)
    try:
        tokenizer = TextTokenizer.from_file(file)
    except DataError as error:
        raise CheckpointError(f"{path}: its tokenizer cannot be read ({error})") from error
    if isinstance(model, Albef):
        # Ours has `[DEC]` and `[ENC]` behind every vocabulary; ALBEF never reads them.
        model.add_words(tokenizer.vocab_size - sizes.text.vocab_size)
    elif tokenizer.vocab_size != sizes.text.vocab_size:
        raise CheckpointError(
            f"{file} has {tokenizer.vocab_size} tokens, but {path.name} has "
            f"{sizes.text.vocab_size}; put the vocabulary that it was trained with there"
        )
    longest = min(max_tokens or sizes.text.max_positions, sizes.text.max_positions)
    return Blip(model, tokenizer, kind, sizes.vision.image_size, longest)


def _tokenizer_beside(path: Path, vocab_size: int = _BERT_VOCABULARY) -> Path:
    """The tokenizer in a file's folder, or else that of BERT if the vocabulary is as large."""
    for name in (TOKENIZER_FILE, VOCABULARY_FILE):
        if (path.parent / name).is_file():
            return path.parent / name
    if vocab_size in (_BERT_VOCABULARY, _BERT_VOCABULARY - len(BLIP_TOKENS)):
        from openblip.interop.hub import fetch_bert_vocabulary

        return fetch_bert_vocabulary()
    raise CheckpointError(
        f"{path}: an original checkpoint has no vocabulary in it, and its {vocab_size} tokens are "
        f"not those of bert-base-uncased; put its {VOCABULARY_FILE} into the same folder"
    )
