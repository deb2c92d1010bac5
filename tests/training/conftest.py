"""Tables of one-colour pictures, and the smallest recipes that train on them."""

import io
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.blip import Blip
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.objectives.pretrain import PretrainObjectives, PretrainTask
from openblip.objectives.task import StepOutput, StepPosition
from openblip.recipes.finetune import FINETUNE_RECIPES
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView
from openblip.training.recipe import DataConfig, OptimiserConfig, Recipe, TrainConfig

MakeRecipe = Callable[..., Recipe]
SignalInStep = Callable[[int, signal.Signals], None]
ReadStored = Callable[[Path], dict[str, torch.Tensor]]


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


@pytest.fixture(scope="session")
def read_stored(tmp_path_factory: pytest.TempPathFactory) -> ReadStored:
    """Every tensor of a checkpoint's training state by name, read by PyTorch's own converter."""
    file = tmp_path_factory.mktemp("stored") / "state.pt"

    def read(checkpoint: Path) -> dict[str, torch.Tensor]:
        dcp_to_torch_save(checkpoint / "training_state", file)
        values: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
        return values

    return read


@pytest.fixture
def signal_in_step(monkeypatch: pytest.MonkeyPatch) -> SignalInStep:
    """`signal_in_step(step, number)`: it comes in that step, and ends the run after the next."""
    forward = PretrainTask.forward

    def at(step: int, number: signal.Signals) -> None:
        waiting = [number]

        def signalled(self: PretrainTask, batch: Batch, position: StepPosition) -> StepOutput:
            if self.training and position.step == step and waiting:
                signal.raise_signal(waiting.pop())
            return forward(self, batch, position)

        monkeypatch.setattr(PretrainTask, "forward", signalled)

    return at


COLOURS = ("red", "green", "blue", "white")


def questioned(number: int) -> PairRow:
    """A picture of one colour with a caption, a question, and a sentence about it and the next."""
    colour = COLOURS[number % 4]
    file = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(file, "PNG")
    meta = {
        "questions": [{"question": "what colour is it?", "answers": [colour, "dark"]}],
        "pairs": [
            {"second": f"r{(number + 1) % 12}", "sentence": "one is red", "label": number % 2 == 0}
        ],
    }
    split = "val" if number >= 10 else "train"
    return PairRow(
        f"r{number}",
        file.getvalue(),
        captions=[f"a {colour} wall"],
        origin="human",
        split=split,
        meta=meta,
    )


@pytest.fixture(scope="session")
def questions_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """10 rows to train any task on and 2 to validate with."""
    uri = tmp_path_factory.mktemp("questions") / "pairs.lance"
    PairTable.create(uri, [questioned(number) for number in range(12)])
    return str(uri)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a MED with all heads and random weights."""
    words = "what colour is it one is dark a wall " + " ".join(COLOURS)
    tokenizer = TextTokenizer.train([words], 100)
    config = MedConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            width=16,
            depth=2,
            heads=2,
            ffn_width=32,
            max_positions=32,
            dropout=0.0,
        ),
        embed_dim=8,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "pretrained"
    Blip(Med(config), tokenizer, "pretrain", 16, 30).save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def make_finetuning(questions_uri: str, pretrained: str) -> MakeRecipe:
    """`make_finetuning(task, init_from, steps)`: a task's recipe at the smallest size."""

    def make(task: str, init_from: str = pretrained, steps: int = 2) -> Recipe:
        recipe = FINETUNE_RECIPES[task](questions_uri, init_from, 16)
        objectives = recipe.objectives
        if hasattr(objectives, "queue_size"):
            objectives = replace(objectives, queue_size=4)
        return replace(
            recipe,
            objectives=objectives,
            data=replace(
                recipe.data, image_size=16, max_tokens=16, num_threads=1, validation_split="val"
            ),
            train=replace(
                recipe.train,
                batch_size=4,
                epochs=None,
                steps=steps,
                checkpoint_every=1,
                device="cpu",
            ),
        )

    return make
