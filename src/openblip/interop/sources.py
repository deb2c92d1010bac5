"""Where a model is: on this machine, or fetched to it; and what it is, in 16 digits."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from openblip.data.tokenizer import TOKENIZER_FILE, VOCABULARY_FILE
from openblip.data.wordpiece import settings_beside
from openblip.errors import CheckpointError
from openblip.interop.adapters import ADAPTER_CONFIG_FILE
from openblip.interop.folder import CONFIG_FILE, WEIGHTS_FILE
from openblip.interop.hub import (
    BERT_ROWS,
    fetch_bert_vocabulary,
    fetch_repository,
    has_bert_vocabulary,
    is_repo_id,
    split_revision,
)

# Of a training run, the first that is there.
_CHECKPOINTS = ("best", "last")
_EXPECTED = (
    "give a model folder (ours or of transformers), a training run's folder, an original .pth "
    "file, its https address, or organisation/name of the Hugging Face hub"
)
# Suffixes of what a folder of `transformers` holds of a model.
_HUGGINGFACE_SUFFIXES = (".json", ".txt", ".safetensors", ".bin")


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
            if any((folder / name).is_file() for name in (CONFIG_FILE, ADAPTER_CONFIG_FILE)):
                return folder
        raise CheckpointError(f"{path}: holds no model; {_EXPECTED}")
    return _fetch(text)


def is_fetched(source: str) -> bool:
    """Whether a source is an address or a name of the hub, and nothing of this machine."""
    return not Path(source).exists()


def _fetch(name: str) -> Path:
    repo_id, revision = split_revision(name)
    if not is_repo_id(repo_id):
        raise CheckpointError(f"{name}: no such file or folder; {_EXPECTED}")
    try:
        return fetch_repository(repo_id, revision)
    except CheckpointError as error:
        raise CheckpointError(f"no such file or folder; of the hub {error}") from error


def find_model_files(source: str | Path) -> list[Path]:
    """The files that decide what a model computes, for example to fingerprint it.

    Raises:
        CheckpointError: if there is no model, or a file of it is missing.
    """
    from openblip.interop.adapters import adapter_files, find_base, is_adapter

    path = find_model(source)
    if path.is_dir() and is_adapter(path):
        return [*_files_of(find_base(path)), *adapter_files(path)]
    return _files_of(path)


def _files_of(path: Path) -> list[Path]:
    """Those of a model; an adapter beside it does not count."""
    from openblip.interop.huggingface_folder import is_huggingface
    from openblip.interop.huggingface_processor import has_tokenizer
    from openblip.interop.original_files import read_note

    if path.is_file():
        note = read_note(path)
        has_own = note is not None and note.tokenizer is not None
        if has_own:
            return [path]
        tokenizer = tokenizer_beside(path)
        return [path, tokenizer, *settings_beside(tokenizer)]
    if is_huggingface(path):
        files = sorted(file for file in path.iterdir() if file.suffix in _HUGGINGFACE_SUFFIXES)
        return files if has_tokenizer(path) else [*files, fetch_bert_vocabulary()]
    files = [path / name for name in (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; {_EXPECTED}")
    return [*files, *settings_beside(path / TOKENIZER_FILE)]


def tokenizer_beside(path: Path, vocab_size: int = BERT_ROWS) -> Path:
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


def model_fingerprint(source: str | Path) -> str:
    """16 hexadecimal digits of the SHA-256 over a model's configuration, weights and tokenizer.

    Args:
        source: as for `find_model`.

    Raises:
        CheckpointError: if there is no model.
    """
    return digest("", find_model_files(source))


def digest(words: str, files: Sequence[Path]) -> str:
    """16 hexadecimal digits of the SHA-256 over words, and names and contents of files."""
    found = hashlib.sha256(words.encode())
    for file in files:
        found.update(file.name.encode())
        with file.open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:16]
