"""A folder of drawn photos, and models that embed and match them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openblip.index.build import IndexReport, build_index
from openblip.inference.blip import Blip
from openblip.table.table import PairTable

from ..capfilt.conftest import models, table
from ..inference.conftest import make_med, tokenizer

__all__ = ["models", "table", "tokenizer"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept in the cache of whoever runs the tests."""
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def model(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a model that embeds and matches."""
    folder = tmp_path_factory.mktemp("search") / "model"
    Blip(make_med(tokenizer), tokenizer, "pretrain", 32, 30).save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def other_model(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of another one."""
    folder = tmp_path_factory.mktemp("search") / "other"
    Blip(make_med(tokenizer, seed=7), tokenizer, "pretrain", 32, 30).save(folder)
    return str(folder)


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 28, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((56, 40)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve photos, some of them in a folder of their own."""
    for number in range(12):
        draw(tmp_path / "photos" / ("trip" if number > 7 else "") / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def indexed(photos: Path, model: str) -> Path:
    """The photos with their index."""
    build_index(str(photos), model, device="cpu", show_progress=False)
    return photos


@pytest.fixture
def build(model: str) -> Callable[..., IndexReport]:
    """Indexes a place with the model."""

    def run(place: Path | str, name: str = model, **settings: object) -> IndexReport:
        settings = {"device": "cpu", "show_progress": False, **settings}
        return build_index(str(place), name, **settings)

    return run


def contents(table: PairTable | Path) -> dict[str, tuple]:
    """What a table says of each image, by its id."""
    if isinstance(table, Path):
        table = PairTable.open(table / ".openblip" / "index.lance")
    names = ["id", "image_uri", "width", "file_size", "file_mtime", "file_digest", "image_error"]
    found = {}
    for batch in table.scan([*names, "image_embedding"]):
        for row in batch.to_pylist():
            row_id = row.pop("id")
            assert row_id not in found
            found[row_id] = tuple(map(str, row.values()))
    return found
