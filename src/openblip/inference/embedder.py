"""What an evaluation by contrast needs of a model, ours or one of others."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from openblip.inference.bundle import check_batch_size
from openblip.inference.finite import finite
from openblip.inference.image_input import Images, as_sources, prepared_batches
from openblip.inference.loading import default_device, load
from openblip.interop.sources import find_model

OPEN_CLIP = "open_clip:"
"""Begins the name of a model that `open_clip` loads."""


class Embedder(Protocol):
    """A model that puts images and texts into one space, where the cosine says how they fit."""

    def embed_images(self, images: Images, batch_size: int = 16) -> Float[Tensor, "images embed"]:
        """Unit-length float32 embeddings of images, on the CPU."""
        ...

    def embed_texts(
        self, texts: str | Sequence[str], batch_size: int = 256
    ) -> Float[Tensor, "texts embed"]:
        """Unit-length float32 embeddings of texts, on the CPU."""
        ...


class TwoTowers:
    """A contrastive model of another library: an `Embedder` that does nothing else."""

    def __init__(
        self,
        prepare: Callable[[Image.Image], Float[Tensor, "3 height width"]],
        encode_images: Callable[[Tensor], Float[Tensor, "images embed"]],
        encode_texts: Callable[[list[str]], Float[Tensor, "texts embed"]],
        device: torch.device,
    ) -> None:
        """Takes the library's own parts, so that nothing of a model is written again.

        Args:
            prepare: from an RGB image to the image tower's input.
            encode_images: from a batch of these on `device` to embeddings of any length.
            encode_texts: from texts to embeddings of any length.
            device: where the model is.
        """
        self._prepare, self._device = prepare, device
        self._encode_images, self._encode_texts = encode_images, encode_texts

    @torch.no_grad()
    def embed_images(self, images: Images, batch_size: int = 16) -> Float[Tensor, "images embed"]:
        """Unit-length float32 embeddings of images, on the CPU."""
        check_batch_size(batch_size)
        batches = prepared_batches(as_sources(images), self._prepare, batch_size)
        return _joined([self._encode_images(batch.to(self._device)) for batch in batches])

    @torch.no_grad()
    def embed_texts(
        self, texts: str | Sequence[str], batch_size: int = 256
    ) -> Float[Tensor, "texts embed"]:
        """Unit-length float32 embeddings of texts, on the CPU."""
        check_batch_size(batch_size)
        texts = [texts] if isinstance(texts, str) else list(texts)
        starts = range(0, len(texts), batch_size)
        return _joined([self._encode_texts(texts[at : at + batch_size]) for at in starts])


def load_embedder(source: str | Path, device: str | torch.device | None = None) -> Embedder:
    """A model to evaluate by contrast: whatever `load` takes, or a published CLIP.

    Args:
        source: as for `load`; or a folder or hub repository with a CLIP of `transformers` (extra
            `clip`); or, with the extra `openclip`, `open_clip:ARCHITECTURE/PRETRAINED`, PRETRAINED
            being a tag of open_clip or a file of weights, or `open_clip:FOLDER` with its
            `open_clip_config.json`.
        device: by default the first of cuda, mps and cpu that there is.

    Raises:
        CheckpointError: if there is no such model, or the library that reads it is missing.
    """
    place = torch.device(device) if device is not None else default_device()
    if str(source).startswith(OPEN_CLIP):
        from openblip.inference.open_clip_towers import read_open_clip

        return read_open_clip(str(source).removeprefix(OPEN_CLIP), place)
    from openblip.inference.transformers_towers import is_clip, read_clip

    path = find_model(source)
    return read_clip(path, place) if is_clip(path) else load(path, device)


def is_published_clip(source: str | Path) -> bool:
    """Whether `load_embedder` takes a source for a CLIP of others, and `load` does not.

    Raises:
        CheckpointError: if there is no such model.
    """
    from openblip.inference.transformers_towers import is_clip

    return str(source).startswith(OPEN_CLIP) or is_clip(find_model(source))


def _joined(parts: list[Tensor]) -> Float[Tensor, "rows embed"]:
    if not parts:
        return torch.empty(0, 0)
    embed = torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1)
    return finite(embed.cpu(), "embeddings")
