"""A run directory may be continued with what its run began with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from torch.distributed.checkpoint.filesystem import FileSystemReader

from openblip.checkpoints.folder import read_folder
from openblip.model import MedConfig
from openblip.model.config import AlbefConfig
from openblip.objectives.settings import AlbefObjectives, FilterObjectives, PretrainObjectives
from openblip.recipes.finetune import FINETUNE_RECIPES
from openblip.runtime.errors import OpenBlipWarning, TrainingError
from openblip.table.reviews import ReviewLog, ReviewRecord, Verdict
from openblip.table.table import PairTable
from openblip.table.views import CaptionView
from openblip.training.recipe import MixedTable, Recipe, ScheduleConfig, ScheduleKind
from openblip.training.recipe_file import read_recipe
from openblip.training.run import train

from .conftest import wall

MakeRecipe = Callable[..., Recipe]


def test_a_run_does_not_go_on_with_other_rows_of_any_table(
    make_recipe: MakeRecipe, other_table: str, tmp_path: Path
) -> None:
    recipe = make_recipe(steps=2)
    mix = (MixedTable(table=other_table),)
    recipe = replace(recipe, data=replace(recipe.data, mix=mix))
    train(recipe, tmp_path / "run", quiet=True)
    PairTable.open(other_table).append([wall(100, "another")])
    with pytest.raises(TrainingError, match=r"walls\.lance: 20 pairs.*other\.lance: 7 pairs"):
        train(recipe, tmp_path / "run", quiet=True)


def test_a_run_does_not_go_on_with_other_texts_of_the_same_rows(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    rows = [replace(wall(number), origin="web") for number in range(20)]
    table = PairTable.create(tmp_path / "walls.lance", rows)
    table.add_columns(pa.table({"synthetic": [[f"a wall, {n}"] for n in range(20)]}))
    recipe = make_recipe(steps=2)
    view = CaptionView(sources=("web", "synthetic"))
    recipe = replace(recipe, data=replace(recipe.data, table=table.uri, view=view))
    train(recipe, tmp_path / "run", quiet=True)
    assert train(recipe, tmp_path / "run", quiet=True).steps == 2
    again = pa.table({"synthetic": [[f"one wall, {n}"] for n in range(20)]})
    table.add_columns(again, overwrite=True)
    with pytest.raises(TrainingError, match="other rows, texts or weights than its tables"):
        train(recipe, tmp_path / "run", quiet=True)


def with_queue(recipe: Recipe, size: int) -> Recipe:
    return replace(recipe, objectives=replace(recipe.objectives, queue_size=size))


def queue_of(run_dir: Path) -> tuple[int, int]:
    """Its size in the recorded recipe, and that of the run's own queue."""
    objectives = read_recipe(run_dir / "recipe.yaml").objectives
    assert isinstance(objectives, PretrainObjectives | AlbefObjectives)
    stored = FileSystemReader(run_dir / "checkpoints" / "last" / "training_state").read_metadata()
    (size,) = {
        meta.size[0]
        for name, meta in stored.state_dict_metadata.items()
        if name.endswith("queue.image_ids")
    }
    return objectives.queue_size, size


