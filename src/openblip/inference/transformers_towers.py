"""CLIP models in the Hugging Face layout, by `transformers` (extra `clip`)."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from openblip.errors import CheckpointError, install_extra
from openblip.inference.embedder import TwoTowers
from openblip.interop.folder import CONFIG_FILE, read_json
from openblip.interop.huggingface_folder import is_huggingface

_MODEL_TYPE = "clip"


def is_clip(path: Path) -> bool:
    """Whether a folder holds a `CLIPModel` of `transformers`."""
    if not is_huggingface(path):
        return False
    return bool(read_json(path / CONFIG_FILE)["model_type"] == _MODEL_TYPE)


def read_clip(folder: Path, device: torch.device) -> TwoTowers:
    """The CLIP of a folder with its own image processor and tokenizer, in float32.

    Raises:
        CheckpointError: if `transformers` is not installed or cannot read it.
    """
    try:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
    except ImportError as error:
        raise CheckpointError(
            f"{folder}: a CLIP model needs transformers: {install_extra('clip')}"
        ) from error
    try:
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
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

    def prepare(image: Image.Image) -> Tensor:
        return torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])

    def encode_texts(texts: list[str]) -> Tensor:
        tokens = tokenizer(
            texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(device)
        return _pooled(model.get_text_features(**tokens))

    def encode_images(images: Tensor) -> Tensor:
        return _pooled(model.get_image_features(pixel_values=images))

    return TwoTowers(prepare, encode_images, encode_texts, device)


def _pooled(output: Any) -> Tensor:
    """The projected embeddings; earlier versions return them bare."""
    return output if isinstance(output, Tensor) else output.pooler_output
