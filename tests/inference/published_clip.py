"""A small CLIP and a small SigLIP with random weights, as the hub has them."""

from pathlib import Path
from typing import Any

import torch


def save_clip(folder: Path) -> Path:
    """The folder, which gets a `CLIPModel` of `transformers` with its processor and tokenizer."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _save_tokenizer(folder)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = sizes | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = sizes | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def _save_tokenizer(folder: Path) -> Any:
    """A tokenizer of CLIP whose words are letters."""
    from transformers import CLIPTokenizer

    letters = [chr(n) for n in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocab = {word: number for number, word in enumerate([*words, "<|startoftext|>"])}
    vocab["<|endoftext|>"] = len(vocab)
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)
    tokenizer.save_pretrained(folder)
    return tokenizer


def transformers_embeds(
    folder: Path, images: list[Any], texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit-length embeddings of images and of texts, by `transformers` alone."""
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = CLIPModel.from_pretrained(folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        found = theirs(**tokens, **pixels)
    return found.image_embeds, found.text_embeds


def save_siglip(folder: Path) -> Path:
    """The folder, which gets a `SiglipModel` with its processor, and the tokenizer of a CLIP."""
    from transformers import SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = _save_tokenizer(folder)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = sizes | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 12,
        "projection_size": 16,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config=text, vision_config=sizes | {"image_size": 32, "patch_size": 8}
    )
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def siglip_embeds(
    folder: Path, images: list[Any], texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit-length embeddings of images and of texts padded to the full length, unmasked."""
    from transformers import AutoTokenizer, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    theirs = SiglipModel.from_pretrained(folder).eval()
    pixels = SiglipImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        found = theirs(input_ids=tokens["input_ids"], **pixels)
    return found.image_embeds, found.text_embeds
