"""From a recipe to the batches of a run."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from openblip.batches.augmentation import Augmentation
from openblip.batches.corruption import Corruptions
from openblip.batches.image_pairs import ImagePairIndex, ImagePairLoader
from openblip.batches.image_states import (
    STATES_FOLDER,
    ImageStates,
    RowStates,
    encoder_fingerprint,
    states_of_rows,
)
from openblip.batches.loader import MadeTexts, PairLoader
from openblip.batches.mixture import WeightedIndex
from openblip.batches.questions import QuestionIndex, QuestionLoader
from openblip.batches.step_loader import AnyLoader, StatesOf, smaller_batch
from openblip.batches.tokenizer import TextTokenizer
from openblip.batches.unknown_words import TextSample
from openblip.objectives.settings import ContrastObjectives, FilterObjectives
from openblip.objectives.task import Student
from openblip.runtime.errors import DataError, OpenBlipWarning, RecipeError
from openblip.sources.row_images import check_reachable
from openblip.table.flags import LEAKS, count_flagged
from openblip.table.storage import is_object_address
from openblip.table.table import PairTable
from openblip.training.parallelism import Processes
from openblip.training.recipe import DataConfig, Recipe

# Whose texts are looked at before a run begins: a tenth of a second.
_SAMPLED_EXAMPLES = 2048


def open_tables(data: DataConfig) -> tuple[PairTable, ...]:
    """The tables of `data.mixture`, in its order; one that occurs twice is opened once.

    Raises:
        DataError: there is no such table.
        MissingExtra: images lie in an object store, and its packages are not installed.
    """
    uris = [part.table for part in data.mixture]
    # Opened twice while rows are appended, a table would be of two versions in one run.
    opened = {uri: PairTable.open(uri) for uri in dict.fromkeys(uris)}
    for table in opened.values():
        check_reachable(table)
    return tuple(opened[uri] for uri in uris)


def share_verdicts(data: DataConfig, tables: Sequence[PairTable], processes: Processes) -> None:
    """Let every process, and every view of a run, see the verdicts that the first one reads now.

    People review while a run starts. Were the log read by each process, and again for validation,
    some would have a row more than others, and with another number of rows another order: ranks
    would learn from pairs that are not those of one batch. What is read here is in the run's
    `data_fingerprint`, so that a run which is resumed after further verdicts is told of them.

    Args:
        data: of the recipe.
        tables: those of `data.mixture`.
        processes: all must call this.

    Raises:
        DataError, StorageError: a log is damaged, or cannot be reached.
    """
    asking = [
        table
        for part, table in zip(data.mixture, tables, strict=True)
        if "reviewed" in part.view.sources
    ]
    # Every process reads, so that what is wrong with a log stops them all.
    read = {table.uri: table.verdicts() for table in asking}
    # The first one's alone are sent: a log may be long, and all would send theirs to all.
    first = processes.gather_objects(read if processes.is_first else None)[0]
    for table in asking:
        table.fix_verdicts(first[table.uri])


def training_loader(
    recipe: Recipe, tables: Sequence[PairTable], tokenizer: TextTokenizer, processes: Processes
) -> AnyLoader:
    """Batches to learn from: one accumulated part of one process at a time.

    Raises:
        DataError: there are no examples, or fewer than one batch has.
        RecipeError: the batch cannot be divided, or pairs are fewer than one batch has.
    """
    size = recipe.train.part_size(processes.world_size)
    augmentation = recipe.data.augmentation
    if recipe.needs.examples != "pairs":
        split = recipe.data.view.split
        return _example_loader(recipe, augmentation, tables[0], split, tokenizer, processes, size)
    parts = resolved_parts(recipe.data, tables)
    # Before the loader, which does not know how many parts are accumulated.
    _check_sizes(recipe, parts, processes.world_size)
    loader = _pair_loader(recipe, augmentation, parts, tokenizer, processes, size)
    _warn_of_leaks(parts)
    return loader


def judged_texts(recipe: Recipe, loader: AnyLoader) -> TextSample:
    """What the vocabulary makes of the texts that are learnt from, or of a sample of them.

    Raises:
        DataError: more of the tokens are `[UNK]` than the recipe allows.
    """
    sample = loader.text_sample(_SAMPLED_EXAMPLES)
    share, most = sample.count.unknown_share, recipe.data.max_unknown
    if share > most:
        given = recipe.init_from or recipe.tokenizer
        raise DataError(
            f"{share:.0%} of the tokens to learn from are [UNK] ({sample.count.named}): the "
            f"vocabulary of {given} lacks these words, which would be learnt as one and the same. "
            "Start from a model whose vocabulary has them, or `openblip pretrain` one with "
            "--tokenizer train:8000; --data.max-unknown 1 goes on all the same"
        )
    return sample


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


def _check_sizes(recipe: Recipe, parts: Sequence[WeightedIndex], world_size: int) -> None:
    accumulate = recipe.train.accumulate
    num_pairs = int(sum(part.exact_weight * part.rows_per_pass for part in parts))
    # What is not accumulated the loader itself checks.
    if accumulate > 1 and num_pairs < recipe.train.batch_size:
        where = ", ".join(dict.fromkeys(part.index.table.uri for part in parts))
        raise RecipeError(
            f"train.batch_size is {recipe.train.batch_size}, but an epoch has only {num_pairs} "
            f"rows of {where}: {smaller_batch(num_pairs, world_size, accumulate)}"
        )


def with_fitting_queue(recipe: Recipe, num_rows: int) -> Recipe:
    """The recipe with a queue no longer than the data.

    A longer one would hold a pair twice and contrast it with itself.

    Args:
        recipe: of any task; one without a contrast stays as it is.
        num_rows: admitted rows of all tables.
    """
    objectives = recipe.objectives
    if not isinstance(objectives, ContrastObjectives):
        return recipe
    # A contrast from outside need not name its losses.
    if "itc" not in getattr(objectives, "losses", ("itc",)):
        return recipe
    if objectives.queue_size <= num_rows:
        return recipe
    return replace(recipe, objectives=replace(objectives, queue_size=num_rows))


def validation_loader(
    recipe: Recipe, tables: Sequence[PairTable], tokenizer: TextTokenizer, processes: Processes
) -> AnyLoader | None:
    """Batches of the validation split without augmentation; None if the recipe names no split.

    They are as large as those of training, or as the split allows. Of a mixture, the tables take
    part that have such rows, each row once.

    Raises:
        DataError: no table has rows in the split, or there are fewer than processes.
    """
    split = recipe.data.validation_split
    if split is None:
        return None
    part_size = recipe.train.part_size(processes.world_size)
    if recipe.needs.examples != "pairs":
        return _example_loader(recipe, None, tables[0], split, tokenizer, processes, part_size)
    parts, failures = [], []
    for part, table in zip(recipe.data.mixture, tables, strict=True):
        try:
            index = replace(part.view, split=split).resolve(table)
            # Each row once, whatever it weighs in training.
            parts.append(WeightedIndex(replace(index, weights=None)))
        except DataError as error:
            failures.append(error)
    if not parts:
        raise failures[0]
    available = sum(len(part.index) for part in parts) // processes.world_size
    size = max(1, min(part_size, available))
    return _pair_loader(recipe, None, parts, tokenizer, processes, size)


def frozen_states(recipe: Recipe, student: Student) -> StatesOf:
    """What finds, or computes, the states of a table's images by an encoder that is not trained.

    Args:
        recipe: with `train.freeze`.
        student: on the device that it is trained on.
    """
    size, vision = recipe.data.image_size, student.config.vision
    fingerprint = encoder_fingerprint(student.image_encoder, size)
    device = next(student.parameters()).device

    @torch.no_grad()
    def encode(images: torch.Tensor) -> torch.Tensor:
        return student.encode_images(images.to(device))

    def states_of(table: PairTable, rows: np.ndarray) -> RowStates:
        # By what the encoder is: states of another one are never taken for its own.
        folder = _states_folder(recipe.data, table) / fingerprint
        states = ImageStates(folder, (vision.num_patches, vision.width))
        return states_of_rows(states, table, rows, size, encode)

    return states_of


def _states_folder(data: DataConfig, table: PairTable) -> Path:
    given = data.states or os.environ.get(STATES_FOLDER)
    if given is None and is_object_address(table.uri):
        raise RecipeError(
            f"train.freeze keeps states of images on this machine, and {table.uri} is elsewhere: "
            "give data.states, a folder here"
        )
    return Path(given or f"{table.uri.rstrip('/')}.states")


def _as_read(recipe: Recipe, tokenizer: TextTokenizer) -> TextTokenizer:
    """The tokenizer as the task's model reads texts: those of ALBEF have no `[SEP]`."""
    return tokenizer if recipe.needs.ends_texts else tokenizer.without_end()


