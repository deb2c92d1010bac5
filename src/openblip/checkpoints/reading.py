"""A model from any layout, with its tokenizer; where it is, and what it is in 16 digits."""

import difflib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from openblip.batches.tokenizer import BLIP_TOKENS, TOKENIZER_FILE, VOCABULARY_FILE, TextTokenizer
from openblip.batches.wordpiece import settings_beside
from openblip.checkpoints.adapters import adapter_files, find_base, is_adapter
from openblip.checkpoints.families import AnyConfig, fit_vocabulary
from openblip.checkpoints.fingerprints import HashFile, digest, sha256_of
from openblip.checkpoints.folder import (
    CONFIG_FILE,
    FROM_ORIGINAL,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    LoadedModel,
    model_below,
    read_config,
    read_folder,
)
from openblip.checkpoints.hub import (
    BERT_ROWS,
    fetch_bert_vocabulary,
    fetch_repository,
    has_bert_vocabulary,
    is_repo_id,
    split_revision,
)
from openblip.checkpoints.huggingface import is_huggingface, read_huggingface
from openblip.checkpoints.huggingface_processor import has_tokenizer
from openblip.checkpoints.original import OriginalNote, from_original, read_note, read_original
from openblip.model.albef import Albef
from openblip.runtime.errors import CheckpointError, DataError, OpenBlipWarning, RecipeError

