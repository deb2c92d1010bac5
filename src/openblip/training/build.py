"""From a recipe to the objects of a run: tokenizer, loaders, model, task."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openblip.data.curation.flags import LEAKS, count_flagged
from openblip.data.loader import PairLoader
from openblip.data.shuffle import keyed_hash
from openblip.data.table import PairTable
from openblip.data.text import clean_caption
from openblip.data.tokenizer import TextTokenizer
from openblip.data.transforms import Augmentation
from openblip.data.views import ViewIndex
from openblip.errors import OpenBlipWarning, RecipeError
from openblip.interop.folder import read_folder
from openblip.model import Med, MedConfig
from openblip.model.config import Head
from openblip.tasks.captioner import CaptionerTask
from openblip.tasks.filter import FilterObjectives, FilterTask
from openblip.tasks.pretrain import PretrainObjectives, PretrainTask
from openblip.tasks.protocol import Task
from openblip.training.config import DataConfig, ModelOverrides, Recipe
from openblip.training.distributed import Processes

# Tells the random numbers of fresh weights from those of the steps.
_FRESH_WEIGHTS = 0
# Texts are padded to multiples of this.
_PADDING = 8


def make_tokenizer(recipe: Recipe, table: PairTable) -> TextTokenizer:
    """The tokenizer that a recipe asks for, learnt from the view's captions if it says so.

    Raises:
        DataError: the file is no tokenizer, or the view is empty.
    """
    if recipe.init_from is not None:
        return read_folder(Path(recipe.init_from)).tokenizer
    size = recipe.trained_vocabulary
    if size is not None:
        return TextTokenizer.train(_captions(recipe.data, table), size)
    assert recipe.tokenizer is not None, "a recipe with a model has a tokenizer"
    return TextTokenizer.from_file(recipe.tokenizer)


def resolve(recipe: Recipe, tokenizer: TextTokenizer) -> Recipe:
    """The recipe with the sizes that tokenizer and data decide.

    Raises:
        RecipeError: if settings contradict each other.
    """
    if recipe.model is None:
        return recipe
    return replace(recipe, model=_sized(recipe.model, recipe.data.image_size, tokenizer.vocab_size))


def build_model(recipe: Recipe) -> Med:
    """The student: fresh weights that depend on the seed alone, or those of `init_from`.

    All heads of a model that is fine-tuned are kept, trained or not, so that what comes out can
    do what it could before. Its positions are interpolated to the image size of the data.
    """
    state: dict[str, torch.Tensor] | None = None
    if recipe.init_from is not None:
        loaded = read_folder(Path(recipe.init_from)).med
        loaded.resize_images(recipe.data.image_size)
        state, config = loaded.state_dict(), loaded.config
    else:
        assert recipe.model is not None, "a recipe has a model or init_from"
        config = recipe.model
    config = _overridden(config, recipe.overrides)
    _check_text_length(recipe.data, config)
    with _fresh_weights(recipe.train.seed):
        med = Med(config)
    if state is not None:
        med.load_state_dict(state)
    return med


def build_task(recipe: Recipe, med: Med, tokenizer: TextTokenizer, processes: Processes) -> Task:
    """The task around the student, on the device of this process, in training mode."""
    special, seed = tokenizer.special, recipe.train.seed
    task: Task
    match recipe.objectives:
        case FilterObjectives() as objectives:
            task = FilterTask(med, special, objectives, seed, processes)
        case PretrainObjectives() as objectives:
            task = PretrainTask(med, special, objectives, seed, processes)
        case objectives:
            prompt = _prompt_tokens(recipe.data, tokenizer)
            task = CaptionerTask(med, special, prompt, objectives.label_smoothing)
    return task.to(processes.device).train()


def losses_of(recipe: Recipe) -> tuple[Head, ...]:
    """The losses of a recipe's task; heads of the model beyond these are not trained."""
    objectives = recipe.objectives
    return objectives.losses if isinstance(objectives, PretrainObjectives) else ("lm",)


def training_loader(
    recipe: Recipe, table: PairTable, tokenizer: TextTokenizer, processes: Processes
) -> PairLoader:
    """Batches to learn from: one accumulated part of one process at a time.

    Raises:
        DataError: the view is empty, or smaller than one batch.
        RecipeError: the batch cannot be divided, or the queue is longer than the data.
    """
    size, seed = recipe.train.part_size(processes.world_size), recipe.train.seed
    data = recipe.data
    loader = _loader(data, data.augmentation, table, tokenizer, processes, size, seed)
    num_rows, objectives = len(loader.index), recipe.objectives
    if num_rows < recipe.train.batch_size:
        raise RecipeError(
            f"train.batch_size is {recipe.train.batch_size}, but the view admits only {num_rows} "
            f"rows of {table.uri}: set train.batch_size <= {num_rows}"
        )
    _warn_of_leaks(loader.index)
    queue_size = 0
    if isinstance(objectives, PretrainObjectives) and "itc" in objectives.losses:
        queue_size = objectives.queue_size
    # A longer queue would hold a pair twice and contrast it with itself.
    if queue_size > num_rows:
        raise RecipeError(
            f"objectives.queue_size is {queue_size}, but the view admits only "
            f"{num_rows} rows of {table.uri}: set objectives.queue_size <= {num_rows}"
        )
    return loader


