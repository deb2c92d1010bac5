"""Runs whose image encoder is frozen learn from states that are computed once."""

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.batches.image_states import STATES_FOLDER
from openblip.inference.loading import load
from openblip.model import Med
from openblip.model.config import VisionConfig
from openblip.objectives.albef import AlbefObjectives
from openblip.objectives.pretrain import PretrainTask
from openblip.objectives.task import StepPosition
from openblip.recipes.baselines import as_albef, as_clip
from openblip.runtime.errors import OpenBlipWarning, RecipeError
from openblip.table.table import PairTable
from openblip.training import loaders
from openblip.training.build import assemble_task, build_model
from openblip.training.loaders import frozen_states, open_tables, training_loader
from openblip.training.optimiser import trained_parameters
from openblip.training.parallelism import join_processes
from openblip.training.recipe import LoraConfig, Recipe
from openblip.training.run import train
from openblip.training.utilisation import task_flops

from .. import foreign_encoders

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.filterwarnings("ignore:train.freeze")


@pytest.fixture
def frozen(make_recipe: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    """The smallest pre-training with a frozen encoder; its states lie in a folder of the test."""

    def make(**changes: Any) -> Recipe:
        recipe = make_recipe(freeze=("image_encoder",), **changes)
        return replace(recipe, data=replace(recipe.data, states=str(tmp_path / "states")))

    return make


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load(run_dir, device="cpu").model.state_dict()


def test_the_encoder_stays_as_it_was_and_all_else_is_trained(
    frozen: MakeRecipe, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = frozen()
    before = build_model(replace(recipe, model=_resolved(recipe, tmp_path)), join_processes("cpu"))
    result = train(recipe, tmp_path / "run", quiet=True)
    begun, learnt = before.state_dict(), weights(result.run_dir)
    for name, weight in learnt.items():
        same = torch.equal(weight, begun[name])
        assert same == name.startswith("image_encoder."), name
    of_encoder = sum(p.numel() for p in before.image_encoder.parameters())
    everything = sum(p.numel() for p in before.parameters())
    assert result.trained_weights == everything - of_encoder


def _resolved(recipe: Recipe, folder: Path) -> Any:
    """The model with the sizes that a run finds out."""
    from openblip.training.run_dir import prepare

    tables = open_tables(recipe.data)
    processes = join_processes("cpu")
    return prepare(recipe, tables, folder / "sizes", processes, None)[0].model


def _task(recipe: Recipe, folder: Path) -> tuple[PretrainTask, Any, Any]:
    from openblip.training.run_dir import prepare

    processes, tables = join_processes("cpu"), open_tables(recipe.data)
    recipe, tokenizer = prepare(recipe, tables, folder, processes, None)
    model = build_model(recipe, processes)
    task = assemble_task(recipe, model, tokenizer, processes).train()
    assert isinstance(task, PretrainTask)
    loader = training_loader(recipe, tables, tokenizer, processes)
    return task, loader, recipe


def test_losses_are_those_of_images_to_a_thousandth(frozen: MakeRecipe, tmp_path: Path) -> None:
    recipe = frozen()
    # Crops and colours are what the encoder would have seen; here they are switched off.
    task, _, recipe = _task(recipe, tmp_path / "a")
    task.eval()
    from openblip.training.loaders import validation_loader

    images = replace(recipe, data=replace(recipe.data, validation_split="train"))
    tables = open_tables(recipe.data)
    _, tokenizer = _prepared(recipe, tmp_path / "a")
    losses = []
    for use_states in (False, True):
        loader = validation_loader(images, tables, tokenizer, join_processes("cpu"))
        assert loader is not None
        if use_states:
            loader.use_states(frozen_states(recipe, task.student))
        with loader, torch.no_grad():
            batches = list(islice(loader.iterate(), 3))
            assert batches[0].images.ndim == (3 if use_states else 4)
            outputs = [task(b, StepPosition(n, 1.0)) for n, b in enumerate(batches)]
        losses.append(torch.stack([output.loss for output in outputs]))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def _prepared(recipe: Recipe, folder: Path) -> Any:
    from openblip.training.run_dir import prepare

    return prepare(recipe, open_tables(recipe.data), folder, join_processes("cpu"), None)


def test_a_run_that_stops_goes_on_bit_for_bit(frozen: MakeRecipe, tmp_path: Path) -> None:
    recipe = frozen(steps=4, checkpoint_every=2)
    recipe = replace(recipe, schedule=replace(recipe.schedule, kind="step_decay"))
    train(recipe, tmp_path / "whole", quiet=True)
    train(replace(recipe, train=replace(recipe.train, steps=2)), tmp_path / "parts", quiet=True)
    train(recipe, tmp_path / "parts", quiet=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_images_are_encoded_once_for_all_runs(
    frozen: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    encode = Med.encode_images

    def counted(self: Med, images: torch.Tensor) -> torch.Tensor:
        if images.ndim == 4:
            seen.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Med, "encode_images", counted)
    recipe = frozen()
    recipe = replace(recipe, data=replace(recipe.data, validation_split="val"))
    train(recipe, tmp_path / "one", quiet=True)
    # 20 to learn from and 4 to validate with; of the second table one is compared.
    assert sum(seen) == 24 + 0
    seen.clear()
    train(recipe, tmp_path / "two", quiet=True)
    assert sum(seen) == 2
    assert len(list((tmp_path / "states").iterdir())) == 1


def test_a_teacher_has_no_encoder_of_its_own(frozen: MakeRecipe, tmp_path: Path) -> None:
    task, _, _ = _task(frozen(), tmp_path / "run")
    assert not list(task.teacher.image_encoder.parameters())
    assert not any(name.startswith("teacher.image_encoder") for name in task.state_dict())
    assert not any(p is q for p in trained_parameters(task) for q in _encoder(task))


def _encoder(task: PretrainTask) -> list[torch.nn.Parameter]:
    return list(task.student.image_encoder.parameters())


def test_frozen_norms_do_not_learn_from_batches(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Batch norms change in training mode, whether they have gradients or not."""
    recipe = make_recipe(freeze=("image_encoder",))
    vision = VisionConfig(backbone=f"{foreign_encoders.__name__}:Convolutions")
    assert recipe.model is not None
    recipe = replace(recipe, model=replace(recipe.model, vision=vision))  # type: ignore[type-var]
    recipe = replace(recipe, data=replace(recipe.data, states=str(tmp_path / "states")))
    task, loader, _ = _task(recipe, tmp_path / "run")
    before = {k: v.clone() for k, v in task.student.image_encoder.state_dict().items()}
    with loader:
        (batch,) = islice(loader.iterate(), 1)
    # Images, not states: also whoever has a loop of their own.
    task(batch, StepPosition(0, 0.0)).loss.backward()
    after = task.student.image_encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not task.student.image_encoder.training


@pytest.mark.parametrize("kind", ["clip", "albef"])
def test_other_pre_trainings_take_states_too(frozen: MakeRecipe, tmp_path: Path, kind: str) -> None:
    recipe = frozen()
    assert recipe.model is not None
    deeper = replace(recipe.model.text, depth=2)
    recipe = replace(recipe, model=replace(recipe.model, text=deeper))  # type: ignore[type-var]
    other = (as_clip if kind == "clip" else as_albef)(recipe)
    assert kind == "clip" or isinstance(other.objectives, AlbefObjectives)
    assert train(other, tmp_path / "run", quiet=True).steps == 4


@pytest.mark.parametrize("task", ["captioner", "filter", "vqa", "nlvr"])
def test_every_fine_tuning_takes_states(
    make_finetuning: MakeRecipe, tmp_path: Path, task: str
) -> None:
    recipe = make_finetuning(task)
    recipe = replace(
        recipe,
        train=replace(recipe.train, freeze=("image_encoder",)),
        data=replace(recipe.data, states=str(tmp_path / "states")),
    )
    result = train(recipe, tmp_path / "run", quiet=True)
    assert result.steps == 2
    assert result.flops is None or result.flops > 0
    begun, learnt = weights(Path(recipe.init_from or "")), weights(result.run_dir)
    encoder = [name for name in learnt if name.startswith("image_encoder.")]
    assert all(torch.equal(begun[name], learnt[name]) for name in encoder)


def test_arithmetic_of_the_encoder_is_not_counted(frozen: MakeRecipe, tmp_path: Path) -> None:
    task, loader, recipe = _task(frozen(), tmp_path / "run")
    with loader:
        (images,) = islice(loader.iterate(), 1)
    loader.use_states(frozen_states(recipe, task.student))
    with loader:
        (states,) = islice(loader.iterate(), 1)
    frozen_flops = task_flops(task, states)
    assert frozen_flops == task_flops(task, images)
    task.student.freezes_images = False
    assert 0 < frozen_flops < task_flops(task, images)


def test_a_loaded_model_looks_images_up(
    frozen: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = frozen()
    run_dir = train(recipe, tmp_path / "run", quiet=True).run_dir
    stored = PairTable.open(recipe.data.table).take([0, 1], ["image"])["image"].to_pylist()
    images = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in stored]
    expected = load(run_dir, device="cpu").embed_images(images)

    monkeypatch.setenv(STATES_FOLDER, str(tmp_path / "states"))
    blip = load(run_dir, device="cpu")
    blip.model.image_encoder.forward = None  # type: ignore[assignment]  # nobody may ask it
    torch.testing.assert_close(blip.embed_images(images), expected, rtol=1e-2, atol=2e-3)
    # Of an encoder of which nothing is kept nothing is looked up.
    monkeypatch.setenv(STATES_FOLDER, str(tmp_path / "elsewhere"))
    assert load(run_dir, device="cpu").model.known_states is None
    assert not (tmp_path / "elsewhere").exists()


class TestWarnings:
    @pytest.mark.filterwarnings("default:train.freeze")
    def test_random_weights_that_nothing_trains_are_told(
        self, frozen: MakeRecipe, tmp_path: Path
    ) -> None:
        with pytest.warns(OpenBlipWarning, match="random weights, and nothing will train them"):
            _task(frozen(), tmp_path / "run")

    @pytest.mark.filterwarnings("error:train.freeze")
    def test_weights_of_others_are_not(
        self, frozen: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(0)
        kept = foreign_encoders.Convolutions().state_dict()

        class Trained(foreign_encoders.Convolutions):
            def __init__(self) -> None:
                super().__init__()
                self.load_state_dict(kept)

        monkeypatch.setattr(foreign_encoders, "Trained", Trained, raising=False)
        recipe = frozen()
        assert recipe.model is not None
        vision = VisionConfig(backbone=f"{foreign_encoders.__name__}:Trained")
        model = replace(recipe.model, vision=vision)  # type: ignore[type-var]
        _task(replace(recipe, model=model), tmp_path / "run")


class TestRefusals:
    def test_parts_of_a_divided_model(self, make_recipe: MakeRecipe) -> None:
        with pytest.raises(RecipeError, match=r"leave train\.sharding at .replicate."):
            make_recipe(freeze=("image_encoder",), sharding="full")

    def test_low_rank_changes_of_what_is_frozen(
        self, make_finetuning: MakeRecipe, tmp_path: Path
    ) -> None:
        recipe = make_finetuning("captioner")
        recipe = replace(
            recipe,
            lora=LoraConfig(rank=2),
            train=replace(recipe.train, freeze=("image_encoder",)),
        )
        with pytest.raises(RecipeError, match=r"lora.targets name layers of the image encoder"):
            train(recipe, tmp_path / "run", quiet=True)
        text = replace(
            recipe,
            lora=LoraConfig(rank=2, targets=("text",)),
            data=replace(recipe.data, states=str(tmp_path / "states")),
        )
        assert train(text, tmp_path / "other", quiet=True).steps == 2

    def test_a_table_elsewhere_without_a_folder_here(self, frozen: MakeRecipe) -> None:
        recipe = frozen()
        data = replace(recipe.data, states=None)

        class Elsewhere:
            uri = "s3://bucket/pairs.lance"

        with pytest.raises(RecipeError, match=r"give data\.states, a folder here"):
            loaders._states_folder(data, Elsewhere())  # type: ignore[arg-type]