def resolved_parts(data: DataConfig, tables: Sequence[PairTable]) -> list[WeightedIndex]:
    """What the views of a mixture admit of its tables, with their weights.

    Raises:
        DataError: a view is empty.
    """
    return [
        WeightedIndex(part.view.resolve(table), part.weight)
        for part, table in zip(data.mixture, tables, strict=True)
    ]


def _pair_loader(
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
        # Pinned memory is for copies to a GPU beside its work; where there is none, it only makes
        # memory scarce.
        pin_memory=processes.device.type == "cuda",
        scaled_decoding=data.scaled_decoding,
        made=_made_texts(recipe, parts),
    )


def _made_texts(recipe: Recipe, parts: Sequence[WeightedIndex]) -> MadeTexts | None:
    """What a recipe asks to be made of human texts; None where that is nothing.

    Raises:
        RecipeError: the task writes no captions, or its texts have no end.
        DataError: a table has too few human texts.
    """
    objectives = recipe.objectives
    typed = objectives.typed_negatives if isinstance(objectives, FilterObjectives) else 0.0
    given = recipe.data.given_tokens if recipe.data.given else 0
    if given and recipe.task != "captioner":
        raise RecipeError(
            f"data.given is {recipe.data.given!r}, but the task {recipe.task} reads no given text; "
            "the captioner does"
        )
    if not (given or typed):
        return None
    seed = recipe.train.seed
    made = [Corruptions.of(part.index.table, seed) for part in parts]
    return MadeTexts(corruptions=made, given_tokens=given, typed_negatives=typed)


def _example_loader(
    recipe: Recipe,
    augmentation: Augmentation | None,
    table: PairTable,
    split: str,
    tokenizer: TextTokenizer,
    processes: Processes,
    batch_size: int,
) -> AnyLoader:
    """Batches of questions, or of sentences about two images; no more than there are at once."""
    data = recipe.data
    asks = recipe.needs.examples == "questions"
    index = (QuestionIndex if asks else ImagePairIndex).resolve(table, split)
    # This is validation, whose split may be smaller than a batch.
    if augmentation is None:
        batch_size = max(1, min(batch_size, len(index) // processes.world_size))
    images = (batch_size, data.image_size, augmentation)
    settings = (data.max_tokens, data.max_words, recipe.train.seed)
    pins = processes.device.type == "cuda"
    ranks = (processes.rank, processes.world_size, data.num_threads)
    if isinstance(index, QuestionIndex):
        return QuestionLoader(index, tokenizer, *images, *settings, *ranks, pin_memory=pins)
    return ImagePairLoader(index, tokenizer, *images, *settings, *ranks, pin_memory=pins)
