"""A model from any layout, with its tokenizer."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from openblip.data.tokenizer import BLIP_TOKENS, TextTokenizer
from openblip.errors import CheckpointError, DataError, OpenBlipWarning
from openblip.interop.folder import FolderKind, LoadedModel, read_config, read_folder
from openblip.interop.huggingface_folder import is_huggingface, read_huggingface
from openblip.interop.kinds import FROM_HUGGINGFACE, FROM_ORIGINAL
from openblip.interop.models import AnyConfig, fit_vocabulary
from openblip.interop.original import from_original
from openblip.interop.original_files import read_note, read_original
from openblip.interop.original_note import OriginalNote
from openblip.interop.sources import tokenizer_beside
from openblip.model.albef import Albef

_RELEASED_WIDTHS = (768, 1024)


@dataclass(frozen=True)
class ModelOutline:
    """What a model is, but for its weights."""

    config: AnyConfig
    tokenizer: TextTokenizer
    image_size: int
    """Side of the square that images are resized to, in pixels."""


def read_model(path: Path) -> LoadedModel:
    """The model of what `find_model` found, on the CPU, its weights mapped from their file.

    Raises:
        CheckpointError: if it is damaged, incomplete or of a kind that OpenBLIP does not use.
    """
    if path.is_file():
        return _read_original(path)
    return _read_huggingface(path) if is_huggingface(path) else read_folder(path)


def read_outline(path: Path) -> ModelOutline:
    """What the model is that `find_model` found; of our own folders no weights are looked at.

    Raises:
        CheckpointError: as for `read_model`.
    """
    if path.is_file() or is_huggingface(path):
        loaded = read_model(path)
        return ModelOutline(loaded.model.config, loaded.tokenizer, loaded.image_size)
    config = read_config(path)
    try:
        return ModelOutline(config.model, TextTokenizer.from_file(path), config.image_size)
    except DataError as error:
        raise CheckpointError(f"{path}: its tokenizer cannot be read ({error})") from error


def _read_huggingface(folder: Path) -> LoadedModel:
    theirs = read_huggingface(folder)
    model = theirs.model
    if theirs.image_size != model.config.vision.image_size:
        model.resize_images(theirs.image_size)
    return LoadedModel(
        model=model,
        tokenizer=theirs.tokenizer,
        kind=cast("FolderKind", FROM_HUGGINGFACE[theirs.kind]),
        image_size=theirs.image_size,
        max_tokens=theirs.max_tokens,
        source=str(folder),
    )


def _read_original(path: Path) -> LoadedModel:
    note = read_note(path)
    checkpoint = from_original(read_original(path), str(path), note=note)
    if checkpoint.kind not in FROM_ORIGINAL:
        raise CheckpointError(
            f"{path}: an original {checkpoint.kind} checkpoint; only those of the kinds "
            f"{', '.join(FROM_ORIGINAL)} can be loaded"
        )
    kind, max_tokens = FROM_ORIGINAL[checkpoint.kind]
    model = checkpoint.model()
    sizes = model.config
    if note is None:
        _warn_of_guessed_heads(path, sizes)
    tokenizer, place = _tokenizer(path, sizes.text.vocab_size, note)
    lacking = tokenizer.vocab_size - sizes.text.vocab_size
    if isinstance(model, Albef) and 0 <= lacking <= len(BLIP_TOKENS):
        # Ours has `[DEC]` and `[ENC]` behind every vocabulary; ALBEF never reads them.
        model.add_words(lacking)
    elif not fit_vocabulary(model, tokenizer, str(path)):
        raise CheckpointError(
            f"{place} has {tokenizer.vocab_size} tokens, but {path.name} has "
            f"{sizes.text.vocab_size}; put the vocabulary that it was trained with there"
        )
    if note is not None and note.max_tokens is not None:
        max_tokens = note.max_tokens
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        kind=cast("FolderKind", kind),
        image_size=sizes.vision.image_size,
        max_tokens=min(max_tokens or sizes.text.max_positions, sizes.text.max_positions),
        source=str(path),
    )


def _warn_of_guessed_heads(path: Path, sizes: AnyConfig) -> None:
    """No shape shows the number of heads: it is known for the released widths alone."""
    vision, text = sizes.vision, sizes.text
    if vision.width not in _RELEASED_WIDTHS or text.width not in _RELEASED_WIDTHS:
        warnings.warn(
            f"{path}: does not say how many attention heads it has; taken as {vision.heads} for "
            f"images and {text.heads} for texts, one per 64 channels. If it was trained with "
            "others, its outputs are wrong: convert it from the layout that it was trained in",
            OpenBlipWarning,
            stacklevel=4,
        )


def _tokenizer(
    path: Path, vocab_size: int, note: OriginalNote | None
) -> tuple[TextTokenizer, Path]:
    """The tokenizer of an original file, and where it was found."""
    try:
        if note is not None and note.tokenizer is not None:
            return TextTokenizer.from_json(note.tokenizer, str(path)), path
        file = tokenizer_beside(path, vocab_size)
        return TextTokenizer.from_file(file), file
    except DataError as error:
        raise CheckpointError(f"{path}: its tokenizer cannot be read ({error})") from error
