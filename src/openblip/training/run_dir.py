"""What a run directory holds besides checkpoints and metrics, and whether it may be continued."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from openblip.data.mixture import Mixture
from openblip.data.table import PairTable
from openblip.data.tokenizer import TextTokenizer
from openblip.errors import TrainingError
from openblip.training.build import make_tokenizer, resolve
from openblip.training.config import Recipe
from openblip.training.distributed import Processes
from openblip.training.recipe_file import RECIPE_FILE, difference, read_recipe, write_recipe

TOKENIZER_FOLDER = "tokenizer"
# No row number, so that rows cannot move from one table to the next unseen.
_BETWEEN_TABLES = b"\xff" * 8


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
    changed = difference(read_recipe(run_dir / RECIPE_FILE), resolved)
    if changed is not None:
        raise TrainingError(
            f"{run_dir} belongs to a run of another recipe: {changed}. Go on with that recipe, or "
            "choose another run directory"
        )
    return resolved, tokenizer


def fingerprint(mixture: Mixture) -> str:
    """A digest of the rows that are admitted; of equal views, equal on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for number, part in enumerate(mixture.parts):
        if number:
            digest.update(_BETWEEN_TABLES)
        digest.update(part.index.rows.astype("<i8").tobytes())
    return digest.hexdigest()


def check_same_data(mixture: Mixture, digest: str, run_dir: Path) -> None:
    """Check that a run goes on with the rows that it began with.

    Raises:
        TrainingError: a view admits other rows than before.
    """
    if digest != fingerprint(mixture):
        tables = ", ".join(
            f"the {len(part.index)} of {part.index.table.uri}" for part in mixture.parts
        )
        raise TrainingError(
            f"{run_dir} was begun when other rows were admitted than today ({tables}): choose "
            "another run directory"
        )
