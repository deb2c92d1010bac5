"""What a run directory holds besides checkpoints and metrics, and whether it may be continued."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from openblip.data.step_loader import AnyLoader
from openblip.data.table import PairTable
from openblip.data.tokenizer import TextTokenizer
from openblip.errors import TrainingError
from openblip.training.build import make_tokenizer, resolve
from openblip.training.config import Recipe
from openblip.training.distributed import Processes
from openblip.training.recipe_file import RECIPE_FILE, difference, read_recipe, write_recipe

TOKENIZER_FOLDER = "tokenizer"


def prepare(
    recipe: Recipe,
    tables: Sequence[PairTable],
    run_dir: Path,
    processes: Processes,
    checkpoint: Path | None,
) -> tuple[Recipe, TextTokenizer]:
    """The resolved recipe and the tokenizer of a run directory, which are written into it.

    Args:
        recipe: what was asked for.
        tables: those of `data.mixture`, where a tokenizer may be learnt from.
        run_dir: made if it is absent.
        processes: the first one writes, the others wait and read.
        checkpoint: what the run goes on from; without one, all is made anew.

    Raises:
        TrainingError: the directory's checkpoints were made by another recipe.
    """
    folder = run_dir / TOKENIZER_FOLDER
    if processes.is_first and checkpoint is None:
        run_dir.mkdir(parents=True, exist_ok=True)
        fresh = make_tokenizer(recipe, tables)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.save(folder)
        write_recipe(resolve(recipe, fresh), run_dir / RECIPE_FILE)
    processes.wait_for_all()
    tokenizer = TextTokenizer.from_file(folder)
    resolved = resolve(recipe, tokenizer)
    recorded = read_recipe(run_dir / RECIPE_FILE)
    changed = difference(recorded, _with_free_settings(resolved, recorded))
    if changed is not None:
        raise TrainingError(
            f"{run_dir} belongs to a run of another recipe: {changed}. Go on with that recipe, or "
            "choose another run directory"
        )
    if processes.is_first and recorded != resolved:
        write_recipe(resolved, run_dir / RECIPE_FILE)
    return resolved, tokenizer


def _with_free_settings(recipe: Recipe, other: Recipe) -> Recipe:
    """The recipe with those settings of the other that a run may change when it is resumed."""
    train = replace(recipe.train, trackers=other.train.trackers)
    return replace(recipe, train=train, stability=other.stability)


def check_same_data(loader: AnyLoader, digest: str, run_dir: Path) -> None:
    """Check that a run goes on with the examples that it began with.

    Raises:
        TrainingError: there are other rows or other texts than before.
    """
    if digest != loader.fingerprint():
        raise TrainingError(
            f"{run_dir} was begun on other rows or texts than its tables have today "
            f"({'; '.join(loader.summary())}): they were imported or bootstrapped anew since, or "
            "an earlier version of openblip began the run. Choose another run directory; init_from "
            f"{run_dir / 'checkpoints' / 'last'} starts from the weights"
        )
