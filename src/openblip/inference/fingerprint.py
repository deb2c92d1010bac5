"""What a model is, in 16 digits: equal ones compute the same."""

import hashlib

from openblip.inference.loading import find_model_files


def model_fingerprint(source: str) -> str:
    """16 hexadecimal digits of the SHA-256 over a model's configuration, weights and tokenizer.

    Raises:
        CheckpointError: if there is no model.
    """
    digest = hashlib.sha256()
    for file in find_model_files(source):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
