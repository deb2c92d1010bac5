"""From a recipe to the objects of a run: tokenizer, loaders, model, task."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from openblip.data.curation.flags import LEAKS, count_flagged
from openblip.data.loader import PairLoader
from openblip.data.mixture import WeightedIndex
from openblip.data.shuffle import keyed_hash
from openblip.data.table import PairTable
from openblip.data.text import clean_caption
from openblip.data.tokenizer import TextTokenizer
from openblip.data.transforms import Augmentation
from openblip.errors import CheckpointError, DataError, OpenBlipWarning, RecipeError
from openblip.interop.folder import read_folder
from openblip.model import Med, MedConfig
from openblip.model.albef import Albef, AlbefConfig
from openblip.model.vqa import Vqa
from openblip.tasks.albef import AlbefObjectives, AlbefTask
from openblip.tasks.captioner import CaptionerObjectives, CaptionerTask
from openblip.tasks.clip import ClipObjectives, ClipTask
from openblip.tasks.contrastive import ContrastObjectives
from openblip.tasks.filter import FilterObjectives, FilterTask
from openblip.tasks.pretrain import PretrainObjectives, PretrainTask
from openblip.tasks.protocol import AnyTask, Student
from openblip.training.config import DataConfig, ModelConfig, ModelOverrides, Recipe
from openblip.training.distributed import Processes

# Tells the random numbers of fresh weights from those of the steps.
_FRESH_WEIGHTS = 0
SizesT = TypeVar("SizesT", bound=MedConfig | AlbefConfig)

# Texts are padded to multiples of this.
_PADDING = 8


def open_tables(data: DataConfig) -> tuple[PairTable, ...]:
    """The tables of `data.mixture`, in its order; one that occurs twice is opened once.

    Raises:
        DataError: there is no such table.
    """
    uris = [part.table for part in data.mixture]
    opened = {uri: PairTable.open(uri) for uri in dict.fromkeys(uris)}
    return tuple(opened[uri] for uri in uris)


def make_tokenizer(recipe: Recipe, tables: Sequence[PairTable]) -> TextTokenizer:
    """The tokenizer that a recipe asks for, learnt from the views' captions if it says so.

    Raises:
        DataError: the file is no tokenizer, or a view is empty.
    """
    if recipe.init_from is not None:
        return read_folder(Path(recipe.init_from)).tokenizer
    size = recipe.trained_vocabulary
    if size is not None:
        return TextTokenizer.train(_captions(recipe.data, tables), size)
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


def build_model(recipe: Recipe) -> Med | Albef:
    """The student: fresh weights that depend on the seed alone, or those of `init_from`.

    All heads of a model that is fine-tuned are kept, trained or not, so that what comes out can
    do what it could before. Its positions are interpolated to the image size of the data.
    """
    state: dict[str, torch.Tensor] | None = None
    config: ModelConfig
    if recipe.init_from is not None:
        loaded = _trainable(recipe)
        loaded.resize_images(recipe.data.image_size)
        state, config = loaded.state_dict(), loaded.config
    else:
        assert recipe.model is not None, "a recipe has a model or init_from"
        config = recipe.model
    config = _overridden(config, recipe.overrides)
    _check_text_length(recipe.data, config)
    with _fresh_weights(recipe.train.seed):
        model = Albef(config) if isinstance(config, AlbefConfig) else Med(config)
    if state is not None:
        model.load_state_dict(state)
    return model


def _trainable(recipe: Recipe) -> Med | Albef:
    """The model that a recipe starts from."""
    assert recipe.init_from is not None
    loaded = read_folder(Path(recipe.init_from))
    if recipe.task == "albef":
        if not isinstance(loaded.model, Albef):
            raise CheckpointError(f"{loaded.source}: a {loaded.kind} model; give one of ALBEF")
        return loaded.model
    return loaded.med


def build_task(
    recipe: Recipe, model: Med | Albef, tokenizer: TextTokenizer, processes: Processes
) -> AnyTask:
    """The task around the student, on the device of this process, in training mode."""
    special, seed = tokenizer.special, recipe.train.seed
    task: AnyTask
    match recipe.objectives:
        case AlbefObjectives() as objectives:
            assert isinstance(model, Albef)
            task = AlbefTask(model, special, objectives, seed, processes)
        case objectives:
            assert isinstance(model, Med)
            task = _med_task(recipe, objectives, model, tokenizer, processes)
    return task.to(processes.device).train()


def _med_task(
    recipe: Recipe,
    objectives: PretrainObjectives | ClipObjectives | CaptionerObjectives,
    med: Med,
    tokenizer: TextTokenizer,
    processes: Processes,
) -> AnyTask:
    special, seed = tokenizer.special, recipe.train.seed
    match objectives:
        case FilterObjectives():
            return FilterTask(med, special, objectives, seed, processes)
        case PretrainObjectives():
            return PretrainTask(med, special, objectives, seed, processes)
        case ClipObjectives():
            return ClipTask(med, objectives, processes)
        case CaptionerObjectives():
            prompt = _prompt_tokens(recipe.data, tokenizer)
            return CaptionerTask(med, special, prompt, objectives.label_smoothing)


def training_loader(
    recipe: Recipe, tables: Sequence[PairTable], tokenizer: TextTokenizer, processes: Processes
) -> PairLoader:
    """Batches to learn from: one accumulated part of one process at a time.

    Raises:
        DataError: a view is empty, or an epoch smaller than one batch.
        RecipeError: the batch cannot be divided, or the queue is longer than the data.
    """
    size = recipe.train.part_size(processes.world_size)
    parts = _resolved(recipe.data, tables)
    loader = _loader(recipe, recipe.data.augmentation, parts, tokenizer, processes, size)
    num_rows, num_pairs = loader.mixture.num_rows, int(loader.mixture.pairs_per_epoch)
    where = ", ".join(dict.fromkeys(table.uri for table in tables))
    if num_pairs < recipe.train.batch_size:
        raise RecipeError(
            f"train.batch_size is {recipe.train.batch_size}, but an epoch has only {num_pairs} "
            f"rows of {where}: set train.batch_size <= {num_pairs}"
        )
    _warn_of_leaks(parts)
    objectives, queue_size = recipe.objectives, 0
    if isinstance(objectives, ContrastObjectives) and "itc" in objectives.losses:
        queue_size = objectives.queue_size
    # A longer queue would hold a pair twice and contrast it with itself.
    if queue_size > num_rows:
        raise RecipeError(
            f"objectives.queue_size is {queue_size}, but the view admits only "
            f"{num_rows} rows of {where}: set objectives.queue_size <= {num_rows}"
        )
    return loader


def _warn_of_leaks(parts: Sequence[WeightedIndex]) -> None:
    for index in (part.index for part in parts):
        leaking = count_flagged(index.table, LEAKS, index.rows)
        if leaking:
            warnings.warn(
                f"{leaking:,} of the {len(index):,} training images of {index.table.uri} stand in "
                "an evaluation split, as `openblip data leakage` has found: a view with "
                "`without` leaks (--data.view.without leaks) leaves them out",
                OpenBlipWarning,
                stacklevel=2,
            )


def validation_loader(
    recipe: Recipe, tables: Sequence[PairTable], tokenizer: TextTokenizer, processes: Processes
) -> PairLoader | None:
    """Batches of the validation split without augmentation; None if the recipe names no split.

    They are as large as those of training, or as the split allows. Of a mixture, the tables take
    part that have such rows, each row once.

    Raises:
        DataError: no table has rows in the split, or there are fewer than processes.
    """
    split = recipe.data.validation_split
    if split is None:
        return None
    parts, failures = [], []
    for part, table in zip(recipe.data.mixture, tables, strict=True):
        try:
            parts.append(WeightedIndex(replace(part.view, split=split).resolve(table)))
        except DataError as error:
            failures.append(error)
    if not parts:
        raise failures[0]
    available = sum(len(part.index) for part in parts) // processes.world_size
    size = max(1, min(recipe.train.part_size(processes.world_size), available))
    return _loader(recipe, None, parts, tokenizer, processes, size)


def _as_read(recipe: Recipe, tokenizer: TextTokenizer) -> TextTokenizer:
    """The tokenizer as the task's model reads texts: those of ALBEF have no `[SEP]`."""
    return tokenizer.without_end() if recipe.task == "albef" else tokenizer


