"""A small model with all heads."""

import pytest
import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.model import Med, MedConfig, TextConfig, VisionConfig


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["a dog runs on the grass", "two cats sleep near a window"], 120)


@pytest.fixture(scope="session")
def config(tokenizer: TextTokenizer) -> MedConfig:
    # One attention head per 64 channels, as in the released models.
    return MedConfig(
        vision=VisionConfig(image_size=32, patch_size=16, width=64, depth=2, heads=1),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            width=128,
            depth=2,
            heads=2,
            ffn_width=256,
            max_positions=24,
        ),
        embed_dim=16,
    )


@pytest.fixture
def med(config: MedConfig) -> Med:
    med = Med(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in med.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return med
