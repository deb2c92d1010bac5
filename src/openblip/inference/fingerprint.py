"""What a model is, in 16 digits: equal ones compute the same."""

from openblip.inference.embedder import OPEN_CLIP
from openblip.inference.open_clip_towers import open_clip_identity
from openblip.interop.sources import digest, model_fingerprint

__all__ = ["embedder_fingerprint", "model_fingerprint"]


def embedder_fingerprint(source: str) -> str:
    """As `model_fingerprint`, of whatever `load_embedder` takes.

    Of a CLIP it covers the image processor too; of a tag of open_clip nothing but the name.

    Raises:
        CheckpointError: if there is no model.
    """
    if source.startswith(OPEN_CLIP):
        return digest(*open_clip_identity(source.removeprefix(OPEN_CLIP)))
    return model_fingerprint(source)
