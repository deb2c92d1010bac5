"""What a run needs, and with which settings it fits."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.folder import save_folder
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.plan.footprint import MOMENTS, QUEUES, TEACHER, WEIGHTS
from openblip.plan.sizing import (
    ALLOWANCE,
    BUCKETS,
    CPU_UTILISATION,
    DEVICES,
    GATHERED,
    Cluster,
    Planner,
    Sizing,
    find_device,
    find_recipe,
    run_cost,
)
from openblip.recipes.baselines import as_albef
from openblip.recipes.finetune import vqa
from openblip.recipes.pretrain import PRETRAIN_RECIPES, tiny
from openblip.runtime.errors import RecipeError
from openblip.training.recipe import LoraConfig, Recipe
from openblip.training.recipe_file import write_recipe

GPU = DEVICES["a100-40g"]
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "plan.md"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    model = MedConfig(
        vision=VisionConfig(image_size=64, width=128, depth=2, heads=4),
        text=TextConfig(width=128, depth=1, heads=4, ffn_width=512, max_positions=64),
    )
    small = tiny("none")
    return replace(small, model=model, train=replace(small.train, batch_size=256))


@pytest.fixture(scope="module")
def planner(recipe: Recipe) -> Planner:
    return Planner(recipe, Cluster(device=GPU, devices=8, price_per_hour=2.0))


@pytest.fixture(scope="module")
def sharded(planner: Planner) -> Sizing:
    train = replace(planner.recipe.train, sharding="full")
    return planner.size(replace(planner.recipe, train=train))


def test_replicas_hold_everything_and_buckets_for_sending(planner: Planner) -> None:
    parts = planner.as_given.parts
    assert parts[BUCKETS] == parts[WEIGHTS]
    assert GATHERED not in parts


def test_sharding_divides_the_state_and_gathers_layers(planner: Planner, sharded: Sizing) -> None:
    whole = planner.as_given.parts
    for part in (WEIGHTS, MOMENTS, TEACHER):
        assert sharded.parts[part] == -(-whole[part] // 8)
    assert sharded.parts[QUEUES] == whole[QUEUES]
    assert sharded.parts[GATHERED] > 0
    assert BUCKETS not in sharded.parts


def test_sharding_sends_more(planner: Planner, sharded: Sizing) -> None:
    given = planner.as_given
    # A ring of eight over links of 300 GB/s, of which 70 % are reached.
    sent = 2 * given.parts[WEIGHTS] * 7 / 8
    assert given.communication_seconds == pytest.approx(sent / (0.7 * 300e9))
    assert sharded.communication_seconds > given.communication_seconds


@pytest.fixture(scope="module")
def alone(recipe: Recipe) -> Planner:
    return Planner(recipe, Cluster(device=GPU, utilisation=0.4))


def test_one_device_sends_nothing(alone: Planner) -> None:
    assert alone.communication_seconds(alone.recipe) == 0.0


def test_the_price_is_that_of_all_hours_of_all_devices(planner: Planner) -> None:
    cost = run_cost(planner, planner.as_given, None)
    assert (cost.steps, cost.pairs) == (2000, 2000 * 256)
    assert cost.hours == pytest.approx(2000 * planner.as_given.step_seconds / 3600)
    assert cost.device_hours == 8 * cost.hours
    assert cost.price == 2.0 * cost.device_hours


def test_epochs_need_the_number_of_images(planner: Planner) -> None:
    train = replace(planner.recipe.train, steps=None, epochs=3, accumulate=2)
    sizing = replace(planner.as_given, recipe=replace(planner.recipe, train=train))
    # A batch may span two epochs, as in the run.
    assert run_cost(planner, sizing, 1000).steps == 3 * 1000 // 256 > 3 * (1000 // 256)
    for images in (None, 255):
        with pytest.raises(RecipeError, match="give the number of training images"):
            run_cost(planner, sizing, images)


def test_changes_of_low_rank_are_refused(recipe: Recipe) -> None:
    tuned = replace(recipe, model=None, tokenizer=None, init_from="model", lora=LoraConfig(rank=8))
    with pytest.raises(RecipeError, match=r"lora.rank is 8, .* --lora.rank 0 for all weights"):
        Planner(tuned, Cluster(device=GPU))


def test_half_the_utilisation_takes_twice_the_time(recipe: Recipe, alone: Planner) -> None:
    slow = Planner(recipe, Cluster(device=GPU, utilisation=0.2))
    assert slow.compute_seconds(slow.recipe) == 2 * alone.compute_seconds(alone.recipe)


def test_remedies_are_flags_of_the_training_command(recipe: Recipe) -> None:
    given = Planner(recipe, Cluster(device=GPU, devices=2)).as_given
    allowance = given.parts[ALLOWANCE]
    narrow = replace(GPU, memory=round(allowance + 0.75 * (given.memory - allowance)))
    planner = Planner(recipe, Cluster(device=narrow, devices=2))
    assert not planner.as_given.fits
    remedies = list(planner.remedies())
    assert remedies[-1].fits
    for remedy in remedies:
        words = [word for flag in remedy.flags for word in flag.split()]
        kind = tyro.conf.AvoidSubcommands[Recipe]
        assert tyro.cli(kind, default=planner.recipe, args=words) == remedy.recipe


def test_the_recipe_of_a_run_is_found(tmp_path: Path, planner: Planner) -> None:
    write_recipe(planner.recipe, tmp_path / "recipe.yaml")
    assert find_recipe(str(tmp_path)) == find_recipe(str(tmp_path / "recipe.yaml"))
    assert find_recipe(str(tmp_path)) == planner.recipe
    assert find_recipe("base") == PRETRAIN_RECIPES["base"]("not opened")
    with pytest.raises(RecipeError, match=r"bsae: no recipe. Give tiny, small, base"):
        find_recipe("bsae")


def test_this_machine_is_a_device_too() -> None:
    cpu = find_device("cpu")
    assert cpu.float32 > 1e9
    assert cpu.memory > 2**30
    with pytest.raises(RecipeError, match="choose one of a100-40g"):
        find_device("a100")


def test_the_default_utilisation_is_the_measured_one() -> None:
    found = re.search(
        r"Utilisation of the first row of each group: base (0\.\d+)", RESULTS.read_text()
    )
    assert found is not None
    assert pytest.approx(float(found[1]), abs=0.01) == CPU_UTILISATION


def test_an_albef_is_planned_for_too(planner: Planner) -> None:
    blip = replace(planner.recipe.model, text=replace(planner.recipe.model.text, depth=2))
    albef = as_albef(replace(planner.recipe, model=blip))
    sized = Planner(albef, Cluster(device=GPU, devices=8, price_per_hour=2.0))
    assert sized.as_given.fits
    assert sized.as_given.parts[TEACHER] < sized.as_given.parts[WEIGHTS]
    # Its teacher encodes whole images and reads texts with them.
    assert sized.as_given.compute_seconds > planner.as_given.compute_seconds
    lighter = next(iter(sized.remedies()))
    assert lighter.memory < sized.as_given.memory


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.train(["a b"], 60)
    config = MedConfig.preset("tiny")
    config = replace(config, text=replace(config.text, vocab_size=tokenizer.vocab_size))
    save_folder(tmp_path / "med", Med(config), tokenizer, "pretrain", 30)
    recipe = vqa("none", str(tmp_path / "med"), 64)
    with pytest.raises(RecipeError, match=r"the task 'vqa' from .* cannot be planned for"):
        Planner(recipe, Cluster(device=GPU))