def _warn_of_leaks(index: ViewIndex) -> None:
    leaking = count_flagged(index.table, LEAKS, index.rows)
    if leaking:
        warnings.warn(
            f"{leaking:,} of the {len(index):,} training images stand in an evaluation split, as "
            "`openblip data leakage` has found: --data.view.without leaks leaves them out",
            OpenBlipWarning,
            stacklevel=2,
        )


def validation_loader(
    recipe: Recipe, table: PairTable, tokenizer: TextTokenizer, processes: Processes
) -> PairLoader | None:
    """Batches of the validation split without augmentation; None if the recipe names no split.

    They are as large as those of training, or as the split allows.

    Raises:
        DataError: the split has no rows, or fewer than there are processes.
    """
    if recipe.data.validation_split is None:
        return None
    view = replace(recipe.data.view, split=recipe.data.validation_split)
    available = len(view.resolve(table)) // processes.world_size
    size = max(1, min(recipe.train.part_size(processes.world_size), available))
    data = replace(recipe.data, view=view)
    return _loader(data, None, table, tokenizer, processes, size, recipe.train.seed)


def compile_parts(med: Med, **options: Any) -> None:
    """Let the image encoder and the text stack of a model be compiled at their first use.

    Args:
        med: changed in place; names in its state stay as they are.
        options: of `torch.compile`.
    """
    med.image_encoder.compile(**options)
    med.text.compile(**options)


def _loader(
    data: DataConfig,
    augmentation: Augmentation | None,
    table: PairTable,
    tokenizer: TextTokenizer,
    processes: Processes,
    batch_size: int,
    seed: int,
) -> PairLoader:
    return PairLoader(
        table,
        data.view,
        tokenizer,
        batch_size,
        data.image_size,
        augmentation,
        data.max_tokens,
        seed,
        rank=processes.rank,
        world_size=processes.world_size,
        num_threads=data.num_threads,
        prefix=data.prefix,
        max_words=data.max_words,
        pin_memory=processes.device.type == "cuda",
    )


def _captions(data: DataConfig, table: PairTable) -> Iterator[str]:
    index = data.view.resolve(table)
    for start in range(0, len(index), 8192):
        for texts in index.captions_of_rows(index.rows[start : start + 8192]):
            yield from (data.prefix + clean_caption(text, data.max_words) for text in texts)


def _sized(config: MedConfig, image_size: int, vocab_size: int) -> MedConfig:
    return replace(
        config,
        vision=replace(config.vision, image_size=image_size),
        text=replace(config.text, vocab_size=vocab_size),
    )


def _overridden(config: MedConfig, overrides: ModelOverrides) -> MedConfig:
    vision = {
        "drop_path": overrides.drop_path,
        "checkpoint_layers": overrides.vision_checkpoint_layers,
    }
    text = {"dropout": overrides.dropout, "checkpoint_layers": overrides.text_checkpoint_layers}
    given_vision: dict[str, Any] = {k: v for k, v in vision.items() if v is not None}
    given_text: dict[str, Any] = {k: v for k, v in text.items() if v is not None}
    return replace(
        config,
        vision=replace(config.vision, **given_vision),
        text=replace(config.text, **given_text),
    )


def _check_text_length(data: DataConfig, config: MedConfig) -> None:
    padded = -(-data.max_tokens // _PADDING) * _PADDING
    if padded > config.text.max_positions:
        raise RecipeError(
            f"data.max_tokens is {data.max_tokens}, {padded} with padding, but the model has "
            f"{config.text.max_positions} positions (model.text.max_positions): lower the former"
        )


def _prompt_tokens(data: DataConfig, tokenizer: TextTokenizer) -> int:
    """Tokens of the prefix with the first, special one, without `[SEP]`."""
    num_tokens = int(tokenizer.encode([data.prefix], data.max_tokens).mask.sum()) - 1
    if num_tokens + 2 > data.max_tokens:
        raise RecipeError(
            f"data.prefix {data.prefix!r} leaves no room for a caption within data.max_tokens = "
            f"{data.max_tokens}: give more"
        )
    return num_tokens


@contextmanager
def _fresh_weights(seed: int) -> Iterator[None]:
    """The global generator, which modules draw their weights from, as the seed decides."""
    with torch.random.fork_rng([]):
        torch.manual_seed(keyed_hash(seed, _FRESH_WEIGHTS))
        yield