def compile_parts(model: Student, **options: Any) -> None:
    """Let the image encoder and the text stack of a model be compiled at their first use.

    Args:
        model: changed in place; names in its state stay as they are.
        options: of `torch.compile`.
    """
    parts = (model.question, model.answer) if isinstance(model, Vqa) else (model.text,)
    for part in (model.image_encoder, *parts):
        part.compile(**options)


def _resolved(data: DataConfig, tables: Sequence[PairTable]) -> list[WeightedIndex]:
    return [
        WeightedIndex(part.view.resolve(table), part.weight)
        for part, table in zip(data.mixture, tables, strict=True)
    ]


def _loader(
    recipe: Recipe,
    augmentation: Augmentation | None,
    parts: Sequence[WeightedIndex],
    tokenizer: TextTokenizer,
    processes: Processes,
    batch_size: int,
) -> PairLoader:
    data = recipe.data
    return PairLoader(
        parts,
        _as_read(recipe, tokenizer),
        batch_size,
        data.image_size,
        augmentation,
        data.max_tokens,
        recipe.train.seed,
        rank=processes.rank,
        world_size=processes.world_size,
        num_threads=data.num_threads,
        prefix=data.prefix,
        max_words=data.max_words,
        pin_memory=processes.device.type == "cuda",
    )


def _captions(data: DataConfig, tables: Sequence[PairTable]) -> Iterator[str]:
    for part in _resolved(data, tables):
        rows = part.index.rows
        for start in range(0, len(rows), 8192):
            for texts in part.index.captions_of_rows(rows[start : start + 8192]):
                yield from (data.prefix + clean_caption(text, data.max_words) for text in texts)


def _sized(config: SizesT, image_size: int, vocab_size: int) -> SizesT:
    return replace(
        config,
        vision=replace(config.vision, image_size=image_size),
        text=replace(config.text, vocab_size=vocab_size),
    )


def _overridden(config: SizesT, overrides: ModelOverrides) -> SizesT:
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


def _check_text_length(data: DataConfig, config: ModelConfig) -> None:
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
