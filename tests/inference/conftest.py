"""A small model whose weights are large enough for its outputs to differ, and pictures for it."""

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.data.tokenizer import TextTokenizer
from openblip.inference import Blip
from openblip.inference.encoded import EncodedImages
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.model.vqa import Vqa, VqaConfig

TEXTS = [
    "a picture of a red square above a blue circle",
    "a picture of two green triangles on a white table",
    "a large dog and a small cat in the grass under a tree",
    "people with umbrellas walk along the street at night",
]


def make_med(tokenizer: TextTokenizer, seed: int = 0, **changes) -> Med:
    """A MED whose attention is not uniform and whose texts end at different lengths."""
    config = MedConfig(
        vision=VisionConfig(image_size=32, patch_size=16, width=24, depth=2, heads=2),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            width=32,
            depth=2,
            heads=4,
            ffn_width=48,
            max_positions=40,
            dropout=0.1,
            sharing=changes.pop("sharing", "all_but_self_attention"),
        ),
        embed_dim=16,
        **changes,
    )
    med = Med(config)
    draw_weights(med, seed)
    if "lm" in config.heads:
        with torch.no_grad():
            med.text.lm_head.bias[tokenizer.special.sep] += 4.5
    return med.eval()


@torch.no_grad()
def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Large weights, so that attention is not uniform."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.25, generator=generator)
        elif "norm" not in name and name != "temperature":
            parameter.normal_(std=0.1, generator=generator)


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS, vocab_size=90)


@pytest.fixture(scope="session")
def blip(tokenizer) -> Blip:
    return Blip(make_med(tokenizer), tokenizer, "pretrain", image_size=32, max_tokens=30)


@pytest.fixture(scope="session")
def vqa(tokenizer) -> Vqa:
    vision = VisionConfig(image_size=32, patch_size=16, width=24, depth=2, heads=2)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, width=32, depth=2, heads=4, ffn_width=48, max_positions=40
    )
    model = Vqa(VqaConfig(vision=vision, text=text))
    draw_weights(model, seed=3)
    with torch.no_grad():
        model.answer.lm_head.bias[tokenizer.special.sep] += 3.0
    return model.eval()


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    arrays = generator.integers(0, 256, size=(7, 20, 28, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in arrays]


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def encoded(blip, images) -> EncodedImages:
    return blip.encode(images)
