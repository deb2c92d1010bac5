"""Live models of `transformers` with random weights, and folders that it wrote."""

import random
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.huggingface_config import CLASSES, HuggingFaceKind

KINDS: list[HuggingFaceKind] = list(CLASSES)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s", "run", "two", "cat"]


def peer(
    kind: HuggingFaceKind, tokenizer: TextTokenizer, seed: int = 0, **vision: Any
) -> torch.nn.Module:
    """A model of random sizes, whose weights are large enough for its outputs to differ."""
    draw = random.Random(seed)
    patch, head_dim = draw.choice([8, 16]), draw.choice([6, 8])
    text_heads, vision_heads = draw.choice([2, 4]), draw.choice([1, 3])
    # The answer decoder of the question-answering class needs equal widths.
    width = text_heads * head_dim
    vision_heads, vision_width = (
        (text_heads, width) if kind == "vqa" else (vision_heads, vision_heads * 10)
    )
    special = tokenizer.special
    config = transformers.BlipConfig(
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": draw.choice([33, 50]),
            "num_hidden_layers": draw.choice([1, 2, 3]),
            "num_attention_heads": vision_heads,
            "image_size": patch * draw.choice([2, 3]),
            "patch_size": patch,
            **vision,
        },
        text_config={
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": width,
            "intermediate_size": draw.choice([31, 48]),
            "num_hidden_layers": draw.choice([1, 2, 3]),
            "num_attention_heads": text_heads,
            "max_position_embeddings": 32,
            "bos_token_id": special.dec,
            "sep_token_id": special.sep,
            "pad_token_id": special.pad,
            "layer_norm_eps": draw.choice([1e-12, 1e-9]),
        },
        image_text_hidden_size=12,
        projection_dim=14,
    )
    return redrawn(getattr(transformers, CLASSES[kind])(config), special.sep, seed)


def redrawn(model: torch.nn.Module, end: int, seed: int, std: float = 0.25) -> torch.nn.Module:
    """The model with larger weights; texts end, but not at once."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std, generator=generator)
            elif parameter.ndim == 1:
                parameter.normal_(std=0.1, generator=generator)
                if name.lower().endswith(("norm.weight", "norm1.weight", "norm2.weight")):
                    parameter.add_(1.0)
        if hasattr(model, "text_decoder"):
            model.text_decoder.cls.predictions.bias[end] += 2.0
    return model.eval()


def folder_of(
    model: torch.nn.Module, tokenizer: TextTokenizer, folder: Path, **saving: Any
) -> Path:
    """A folder as `transformers` writes it, with the tokenizer beside."""
    model.save_pretrained(folder, **saving)
    tokenizer.save(folder)
    return folder


def images_for(model: torch.nn.Module, rows: int) -> Tensor:
    size = model.config.vision_config.image_size
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1))


def write_vocabulary(folder: Path, words: list[str]) -> None:
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
