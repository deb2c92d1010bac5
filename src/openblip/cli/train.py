"""`openblip pretrain` and `openblip finetune`."""

import sys
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.cli.flags import changed, given_fields
from openblip.cli.output import announce, check_outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from openblip.training.recipe import Recipe

_HELP = {"-h", "--help"}

_PRETRAIN_HELP = """Train a MED from scratch: RECIPE is tiny, small, base, large, or a recipe.yaml
(which names its table: another one may follow it); clip and albef train those models, and
module:recipe what a function of your own says (docs/api.md).

The same command goes on with a run that was stopped. Several processes: torchrun
--nproc-per-node=8 -m openblip pretrain ... Example:
openblip pretrain tiny pairs.lance runs/noisy --train.steps 2000
openblip pretrain tiny pairs.lance runs/new --data.view.sources human web synthetic
--data.view.itm 0.5
openblip pretrain base human.lance runs/mixed --data.weight 2 --data.mix web.lance
--data.mix.0.weight 0.5 --data.mix.0.view.sources web synthetic"""

_FINETUNE_HELP = """Fine-tune a pre-trained MED on human captions: TASK is captioner, filter,
retrieval (as the filter, at 384 px), shared (one model that retrieves and captions), vqa
(questions in the rows' meta), nlvr (sentences about two images), or module:recipe, a function of
your own. MODEL is a folder (ours or of
transformers), a run, an original .pth file or its address, or a name of the Hugging Face hub.

The same command goes on with a run that was stopped. Example:
openblip finetune captioner pairs.lance runs/captioner --init-from runs/noisy --train.epochs 5
openblip finetune captioner pairs.lance runs/rewriter --init-from runs/noisy --given web
openblip finetune retrieval pairs.lance runs/low-rank --init-from runs/noisy --lora.rank 8
--optimiser.lr 2e-4"""


def pretrain(words: list[str], prog: str) -> int:
    """Train from a recipe of that name or file, with overrides."""
    usage = f"{prog} RECIPE TABLE RUN_DIR [overrides]"
    name, rest = _positionals(words, 1, usage, _PRETRAIN_HELP)
    if name and name[0].endswith((".yaml", ".yml")):
        from openblip.training.recipe_file import read_recipe

        usage = f"{prog} FILE.yaml [TABLE] RUN_DIR [overrides]"
        recipe = read_recipe(Path(name[0]))
        # The recipe names a table; one that stands here takes its place.
        is_given = len(rest) > 1 and not rest[1].startswith("-")
        given, rest = _positionals(rest, 1 + is_given, usage, _PRETRAIN_HELP, name)
        if is_given:
            recipe = replace(recipe, data=replace(recipe.data, table=given[0]))
        return _pretrain(recipe, given[-1], rest, prog)
    (table, run_dir), rest = _positionals(rest, 2, usage, _PRETRAIN_HELP, name)
    from openblip.recipes.pretrain import PRETRAIN_RECIPES

    recipe = _named(name[0], PRETRAIN_RECIPES, "recipe", table)
    return _pretrain(recipe, run_dir, rest, prog)


def _pretrain(recipe: "Recipe", run_dir: str, words: list[str], prog: str) -> int:
    recipe = _flagged(recipe, words, prog, _PRETRAIN_HELP)
    announce(prog)
    return _train(recipe, Path(run_dir), words)


def finetune(words: list[str], prog: str) -> int:
    """Fine-tune a model of any layout for a task, with overrides."""
    usage = f"{prog} TASK TABLE RUN_DIR --init-from MODEL [overrides]"
    (task, table, run_dir), rest = _positionals(words, 3, usage, _FINETUNE_HELP)
    from openblip.recipes.finetune import FINETUNE_RECIPES

    # The flags are shown without a model, whose size of images stands at that of the paper.
    recipe = _named(task, FINETUNE_RECIPES, "task", table, "MODEL", 384)
    if _HELP & set(rest):
        _flagged(recipe, rest, prog, _FINETUNE_HELP)
    # What is given decides what is learnt, so that it has a name for itself.
    rest = [f"--data.{word[2:]}" if word.split("=")[0] == "--given" else word for word in rest]
    source, rest = _take_flag(rest, "--init-from", usage)
    announce(prog)
    from openblip.checkpoints.reading import find_model, read_outline

    found = find_model(source)
    size = read_outline(found).image_size
    recipe = _named(task, FINETUNE_RECIPES, "task", table, str(found), size)
    return _train(_flagged(recipe, rest, prog, _FINETUNE_HELP), Path(run_dir), rest)


