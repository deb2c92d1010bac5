"""Fine-tuning through its command."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openblip.batches.tokenizer import unpack_tokens
from openblip.cli import main
from openblip.inference.loading import load
from openblip.runtime.errors import OpenBlipWarning
from openblip.table.table import PairTable
from openblip.training.recipe_file import read_recipe
from openblip.training.run import train
from openblip.world import WorldConfig, build_world


@pytest.fixture
def words(tmp_path: Path, checkpoint: Callable[[str], str]) -> list[str]:
    """A captioner's command, one step long."""
    table = str(tmp_path / "pairs.lance")
    world = WorldConfig(seed=3, web_rows=0, human_rows=4, val_rows=2, test_rows=2)
    PairTable.create(table, build_world(world))
    run = str(tmp_path / "run")
    steps = ["--train.steps=1", "--train.batch-size=4"]
    flags = ["--init-from", checkpoint("captioner"), *steps, "--train.device=cpu"]
    return ["finetune", "captioner", table, run, *flags]


def test_low_rank_changes_have_flags_and_the_command_says_how_much_is_trained(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = ["--lora.rank", "2", "--lora.alpha", "4", "--lora.targets", "query", "key_value"]

    assert main([*words, *lora]) == 0

    recipe = read_recipe(tmp_path / "run" / "recipe.yaml").lora
    assert (recipe.rank, recipe.alpha, recipe.targets) == (2, 4.0, ("query", "key_value"))
    # Two layers: queries 32 x 32, keys and values 64 x 24.
    factors = 2 * 2 * (32 + 32 + 64 + 24)
    assert f"trains {factors:,} of " in capsys.readouterr().err


def test_help_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "captioner", "t.lance", "runs/new", "--help"])
    assert stop.value.code == 0
    assert "--lora.rank" in capsys.readouterr().out


@pytest.fixture(scope="module")
def layouts(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], str]
) -> dict[str, Path]:
    """The same captioner in every layout."""
    ours, folder = Path(checkpoint("captioner")), tmp_path_factory.mktemp("layouts")
    original, theirs = folder / "captioner.pth", folder / "theirs"
    for place, layout in ((original, "original"), (theirs, "huggingface")):
        assert main(["convert", str(ours), str(place), "--to", layout]) == 0
    return {"openblip": ours, "original": original, "huggingface": theirs}


@pytest.mark.parametrize("layout", ["openblip", "original", "huggingface"])
def test_it_starts_from_a_model_of_any_layout(
    words: list[str], tmp_path: Path, layouts: dict[str, Path], layout: str
) -> None:
    words[words.index("--init-from") + 1] = str(layouts[layout])

    # Nothing is learnt, so that the weights are those of the start.
    assert main([*words, "--optimiser.lr=0", "--optimiser.weight-decay=0"]) == 0

    begun, trained = load(layouts["openblip"]), load(tmp_path / "run")
    weights = trained.model.state_dict()
    assert read_recipe(tmp_path / "run" / "recipe.yaml").data.image_size == begun.image_size
    assert trained.tokenizer.decode([7, 8, 9]) == begun.tokenizer.decode([7, 8, 9])
    assert all(torch.equal(weights[name], t) for name, t in begun.model.state_dict().items())


