"""What a run directory holds besides checkpoints and metrics, and whether it may be continued."""

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from openblip.batches.step_loader import AnyLoader
from openblip.batches.tokenizer import TextTokenizer
from openblip.objectives.settings import ContrastObjectives
from openblip.runtime.errors import OpenBlipWarning, OtherRunError, TrainingError
from openblip.table.table import PairTable
from openblip.training.build import make_tokenizer, resolve
from openblip.training.loaders import with_fitting_queue
from openblip.training.parallelism import Processes
from openblip.training.rank_log import LOG_FOLDER
from openblip.training.recipe import Recipe
from openblip.training.recipe_file import RECIPE_FILE, difference, read_recipe, write_recipe

CHECKPOINT_FOLDER = "checkpoints"
TOKENIZER_FOLDER = "tokenizer"
# What a scheduler or a person may have put there before the run begins.
_NOTES = frozenset((".err", ".json", ".log", ".md", ".out", ".sh", ".txt", ".yaml", ".yml"))


def check_run_dir(run_dir: Path) -> None:
    """Nothing, if a run may write there: it holds a run, notes, or nothing.

    Raises:
        TrainingError: it holds something else, as photos, a table or a model, among which the
            files of a run would be lost; names it.
    """
    found = sorted(run_dir.iterdir()) if run_dir.is_dir() else []
    # Also one that another process of the same run has just begun.
    if any(path.name in (RECIPE_FILE, LOG_FOLDER, CHECKPOINT_FOLDER) for path in found):
        return
    for path in found:
        if not path.name.startswith(".") and (path.is_dir() or path.suffix not in _NOTES):
            raise TrainingError(
                f"RUN_DIR {run_dir}: holds {path.name}, which is no part of a run; name a folder "
                "that is new or empty"
            )


def prepare(
    recipe: Recipe,
    tables: Sequence[PairTable],
    run_dir: Path,
    processes: Processes,
    checkpoint: Path | None,
) -> tuple[Recipe, TextTokenizer]:
    """The recipe that the tokenizer resolves, and the tokenizer of a run directory; writes both.

    What the data decide is settled by `settle` when they are there.

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
        # A start that ended before its first checkpoint left one: that of other texts, perhaps.
        shutil.rmtree(folder, ignore_errors=True)
        fresh.save(folder)
        write_recipe(resolve(recipe, fresh), run_dir / RECIPE_FILE)
    # Every process reads what stands there, the first one too: so that all have the same, and a
    # resumed run has what its first start had.
    processes.wait_for_all()
    tokenizer = TextTokenizer.from_file(folder)
    resolved = resolve(recipe, tokenizer)
    recorded = read_recipe(run_dir / RECIPE_FILE)
    _check_same_recipe(recorded, _with_queue_of(recorded, resolved), run_dir)
    return resolved, tokenizer


def settle(
    recipe: Recipe, num_examples: int, run_dir: Path, processes: Processes, checkpoint: Path | None
) -> Recipe:
    """The recipe with a queue that the data fill, as it stands in the run directory from now on.

    A run that goes on has the rows that it began with (`check_same_data`), so that the size stays.

    Args:
        recipe: of `prepare`.
        num_examples: admitted rows of all tables.
        run_dir: of the run.
        processes: the first one writes, and warns of a smaller queue.
        checkpoint: what the run goes on from.

    Raises:
        TrainingError: the directory's checkpoints were made by another recipe.
    """
    # The data are known only now: they are opened with the tokenizer.
    settled = with_fitting_queue(recipe, num_examples)
    recorded = read_recipe(run_dir / RECIPE_FILE)
    if checkpoint is not None:
        _check_same_recipe(recorded, settled, run_dir)
    if processes.is_first:
        if settled != recipe:
            warnings.warn(
                f"objectives.queue_size is {_queue_size(settled)} instead of "
                f"{_queue_size(recipe)}: the view admits no more rows, and a longer queue would "
                "contrast pairs with themselves",
                OpenBlipWarning,
                stacklevel=2,
            )
        if settled != recorded:
            write_recipe(settled, run_dir / RECIPE_FILE)
    return settled


def _check_same_recipe(recorded: Recipe, recipe: Recipe, run_dir: Path) -> None:
    changed = difference(recorded, _with_free_settings(recipe, recorded))
    if changed is None:
        return
    last = run_dir / "checkpoints" / "last"
    if changed.startswith(("train.steps", "train.epochs")):
        raise OtherRunError(
            f"{run_dir} belongs to a run of another length: {changed}. Its learning rate "
            f"(schedule.kind {recipe.schedule.kind}) falls until the last step, so that a longer "
            "run differs from its first step on. To train on from its weights, choose another run "
            f"directory and --init-from {last}"
        )
    raise OtherRunError(
        f"{run_dir} belongs to a run of another recipe: {changed}. Go on with that recipe, or "
        f"choose another run directory (--init-from {last} starts from its weights)"
    )


def _with_free_settings(recipe: Recipe, other: Recipe) -> Recipe:
    """The recipe with those settings of the other that a run may change when it is resumed."""
    train = replace(recipe.train, trackers=other.train.trackers)
    if not recipe.schedule.depends_on_length:
        train = replace(train, steps=other.train.steps, epochs=other.train.epochs)
    return replace(recipe, train=train, stability=other.stability)


def _queue_size(recipe: Recipe) -> int | None:
    """None for a task without a queue."""
    objectives = recipe.objectives
    return objectives.queue_size if isinstance(objectives, ContrastObjectives) else None


def _with_queue_of(recorded: Recipe, recipe: Recipe) -> Recipe:
    """The recipe with the recorded queue, where it asks for a longer one: data may have cut it."""
    size, objectives = _queue_size(recorded), recipe.objectives
    if not isinstance(objectives, ContrastObjectives) or size is None:
        return recipe
    queue_size = min(size, objectives.queue_size)
    return replace(recipe, objectives=replace(objectives, queue_size=queue_size))


def check_same_data(loader: AnyLoader, digest: str, run_dir: Path) -> None:
    """Check that a run goes on with the examples that it began with.

    Raises:
        TrainingError: there are other rows, texts or weights than before.
    """
    if digest != loader.fingerprint():
        raise TrainingError(
            f"{run_dir} was begun on other rows, texts or weights than its tables have today "
            f"({'; '.join(loader.summary())}): they were imported, bootstrapped, scored "
            "or reviewed since, or an earlier version of openblip began the run. Choose another "
            f"run directory; init_from {run_dir / 'checkpoints' / 'last'} starts from the weights"
        )
