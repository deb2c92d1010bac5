"""What an evaluation by contrast needs of a model: ours, or a published CLIP.

`transformers` computes one in its layout (extra `clip`), open_clip its own ones (extra `openclip`):
nothing of a model is written again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from openblip.batches.transforms import eval_transform
from openblip.checkpoints.fingerprints import HashFile, digest, sha256_of
from openblip.checkpoints.folder import CONFIG_FILE, read_json
from openblip.checkpoints.huggingface import is_huggingface
from openblip.checkpoints.reading import find_model, model_fingerprint
from openblip.inference.blip import Blip
from openblip.inference.encoding import finite, text_batches
from openblip.inference.image_sources import Images, prepared_batches
from openblip.inference.loading import default_device, load
from openblip.runtime.errors import CheckpointError, install_extra

OPEN_CLIP = "open_clip:"
"""Begins the name of a model that `open_clip` loads."""
_CLIP, _SIGLIP = "clip", "siglip"
_OPEN_CLIP_CONFIG = "open_clip_config.json"


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

    def embed_prepared(self, images: Tensor) -> Float[Tensor, "images embed"]:
        """As `embed_images`, of a batch of prepared images."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model is."""
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
        """Takes the library's own parts.

        Args:
            prepare: from an RGB image to the image tower's input.
            encode_images: from a batch of these on `device` to embeddings of any length.
            encode_texts: from texts to embeddings of any length.
            device: where the model is.
        """
        self.prepare, self._device = prepare, device
        self._encode_images, self._encode_texts = encode_images, encode_texts

    @torch.no_grad()
    def embed_images(self, images: Images, batch_size: int = 16) -> Float[Tensor, "images embed"]:
        """Unit-length float32 embeddings of images, on the CPU."""
        batches = prepared_batches(images, self.prepare, batch_size)
        return _joined([self._encode_images(batch.to(self._device)) for batch in batches])

    @torch.no_grad()
    def embed_prepared(self, images: Tensor) -> Float[Tensor, "images embed"]:
        """As `embed_images`, of a batch of prepared images."""
        return _joined([self._encode_images(images.to(self._device))])

    @torch.no_grad()
    def embed_texts(
        self, texts: str | Sequence[str], batch_size: int = 256
    ) -> Float[Tensor, "texts embed"]:
        """Unit-length float32 embeddings of texts, on the CPU."""
        batches = text_batches(texts, batch_size)
        return _joined([self._encode_texts(list(batch)) for batch in batches])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device


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
        return read_open_clip(str(source).removeprefix(OPEN_CLIP), place)

    path = find_model(source)
    return read_clip(path, place) if is_clip(path) else load(path, device)


def prepare_image(model: Embedder, image: Image.Image) -> Float[Tensor, "3 height width"]:
    """An RGB image as a model reads it, for `embed_prepared`; may be called from threads."""
    if isinstance(model, TwoTowers):
        return model.prepare(image)
    assert isinstance(model, Blip)
    return eval_transform(image, model.image_size)


def is_published_clip(source: str | Path) -> bool:
    """Whether `load_embedder` takes a source for a CLIP of others, and `load` does not.

    Raises:
        CheckpointError: if there is no such model.
    """
    return str(source).startswith(OPEN_CLIP) or is_clip(find_model(source))


def _joined(parts: list[Tensor]) -> Float[Tensor, "rows embed"]:
    if not parts:
        return torch.empty(0, 0)
    embed = torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1)
    return finite(embed.cpu(), "embeddings")


def embedder_fingerprint(source: str, hash_file: HashFile = sha256_of) -> str:
    """As `model_fingerprint`, of whatever `load_embedder` takes.

    Of a CLIP it covers the image processor too; of a tag of open_clip nothing but the name.

    Args:
        source: as for `load_embedder`.
        hash_file: as of `digest`.

    Raises:
        CheckpointError: if there is no model.
    """
    if source.startswith(OPEN_CLIP):
        return digest(*open_clip_identity(source.removeprefix(OPEN_CLIP)), hash_file)
    return model_fingerprint(source, hash_file)


def is_clip(path: Path) -> bool:
    """Whether a folder holds a `CLIPModel` or a `SiglipModel` of `transformers`."""
    if not is_huggingface(path):
        return False
    return bool(read_json(path / CONFIG_FILE)["model_type"] in (_CLIP, _SIGLIP))


