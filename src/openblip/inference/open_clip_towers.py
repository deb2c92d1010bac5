"""Contrastive models of open_clip (extra `openclip`)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.errors import CheckpointError, install_extra
from openblip.inference.embedder import TwoTowers

_CONFIG_FILE = "open_clip_config.json"


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
    return (Path(name) / _CONFIG_FILE).is_file()


def _divided(name: str) -> tuple[str, str]:
    """Architecture, and tag or file."""
    architecture, _, pretrained = name.partition("/")
    if not pretrained:
        raise CheckpointError(
            f"open_clip:{name}: give open_clip:ARCHITECTURE/PRETRAINED, such as "
            f"open_clip:ViT-B-32/laion2b_s34b_b79k, or a folder with {_CONFIG_FILE}"
        )
    return architecture, pretrained
