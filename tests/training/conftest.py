"""A table of one-colour pictures, and the smallest recipe that trains on it."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openblip.data.table import PairRow, PairTable
from openblip.data.views import CaptionView
from openblip.model import MedConfig, TextConfig, VisionConfig
from openblip.tasks.pretrain import PretrainObjectives
from openblip.training.config import DataConfig, OptimiserConfig, Recipe, TrainConfig

MakeRecipe = Callable[..., Recipe]


def wall(number: int, name: str = "row") -> PairRow:
    """A picture of one colour with two human texts; from number 20 on for validation."""
    colour = ("red", "green", "blue", "white", "black")[number % 5]
    shade = ("dark", "pale", "warm", "plain")[number % 4]
    file = io.BytesIO()
    pixel = (number * 10 % 256, (255 - number * 9) % 256, (number * 37) % 256)
    Image.new("RGB", (20, 16), pixel).save(file, format="PNG")
    split = "val" if 20 <= number < 24 else "train"
    texts = [f"a {shade} {colour} wall", f"this wall is {colour}"]
    return PairRow(f"{name}-{number}", file.getvalue(), captions=texts, origin="human", split=split)


@pytest.fixture(scope="session")
def table_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """20 rows to train on and 4 to validate with, all of human origin."""
    uri = tmp_path_factory.mktemp("data") / "walls.lance"
    PairTable.create(uri, (wall(number) for number in range(24)))
    return str(uri)


@pytest.fixture
def other_table(tmp_path: Path) -> str:
    """6 more rows to train on, none to validate with."""
    uri = tmp_path / "other.lance"
    PairTable.create(uri, (wall(number, "other") for number in range(6)))
    return str(uri)


@pytest.fixture(scope="session")
def make_recipe(table_uri: str) -> MakeRecipe:
    """The smallest pre-training recipe; keyword arguments replace fields of its `train` part.

    Dropout, drop path and augmentation are on, so that every source of randomness takes part.
    """

    def make(**train: Any) -> Recipe:
        model = MedConfig(
            vision=VisionConfig(patch_size=8, width=16, depth=2, heads=2, drop_path=0.2),
            text=TextConfig(width=16, depth=1, heads=2, ffn_width=32, max_positions=32),
            embed_dim=8,
        )
        settings = {"batch_size": 4, "steps": 4, "checkpoint_every": 2, "log_every": 2, **train}
        return Recipe(
            task="pretrain",
            model=model,
            tokenizer="train:60",
            data=DataConfig(
                table=table_uri, view=CaptionView(sources=("human",)), image_size=16, num_threads=2
            ),
            objectives=PretrainObjectives(queue_size=8, alpha_ramp_epochs=1.0),
            optimiser=OptimiserConfig(lr=1e-3),
            train=TrainConfig(device="cpu", threads=1, **settings),
        )

    return make
