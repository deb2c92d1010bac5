"""Whole runs: what they leave behind, and that stopping them changes nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.data.tokenizer import TextTokenizer
from openblip.errors import DataError, MissingHead, RecipeError, TrainingError
from openblip.interop.folder import read_folder
from openblip.tasks.filter import FilterObjectives
from openblip.training.config import CaptionerObjectives, ModelOverrides, Recipe
from openblip.training.metrics_log import read_metrics
from openblip.training.recipe_file import read_recipe, write_recipe
from openblip.training.run import TrainResult, train

MakeRecipe = Callable[..., Recipe]

# What `openblip pretrain` does, without its start-up.
SCRIPT = """
import sys
from pathlib import Path
from openblip.training.recipe_file import read_recipe
from openblip.training.run import train
train(read_recipe(Path(sys.argv[1])), sys.argv[2], quiet=True)
"""


def weights(run_dir: Path, link: str = "last") -> bytes:
    return (run_dir / "checkpoints" / link / "model.safetensors").read_bytes()


def state(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "checkpoints" / "last" / "training_state.pt"
    values: dict[str, Any] = torch.load(path, weights_only=True)
    return values


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def with_queue(recipe: Recipe, size: int) -> Recipe:
    return replace(recipe, objectives=replace(recipe.objectives, queue_size=size))


@pytest.fixture(scope="module")
def pretrained(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Recipe, TrainResult]:
    """A finished run that several tests look at."""
    recipe: Recipe = request.getfixturevalue("module_recipe")
    return recipe, train(recipe, tmp_path_factory.mktemp("pretrained"), quiet=True)