def read_clip(folder: Path, device: torch.device) -> TwoTowers:
    """The CLIP or SigLIP of a folder with its own image processor and tokenizer, in float32.

    Raises:
        CheckpointError: if `transformers` is not installed or cannot read it.
    """
    try:
        from transformers import AutoModel, AutoTokenizer

        # By its file: up to 5.17 at least, the package hides it where torchvision is absent,
        # which the processors with Pillow do not need.
        from transformers.models.auto.image_processing_auto import AutoImageProcessor
    except ImportError as error:
        raise CheckpointError(
            f"{folder}: a CLIP model needs transformers: {install_extra('clip')}"
        ) from error
    try:
        # Never code of the checkpoint's own, even where its configuration names some.
        model: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
        )
        # Pillow's resampling, as CLIP was trained and published with.
        processor: Any = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            folder, local_files_only=True, backend="pil"
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # It raises what its parts raise: no common class.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{folder}: transformers cannot read it ({reason})") from error
    model.eval().to(device)
    longest = model.config.text_config.max_position_embeddings
    # SigLIP was trained on texts of full length, whose padding it sees.
    is_siglip = model.config.model_type == _SIGLIP
    padding = "max_length" if is_siglip else True

    def prepare(image: Image.Image) -> Tensor:
        return torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])

    def encode_texts(texts: list[str]) -> Tensor:
        tokens = tokenizer(
            texts, padding=padding, truncation=True, max_length=longest, return_tensors="pt"
        ).to(device)
        if is_siglip:
            tokens.pop("attention_mask", None)
        return _pooled(model.get_text_features(**tokens))

    def encode_images(images: Tensor) -> Tensor:
        return _pooled(model.get_image_features(pixel_values=images))

    return TwoTowers(prepare, encode_images, encode_texts, device)


def _pooled(output: Any) -> Tensor:
    """The projected embeddings; earlier versions return them bare."""
    return output if isinstance(output, Tensor) else output.pooler_output


def open_clip_identity(name: str) -> tuple[str, list[Path]]:
    """What decides what a model computes: words of its name, and files on this machine.

    Of a tag the words are all: open_clip says which weights it means. Of a file they are the
    architecture; a folder says by itself what is in it.

    Args:
        name: as for `read_open_clip`.

    Raises:
        CheckpointError: if it is no such name.
    """
    if _is_folder(name):
        return "", sorted(file for file in Path(name).iterdir() if file.is_file())
    architecture, pretrained = _divided(name)
    weights = Path(pretrained)
    return (architecture, [weights]) if weights.is_file() else (name, [])


def read_open_clip(name: str, device: torch.device) -> TwoTowers:
    """A model of open_clip with its own transform and tokenizer, in float32.

    Args:
        name: `ARCHITECTURE/PRETRAINED`, PRETRAINED a tag or a file of weights; or a folder with an
            `open_clip_config.json`.
        device: where it is put.

    Raises:
        CheckpointError: if open_clip is not installed or has no such model.
    """
    try:
        import open_clip
    # An open_clip whose torchvision does not fit this torch fails with a RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise CheckpointError(
            f"open_clip:{name} needs open_clip and a torchvision that fits this torch: "
            f"{install_extra('openclip')} ({str(error).strip().splitlines()[0]})"
        ) from error
    if _is_folder(name):
        architecture, pretrained = f"local-dir:{name}", None
    else:
        architecture, pretrained = _divided(name)
    try:
        model: Any
        model, _, prepare = open_clip.create_model_and_transforms(
            architecture, pretrained=pretrained, device=device
        )
        tokenizer: Any = open_clip.get_tokenizer(architecture)
    # It raises what its parts raise: no common class.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"open_clip:{name}: open_clip cannot load it ({reason})") from error
    model.eval()

    def encode_texts(texts: list[str]) -> Tensor:
        return torch.as_tensor(model.encode_text(tokenizer(texts).to(device)))

    return TwoTowers(prepare, model.encode_image, encode_texts, device)


def _is_folder(name: str) -> bool:
    return (Path(name) / _OPEN_CLIP_CONFIG).is_file()


def _divided(name: str) -> tuple[str, str]:
    """Architecture, and tag or file."""
    architecture, _, pretrained = name.partition("/")
    if not pretrained:
        raise CheckpointError(
            f"open_clip:{name}: give open_clip:ARCHITECTURE/PRETRAINED, such as "
            f"open_clip:ViT-B-32/laion2b_s34b_b79k, or a folder with {_OPEN_CLIP_CONFIG}"
        )
    return architecture, pretrained
