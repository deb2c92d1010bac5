"""A small noisy table and two small models with random weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openblip.data.table import PairRow, PairTable
from openblip.data.tokenizer import TextTokenizer
from openblip.data.world import WorldConfig, build_world
from openblip.inference import Blip
from openblip.model import Med, MedConfig, TextConfig, VisionConfig

WORLD = WorldConfig(seed=3, web_rows=14, human_rows=4, val_rows=2, test_rows=2)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a captioner and a filter."""
    texts = [text for row in build_world(WORLD) for text in row.captions] + ["a picture of"]
    tokenizer = TextTokenizer.train(texts, 200)
    config = MedConfig(
        vision=VisionConfig(image_size=32, patch_size=16, width=16, depth=1, heads=2),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            width=16,
            depth=1,
            heads=2,
            ffn_width=32,
            max_positions=48,
        ),
        embed_dim=8,
    )
    folders = {}
    for seed, kind in enumerate(("captioner", "filter")):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("models") / kind
        Blip(Med(config), tokenizer, kind, 32, 32).save(folder)
        folders[kind] = str(folder)
    return folders


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    """Web rows of the world, human rows, and one web row whose image is broken."""
    rows = list(build_world(WORLD))
    rows.insert(5, replace(rows[5], id="broken", image=b"not an image"))
    rows.insert(7, PairRow(id="silent", image=rows[0].image, captions=[]))
    return PairTable.create(tmp_path / "pairs.lance", rows)