def test_a_queue_fits_itself_to_the_data_and_says_so(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(steps=2)
    assert isinstance(recipe.model, MedConfig)
    base = train(recipe, tmp_path / "base", quiet=True).model_folder
    filtering = replace(
        recipe,
        task="filter",
        objectives=FilterObjectives(),
        model=None,
        tokenizer=None,
        init_from=str(base),
    )
    albef = replace(
        recipe,
        task="albef",
        objectives=AlbefObjectives(),
        model=AlbefConfig(
            vision=recipe.model.vision,
            text=replace(recipe.model.text, depth=2),
            embed_dim=8,
            fusion_layer=1,
        ),
    )
    for task, long in (
        ("pretrain", with_queue(recipe, 57600)),
        ("filter", filtering),
        ("albef", albef),
    ):
        with pytest.warns(OpenBlipWarning, match=r"objectives\.queue_size is 20 instead of [56]"):
            train(long, tmp_path / task, quiet=True)
        assert queue_of(tmp_path / task) == (20, 20)
    # A queue that fits is as it was asked for, and nothing is said.
    assert queue_of(tmp_path / "base") == (8, 8)


def test_a_fitted_queue_keeps_its_size_when_the_run_goes_on(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    rows = [wall(number) for number in range(20)]
    table = PairTable.create(tmp_path / "walls.lance", rows)
    recipe = with_queue(make_recipe(steps=4), 100)
    recipe = replace(recipe, data=replace(recipe.data, table=table.uri))
    with pytest.warns(OpenBlipWarning, match="is 20 instead of 100"):
        train(recipe, tmp_path / "run", quiet=True)
    with pytest.warns(OpenBlipWarning, match="is 20 instead of 100"):
        assert train(recipe, tmp_path / "run", quiet=True).steps == 4
    # The size that it has may be said outright, and no other one.
    assert train(with_queue(recipe, 20), tmp_path / "run", quiet=True).steps == 4
    with pytest.raises(TrainingError, match=r"objectives.queue_size \(was 20, is 19\)"):
        train(with_queue(recipe, 19), tmp_path / "run", quiet=True)
    train(with_queue(recipe, 19), tmp_path / "smaller", quiet=True)
    with pytest.raises(TrainingError, match=r"objectives.queue_size \(was 19, is 20\)"):
        train(recipe, tmp_path / "smaller", quiet=True)
    table.append([wall(100, "another")])
    with pytest.raises(TrainingError, match="other rows, texts or weights than its tables"):
        train(recipe, tmp_path / "run", quiet=True)
    assert queue_of(tmp_path / "run") == (20, 20)


def weights(run_dir: Path) -> bytes:
    return (run_dir / "checkpoints" / "last" / "model.safetensors").read_bytes()


def test_a_run_is_made_longer_where_its_steps_would_have_been_the_same(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    def recipe(steps: int) -> Recipe:
        return replace(make_recipe(steps=steps), schedule=ScheduleConfig(kind="step_decay"))

    train(recipe(7), tmp_path / "at once", quiet=True)
    train(recipe(3), tmp_path / "longer", quiet=True)
    assert train(recipe(7), tmp_path / "longer", quiet=True).steps == 7
    assert weights(tmp_path / "longer") == weights(tmp_path / "at once")
    assert read_recipe(tmp_path / "longer" / "recipe.yaml").train.steps == 7
    with pytest.raises(TrainingError, match="has done 7 steps, and the recipe asks for 5"):
        train(recipe(5), tmp_path / "longer", quiet=True)


@pytest.mark.parametrize("kind", ["warmup_cosine", "epoch_cosine"])
def test_a_run_whose_rate_falls_to_its_end_is_not_made_longer_but_says_how(
    make_recipe: MakeRecipe, kind: ScheduleKind, tmp_path: Path
) -> None:
    def recipe(steps: int) -> Recipe:
        return replace(make_recipe(steps=steps), schedule=ScheduleConfig(kind=kind))

    train(recipe(2), tmp_path / "run", quiet=True)
    with pytest.raises(
        TrainingError, match=r"train.steps \(was 2, is 3\).*--init-from .*run/checkpoints/last"
    ):
        train(recipe(3), tmp_path / "run", quiet=True)
    last = tmp_path / "run" / "checkpoints" / "last"
    begun = replace(recipe(1), model=None, tokenizer=None, init_from=str(last))
    result = train(begun, tmp_path / "more", quiet=True)
    assert read_folder(result.model_folder).med.config == read_folder(last).med.config


def judged(uri: str, number: int, verdict: Verdict, edited: str | None = None) -> None:
    """A verdict on the first text of a wall."""
    text = wall(number).captions[0]
    about = {"row": f"row-{number}", "source": "web", "place": 0, "text": text}
    record = ReviewRecord(verdict=verdict, edited=edited, reviewer="ada", table_version=1, **about)
    ReviewLog.of(uri).append([record])


@pytest.mark.parametrize("task", ["captioner", "filter"])
def test_captioner_and_filter_learn_from_what_people_have_judged(
    make_recipe: MakeRecipe, tmp_path: Path, task: str
) -> None:
    rows = [replace(wall(number), origin="web") for number in range(20)]
    table = PairTable.create(tmp_path / "walls.lance", [*rows, wall(30)])
    for number in range(8):
        judged(table.uri, number, "right" if number % 2 else "partly", "a corrected wall")
    recipe = make_recipe(steps=2)
    base = train(recipe, tmp_path / "base", quiet=True).model_folder
    view = CaptionView(sources=("human", "reviewed"))
    recipe = replace(
        FINETUNE_RECIPES[task](table.uri, str(base), 16),
        train=recipe.train,
        data=replace(recipe.data, table=table.uri, view=view),
    )
    if task == "filter":
        recipe = replace(recipe, objectives=FilterObjectives(queue_size=8))
    train(recipe, tmp_path / "run", quiet=True)
    assert train(recipe, tmp_path / "run", quiet=True).steps == 2
    # An opinion that decides nothing leaves the data as they were; a correction does not.
    judged(table.uri, 9, "unsure")
    assert train(recipe, tmp_path / "run", quiet=True).steps == 2
    judged(table.uri, 3, "right", "a wall, corrected once more")
    with pytest.raises(TrainingError, match=r"reviewed: 8 of 9 texts\): .*or reviewed since"):
        train(recipe, tmp_path / "run", quiet=True)