def test_a_file_that_is_no_model_is_named(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model_base.pth"
    file.touch()
    words[words.index("--init-from") + 1] = str(file)
    assert main(words) == 1
    assert str(file) in capsys.readouterr().err


def test_a_target_that_is_not_there_is_named(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--lora.rank", "2", "--lora.targets", "attn"]) == 1
    told = capsys.readouterr().err
    assert "lora.targets: nothing of this model is named 'attn'" in told
    assert "qkv" in told


@pytest.mark.filterwarnings("always::openblip.runtime.errors.OpenBlipWarning")
def test_a_captioner_that_reads_a_given_text_is_trained_saved_and_used(
    words: list[str],
    tmp_path: Path,
    photo: str,
    checkpoint: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    reads = ["--given", "web", "--data.given-tokens=7", "--data.max-tokens=24"]
    assert main([*words, *reads]) == 0
    model = tmp_path / "run" / "checkpoints" / "last"
    blip = load(model, device="cpu")
    assert blip.given_tokens == 7
    blip.save(tmp_path / "copy")
    copy = load(tmp_path / "copy", device="cpu")
    assert (copy.given_tokens, copy.name_tokens) == (7, blip.name_tokens)
    # Common names, if there are none in the web texts of the table.
    assert unpack_tokens(blip.name_tokens, blip.tokenizer.vocab_size).any()
    capsys.readouterr()
    caption = ["caption", photo, "--device=cpu", "--max-length=12"]
    assert main([*caption, "--model", str(model), "--given", "a circle"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert main([*caption, "--model", str(model), "--given", "one two three " * 4]) == 0
    assert "has more than 7 tokens, and is cut" in capsys.readouterr().err
    assert main([*caption, "--model", checkpoint("captioner"), "--given", "a circle"]) == 1
    assert "not fine-tuned to read a given text" in capsys.readouterr().err
    assert main(["caption", str(tmp_path), "--model", str(model), "--given", "a circle"]) == 1
    assert "--given is about one image" in capsys.readouterr().err


def test_what_a_small_model_has_room_for_is_told_as_a_flag(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--given", "web"]) == 1
    told = re.search(r"positions\): (--data\.given-tokens .*) fits", capsys.readouterr().err)
    assert told is not None
    assert main([*words, "--given", "web", *told[1].split()]) == 0


def test_only_a_captioner_reads_a_given_text(
    words: list[str], capsys: pytest.CaptureFixture[str], checkpoint: Callable[[str], str]
) -> None:
    words[1], words[5] = "filter", checkpoint("filter")
    assert main([*words, "--data.given=web", "--objectives.queue-size=4"]) == 1
    assert "the task filter reads no given text" in capsys.readouterr().err


def test_a_filter_learns_from_typed_negatives(
    words: list[str], tmp_path: Path, checkpoint: Callable[[str], str]
) -> None:
    words[1], words[5] = "filter", checkpoint("filter")
    typed = ["--objectives.typed-negatives=0.5", "--objectives.queue-size=4"]
    assert main([*words, *typed]) == 0
    assert load(tmp_path / "run", device="cpu").can_match


def test_a_flag_that_changes_nothing_is_refused_before_anything_begins(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, told in (
        (["--lora.trained", "text"], "lora.trained is text, which changes nothing without lora.ra"),
        (["--stability.skip-steps", "4"], "skip_steps is 4, which changes nothing without stabil"),
        (["--train.validation-batches", "4"], "without data.validation_split: give it too"),
        (["--data.view.itm", "0.5"], "data.view.itm is 0.5, which changes nothing with the sou"),
        (["--data.view.itm=0.5"], "data.view.itm is 0.5"),
        (["--lora.alpha=3", "--data.augmentation.no-flip"], "lora.alpha is 3.0"),
    ):
        assert main([*words, *flags]) == 1
        assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_a_recipe_sets_for_losses_that_flags_leave_out_is_no_ones_fault(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain = ["pretrain", "tiny", words[2], words[3], "--objectives.losses", "lm"]
    assert main([*pretrain, "--objectives.queue-size", "16"]) == 1
    assert "objectives.queue_size is 16" in capsys.readouterr().err
    # Nor is the default, in place of that.
    assert main([*pretrain, "--objectives.queue-size=57600"]) == 1
    assert "objectives.queue_size is 57600" in capsys.readouterr().err
    # Its queue of 512 is not complained of, but that a captioner starts from a model.
    assert main([*pretrain, "--model.heads", "itc", "--train.steps", "1"]) == 1
    assert "objectives.queue_size" not in capsys.readouterr().err


def test_a_run_that_was_begun_with_such_a_flag_goes_on(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    recipe = read_recipe(tmp_path / "run" / "recipe.yaml")
    recipe = replace(recipe, train=replace(recipe.train, validation_batches=4))
    words[3] = str(tmp_path / "begun")
    words.append("--train.validation-batches=4")
    assert main(words) == 1
    assert "train.validation_batches is 4" in capsys.readouterr().err
    with pytest.warns(OpenBlipWarning, match=r"train\.validation_batches is 4"):
        train(recipe, words[3], quiet=True)
    assert main(words) == 0
    assert "train.validation_batches is 4" not in capsys.readouterr().err


@pytest.mark.parametrize("found", ["photo.jpg", "_versions/1.manifest", "model.safetensors"])
def test_a_folder_that_holds_something_else_is_no_place_for_a_run(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], found: str
) -> None:
    file = tmp_path / "run" / found
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert main(words) == 1
    assert f"RUN_DIR {words[3]}: holds {found.split('/')[0]}" in capsys.readouterr().err
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [file]


def test_a_run_may_begin_where_notes_lie(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in (".gitkeep", "slurm-12.out", "why.md"):
        (tmp_path / "run" / name).write_text("")
    assert main(words) == 0


def test_a_table_behind_a_recipes_file_takes_the_place_of_the_recipes(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, first, *_ = words[2:]
    own = ["pretrain", "tiny", table, first, "--train.steps=1", "--train.batch-size=4"]
    smaller = ["--model.vision.depth=1", "--model.text.depth=1", "--train.device=cpu"]
    assert main([*own, *smaller, "--objectives.queue-size=4", "--tokenizer=train:200"]) == 0
    other, recipe = str(tmp_path / "other.lance"), f"{first}/recipe.yaml"
    world = WorldConfig(seed=4, web_rows=0, human_rows=4, val_rows=2, test_rows=2)
    PairTable.create(other, build_world(world))

    assert main(["pretrain", recipe, other, str(tmp_path / "new")]) == 0
    assert read_recipe(tmp_path / "new" / "recipe.yaml").data.table == other
    assert main(["pretrain", recipe, str(tmp_path / "again")]) == 0
    assert read_recipe(tmp_path / "again" / "recipe.yaml").data.table == table
    # A table alone is no place for a run.
    assert main(["pretrain", recipe, other]) == 1
    assert f"RUN_DIR {other}: holds _" in capsys.readouterr().err
