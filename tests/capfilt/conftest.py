"""A small noisy table and two small models with random weights."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.capfilt.run import run_capfilt
from openblip.inference.blip import Blip
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.table.table import PairRow, PairTable
from openblip.world import WorldConfig, build_world

from .jobs import columns, job_settings, make_table

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


@pytest.fixture(scope="session")
def rows() -> list[PairRow]:
    """Rows for a table of several fragments; one image is broken."""
    made = list(build_world(replace(WORLD, web_rows=50)))
    return [*made[:30], replace(made[30], id="broken", image=b"not an image"), *made[31:]]


@pytest.fixture(scope="session")
def undisturbed(
    rows: list[PairRow], models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> pa.Table:
    """The columns that a job in one process writes, left alone."""
    uri = str(tmp_path_factory.mktemp("undisturbed") / "pairs.lance")
    make_table(uri, rows, 4)
    run_capfilt(uri, job_settings(models), processes=1)
    return columns(uri)


@pytest.fixture
def uri(rows: list[PairRow], tmp_path: Path) -> str:
    """Address of a table of four fragments that no job has touched."""
    return make_table(str(tmp_path / "pairs.lance"), rows, 4).uri


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    """Web rows of the world, human rows, and one web row whose image is broken."""
    rows = list(build_world(WORLD))
    rows.insert(5, replace(rows[5], id="broken", image=b"not an image"))
    rows.insert(7, PairRow(id="silent", image=rows[0].image, captions=[]))
    return PairTable.create(tmp_path / "pairs.lance", rows)
