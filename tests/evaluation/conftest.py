"""A small table with human captions and a small model with random weights."""

from pathlib import Path

import pytest
import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.blip import Blip
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.table.table import PairTable
from openblip.world import WorldConfig, build_world

WORLD = WorldConfig(seed=5, web_rows=2, human_rows=2, val_rows=2, test_rows=9)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> PairTable:
    """Nine test images with five captions each."""
    return PairTable.create(tmp_path_factory.mktemp("world") / "w.lance", build_world(WORLD))


@pytest.fixture(scope="session")
def blip() -> Blip:
    """A model that knows nothing, on one thread's worth of work."""
    texts = [text for row in build_world(WORLD) for text in row.captions]
    tokenizer = TextTokenizer.train(texts, 200)
    config = MedConfig(
        vision=VisionConfig(image_size=32, patch_size=16, width=16, depth=2, heads=2),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            width=16,
            depth=2,
            heads=2,
            ffn_width=32,
            max_positions=48,
        ),
        embed_dim=8,
    )
    torch.manual_seed(0)
    return Blip(Med(config), tokenizer, "pretrain", 32, 32)


@pytest.fixture
def empty_split(tmp_path: Path, world: PairTable) -> PairTable:
    """A table whose test images have no captions."""
    from openblip.table.table import PairRow

    image = world.take([0], ["image"])["image"][0].as_py()
    return PairTable.create(tmp_path / "e.lance", [PairRow(id="a", image=image, split="test")])