_RELEASED_WIDTHS = (768, 1024)
_EXPECTED = (
    "give a model folder (ours or of transformers), a training run's folder, an original .pth "
    "file, its https address, or organisation/name of the Hugging Face hub"
)
BackendName = Literal["onnx", "onnx-int8", "openvino"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
"""What computes a model in the place of PyTorch: a runtime of exported graphs."""
# Suffixes of what a folder of `transformers` holds of a model.
_HUGGINGFACE_SUFFIXES = (".json", ".txt", ".safetensors", ".bin")


@dataclass(frozen=True)
class ModelOutline:
    """What a model is, but for its weights."""

    config: AnyConfig
    tokenizer: TextTokenizer
    image_size: int
    """Side of the square that images are resized to, in pixels."""
    given_tokens: int = 0
    """Longest text that a captioner reads before it writes; 0 where it reads none."""


def split_backend(source: str | Path) -> tuple[BackendName | None, str]:
    """What computes the model of a source, and the source itself: `onnx:NAME` is both in one.

    So whoever notes a source, as an index or a job does, notes the backend with it.
    """
    text = str(source)
    name, colon, rest = text.partition(":")
    found = next((backend for backend in BACKENDS if backend == name), None)
    return (found, rest) if colon and found and rest else (None, text)


def with_backend(source: str | Path, backend: str | None) -> str:
    """A source that names what computes the model; None leaves it as it is.

    Raises:
        RecipeError: there is no such backend, or the source names another one.
    """
    own, place = split_backend(source)
    if backend is None:
        return str(source)
    if backend not in BACKENDS:
        raise RecipeError(
            f"backend {backend!r} is not one of {', '.join(BACKENDS)}; none is PyTorch"
        )
    if own not in (None, backend):
        raise RecipeError(f"{source} names the backend {own}, and {backend} is asked for: give one")
    return f"{backend}:{place}"


def is_exported(path: Path) -> bool:
    """Whether a folder holds graphs in the place of weights (`openblip export`)."""
    return (path / MANIFEST_FILE).is_file()


def read_model(path: Path) -> LoadedModel:
    """The model of what `find_model` found, on the CPU, its weights mapped from their file.

    Raises:
        CheckpointError: if it is damaged, incomplete or of a kind that OpenBLIP does not use.
    """
    if is_exported(path):
        raise CheckpointError(
            f"{path}: an exported model holds graphs and no weights, for inference alone; give the "
            "model that it was exported from"
        )
    if path.is_file():
        return _read_original(path)
    return read_huggingface(path) if is_huggingface(path) else read_folder(path)


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
        tokenizer = TextTokenizer.from_file(path)
    except DataError as error:
        raise CheckpointError(f"{path}: its tokenizer cannot be read ({error})") from error
    return ModelOutline(config.model, tokenizer, config.image_size, config.given_tokens)


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
        kind=kind,
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
        file = _tokenizer_beside(path, vocab_size)
        return TextTokenizer.from_file(file), file
    except DataError as error:
        raise CheckpointError(f"{path}: its tokenizer cannot be read ({error})") from error


def find_model(source: str | Path) -> Path:
    """The local model folder or original file of a source; what is elsewhere is fetched first.

    A backend that the source names (`split_backend`) is passed over.

    Raises:
        CheckpointError: if there is none.
    """
    from openblip.checkpoints.download import fetch_url, is_url

    text = split_backend(source)[1]
    if is_url(text):
        return fetch_url(text)
    path = Path(text)
    if path.is_file():
        # A file of weights does not say of which model they are; its folder does.
        has_config = path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file()
        return path.parent if has_config else path
    if path.is_dir():
        folder = model_below(path)
        if folder is not None:
            return folder
        raise CheckpointError(f"{path}: holds no model; {_EXPECTED}")
    return _fetch(text)


def _fetch(name: str) -> Path:
    repo_id, revision = split_revision(name)
    if not is_repo_id(repo_id):
        raise CheckpointError(f"{name}: no such file or folder{_similar(Path(name))}; {_EXPECTED}")
    try:
        return fetch_repository(repo_id, revision)
    except CheckpointError as error:
        # A path that is mistyped looks like the name of a repository: both are told.
        raise CheckpointError(
            f"{name}: no such file or folder here{_similar(Path(name))}; {error}"
        ) from error


def _similar(path: Path) -> str:
    """A question for what has nearly the same name; empty where there is none."""
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


def find_model_files(source: str | Path) -> list[Path]:
    """The files that decide what a model computes, for example to fingerprint it.

    Raises:
        CheckpointError: if there is no model, or a file of it is missing.
    """
    path = find_model(source)
    if path.is_dir() and is_adapter(path):
        return [*_files_of(find_base(path)), *adapter_files(path)]
    return _files_of(path)


def _files_of(path: Path) -> list[Path]:
    """Those of a model; an adapter beside it does not count."""
    if path.is_file():
        note = read_note(path)
        has_own = note is not None and note.tokenizer is not None
        if has_own:
            return [path]
        tokenizer = _tokenizer_beside(path)
        return [path, tokenizer, *settings_beside(tokenizer)]
    if is_exported(path):
        # Graphs stand in files of any name beside the others; a card decides nothing.
        return sorted(file for file in path.iterdir() if file.is_file() and file.suffix != ".md")
    if is_huggingface(path):
        files = sorted(file for file in path.iterdir() if file.suffix in _HUGGINGFACE_SUFFIXES)
        # Read with BERT's vocabulary, it computes something else with another one.
        return files if has_tokenizer(path) else [*files, fetch_bert_vocabulary()]
    files = [path / name for name in (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; {_EXPECTED}")
    return [*files, *settings_beside(path / TOKENIZER_FILE)]


def _tokenizer_beside(path: Path, vocab_size: int = BERT_ROWS) -> Path:
    """The tokenizer in a file's folder, or else that of BERT if the vocabulary is as large.

    Raises:
        CheckpointError: if there is none, and BERT's is another or cannot be fetched.
    """
    for name in (TOKENIZER_FILE, VOCABULARY_FILE):
        if (path.parent / name).is_file():
            return path.parent / name
    if has_bert_vocabulary(vocab_size):
        return fetch_bert_vocabulary()
    raise CheckpointError(
        f"{path}: an original checkpoint has no vocabulary in it, and its {vocab_size} tokens are "
        f"not those of bert-base-uncased; put its {VOCABULARY_FILE} into the same folder"
    )


def model_fingerprint(source: str | Path, hash_file: HashFile = sha256_of) -> str:
    """16 hexadecimal digits of the SHA-256 over a model's configuration, weights and tokenizer.

    With a backend they are others: it rounds otherwise, and what one has computed is not continued
    by another.

    Args:
        source: as for `find_model`.
        hash_file: as of `digest`.

    Raises:
        CheckpointError: if there is no model.
    """
    backend = split_backend(source)[0]
    return digest("" if backend is None else f"{backend}:", find_model_files(source), hash_file)