def _flagged(recipe: "Recipe", words: list[str], prog: str, about: str) -> "Recipe":
    """The recipe with the changes of a command line; prints its help where that is asked for."""
    recipe, words = _take_mix(recipe, words)
    return changed(recipe, words, prog, about)


def _train(recipe: "Recipe", run_dir: Path, words: list[str]) -> int:
    from openblip.training.checkpoint import CheckpointStore
    from openblip.training.ignored import refuse_ignored
    from openblip.training.run import train
    from openblip.training.run_dir import CHECKPOINT_FOLDER, check_run_dir

    check_outputs({"RUN_DIR": run_dir}, are_folders=True)
    check_run_dir(run_dir)
    # A run that was begun goes on as it was.
    if CheckpointStore(run_dir / CHECKPOINT_FOLDER).latest() is None:
        refuse_ignored(recipe, given_fields(words))
    result = train(recipe, run_dir)
    for first, end in result.skipped:
        print(f"{run_dir}: left out steps {first} to {end - 1}, see its metrics.jsonl")
    if result.interrupted:
        print(f"{run_dir}: stopped at step {result.steps}; the same command goes on")
        return 130
    print(
        f"{run_dir}: {result.steps} steps in {result.seconds:.0f} s; model: {result.model_folder}"
    )
    return 0


def _take_mix(recipe: "Recipe", words: list[str]) -> tuple["Recipe", list[str]]:
    """The recipe with the tables that follow `--data.mix`, at the view of the first, and the rest.

    Afterwards there are flags for the view and the weight of each, `--data.mix.0.weight` first.
    """
    from openblip.training.recipe import MixedTable

    if "--data.mix" not in words:
        return recipe, words
    begin = words.index("--data.mix")
    tables = list(takewhile(lambda word: not word.startswith("-"), words[begin + 1 :]))
    mix = tuple(MixedTable(table=table, view=recipe.data.view) for table in tables)
    rest = words[:begin] + words[begin + 1 + len(tables) :]
    return replace(recipe, data=replace(recipe.data, mix=mix)), rest


def _positionals(
    words: list[str], count: int, usage: str, about: str, before: list[str] | None = None
) -> tuple[list[str], list[str]]:
    """The first `count` words and the rest; prints help or a usage error where they are not."""
    found = words[:count]
    if _HELP & set(found) or (not words and not before):
        print(
            f"usage: {usage}\n\n{about}\n\nWith the positional words given, --help lists all flags."
        )
        raise SystemExit(0 if words else 2)
    if len(found) < count or any(word.startswith("-") for word in found):
        print(f"usage: {usage}", file=sys.stderr)
        raise SystemExit(2)
    return found, words[count:]


def _take_flag(words: list[str], flag: str, usage: str) -> tuple[str, list[str]]:
    for place, word in enumerate(words):
        if word == flag and place + 1 < len(words):
            return words[place + 1], words[:place] + words[place + 2 :]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}="), words[:place] + words[place + 1 :]
    print(f"{flag} is needed: the model to start from\nusage: {usage}", file=sys.stderr)
    raise SystemExit(2)


def _named(
    name: str, choices: "dict[str, Callable[..., Recipe]]", what: str, *given: Any
) -> "Recipe":
    """The recipe of one of the choices or of `module:recipe`."""
    from openblip.recipes import named_recipe
    from openblip.runtime.references import is_reference

    if name not in choices and not is_reference(name):
        import difflib

        near = difflib.get_close_matches(name, choices, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        print(f"no {what} {name!r}{hint} There are: {', '.join(choices)}", file=sys.stderr)
        raise SystemExit(2)
    return named_recipe(name, choices, *given)
