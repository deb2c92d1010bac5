"""A tiny model and batches of random pairs."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import SpecialTokens
from openblip.model import Med, MedConfig, TextConfig, VisionConfig

MakeStudent = Callable[..., Med]
MakeBatch = Callable[..., Batch]

SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4, dec=5, enc=6)
CONFIG = MedConfig(
    vision=VisionConfig(image_size=32, patch_size=16, width=24, depth=2, heads=2),
    text=TextConfig(
        vocab_size=40, width=32, depth=2, heads=2, ffn_width=48, max_positions=16, dropout=0.0
    ),
    embed_dim=12,
)


@pytest.fixture
def special() -> SpecialTokens:
    return SPECIAL


@pytest.fixture
def make_student() -> MakeStudent:
    """`make_student(heads=..., sharing=..., dropout=...)`: a model whose attention is not flat."""

    def make(
        heads: tuple[str, ...] = ("itc", "itm", "lm"),
        sharing: str = "all_but_self_attention",
        dropout: float = 0.0,
    ) -> Med:
        text = replace(CONFIG.text, sharing=sharing, dropout=dropout)
        student = Med(replace(CONFIG, heads=heads, text=text))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3, generator=generator)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1, generator=generator)
        return student

    return make


@pytest.fixture
def make_batch() -> MakeBatch:
    """`make_batch(size, seed)`: texts of 3 to 8 tokens; every image and text is another."""

    def make(size: int = 6, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(7, 40, (size, 8), generator=generator)
        lengths = torch.randint(3, 9, (size,), generator=generator)
        place = torch.arange(8)
        tokens[:, 0] = SPECIAL.cls
        tokens[place == lengths[:, None] - 1] = SPECIAL.sep
        mask = place < lengths[:, None]
        return Batch(
            ids=tuple(f"pair {seed} {number}" for number in range(size)),
            images=torch.randn(size, 3, 32, 32, generator=generator),
            tokens=tokens.masked_fill(~mask, SPECIAL.pad),
            mask=mask,
            image_ids=torch.arange(size) + 1000 * seed,
            text_ids=torch.arange(size) + 1000 * seed,
            step=0,
        )

    return make
