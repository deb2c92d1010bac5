"""What a model is, in 16 digits: equal ones compute the same."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from openblip.inference.embedder import OPEN_CLIP
from openblip.inference.loading import find_model_files
from openblip.inference.open_clip_towers import open_clip_identity


def model_fingerprint(source: str) -> str:
    """16 hexadecimal digits of the SHA-256 over a model's configuration, weights and tokenizer.

    Args:
        source: as for `load`.

    Raises:
        CheckpointError: if there is no model.
    """
    return _digest("", find_model_files(source))


def embedder_fingerprint(source: str) -> str:
    """As `model_fingerprint`, of whatever `load_embedder` takes.

    Of a CLIP it covers the image processor too; of a tag of open_clip nothing but the name.

    Raises:
        CheckpointError: if there is no model.
    """
    if source.startswith(OPEN_CLIP):
        return _digest(*open_clip_identity(source.removeprefix(OPEN_CLIP)))
    return model_fingerprint(source)


def _digest(words: str, files: Sequence[Path]) -> str:
    digest = hashlib.sha256(words.encode())
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
