"""Embeddings as a column, and duplicates and leaks by them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openblip.cli import main
from openblip.curation.duplicates import flag_duplicates
from openblip.curation.leakage import flag_leaks
from openblip.curation.nearness import Criterion, Nearness
from openblip.index.embeddings import embed_table
from openblip.inference.loading import load
from openblip.runtime.errors import DataError
from openblip.table.table import PairTable
from openblip.world import build_world

from ..capfilt.conftest import WORLD


@pytest.fixture
def doubled(tmp_path: Path) -> PairTable:
    """A world whose first web image, and first test image, stand in it again."""
    rows = {row.id: row for row in build_world(WORLD)}
    again = replace(rows["web-0000000"], id="again")
    leak = replace(rows["test-0000000"], id="leak", split="train")
    return PairTable.create(tmp_path / "t.lance", [*rows.values(), again, leak])


def test_the_column_holds_the_embeddings_of_the_model(
    table: PairTable, models: dict[str, str]
) -> None:
    assert embed_table(table, models["filter"], show_progress=False).computed == len(table)
    assert embed_table(table, models["filter"], show_progress=False).computed == 0
    rows = table.take(range(len(table)), ["id", "image", "image_embedding"]).to_pylist()
    good = [row for row in rows if row["id"] != "broken"]
    expected = load(models["filter"]).embed_images([row["image"] for row in good]).numpy()
    stored = np.array([row["image_embedding"] for row in good], dtype=np.float32)
    assert stored == pytest.approx(expected, abs=1e-3)
    (broken,) = [row for row in rows if row["id"] == "broken"]
    assert not any(broken["image_embedding"])


@pytest.mark.parametrize("by", ["embedding", "both"])
def test_equal_images_are_found_by_their_embeddings(
    by: Criterion, doubled: PairTable, models: dict[str, str]
) -> None:
    # A model with random weights finds all images alike, but for the last digits.
    nearness = Nearness(by=by, cosine=0.9999)
    embed_table(doubled, models["filter"], show_progress=False)
    report = flag_duplicates(doubled, nearness, show_progress=False)
    flags = {
        row["id"]: row["duplicate_of"]
        for row in doubled.take(range(len(doubled)), ["id", "duplicate_of"]).to_pylist()
    }
    assert flags["again"] == "web-0000000"
    assert flags["web-0000000"] is None
    assert report.model
    leaks = flag_leaks(doubled, doubled, "test", nearness, show_progress=False)
    assert ("leak", "test-0000000") in {(leak.row, leak.of) for leak in leaks.examples}


@pytest.mark.filterwarnings("ignore::openblip.runtime.errors.UntrainedHead")
def test_embeddings_of_two_models_are_not_compared(
    doubled: PairTable, table: PairTable, models: dict[str, str]
) -> None:
    embed_table(doubled, models["filter"], show_progress=False)
    embed_table(table, models["captioner"], show_progress=False)
    with pytest.raises(DataError, match="two models"):
        flag_leaks(doubled, table, "test", Nearness(by="both"), show_progress=False)


def test_the_command_embeds_with_its_model(
    doubled: PairTable, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "duplicates", doubled.uri, "--model", models["filter"]]
    assert main(words) == 0
    assert "near-duplicates by both: train 1 (1 of them the same file)" in capsys.readouterr().out
    words = ["data", "leakage", doubled.uri, doubled.uri, "--by", "both", "--check"]
    assert main(words) == 1
