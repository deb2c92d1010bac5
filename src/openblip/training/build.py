"""From a recipe to the objects of a run: tokenizer, model, task.

A run trains a fresh model, one that was trained before, or one made out of it.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch

from openblip.batches.shuffle import keyed_hash
from openblip.batches.text import Cleaning
from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.assembly import build_empty
from openblip.checkpoints.beginnings import (
    KeyReport,
    begin_images,
    begin_text,
    image_sizes,
    text_sizes,
    text_tokenizer,
)
from openblip.checkpoints.families import family_of
from openblip.checkpoints.reading import find_model, read_model, read_outline
from openblip.model import Med, MedConfig
from openblip.model.albef import Albef
from openblip.model.backbones import BackboneEncoder, settled, undrawn
from openblip.model.config import AlbefConfig
from openblip.model.lowrank import adapt, low_rank_layers
from openblip.model.vqa import NlvrConfig, VqaConfig
from openblip.objectives.named import find_task, task_name
from openblip.objectives.task import AnyTask, Collectives, Student, TaskContext
from openblip.runtime.errors import CheckpointError, OpenBlipWarning, RecipeError
from openblip.runtime.references import is_reference
from openblip.table.table import PairTable
from openblip.training.loaders import resolved_parts
from openblip.training.parallelism import Processes, shard
from openblip.training.recipe import DataConfig, LoraConfig, ModelOverrides, Recipe

# Tell the random numbers of fresh weights, the student's and a task's own, from those of the steps.
_FRESH_WEIGHTS, _FRESH_TASK = 0, 4
StudentConfig = MedConfig | AlbefConfig | VqaConfig | NlvrConfig

SizesT = TypeVar("SizesT", bound=StudentConfig)

# Texts are padded to multiples of this.
_PADDING = 8


def make_tokenizer(recipe: Recipe, tables: Sequence[PairTable]) -> TextTokenizer:
    """The tokenizer that a recipe asks for, learnt from the views' captions if it says so.

    Raises:
        DataError: the file is no tokenizer, or a view is empty.
    """
    if recipe.init_from is not None:
        return read_outline(find_model(recipe.init_from)).tokenizer
    if recipe.init_text is not None:
        return text_tokenizer(recipe.init_text)
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
    config = sized(recipe.model, recipe.data.image_size, tokenizer.vocab_size)
    return replace(recipe, model=begun_sizes(recipe, config))


def begun_sizes(recipe: Recipe, config: SizesT) -> SizesT:
    """The configuration with the sizes of what a fresh model begins with, or of its backbone."""
    vision, text = config.vision, config.text
    if recipe.init_text is not None:
        text = text_sizes(recipe.init_text, text)
    vision = (
        settled(vision) if recipe.init_image is None else image_sizes(recipe.init_image, vision)
    )
    return replace(config, vision=vision, text=text)


def build_model(
    recipe: Recipe, processes: Processes, reports: list[KeyReport] | None = None
) -> Student:
    """The student: fresh weights that depend on the seed alone, or those of `init_from`.

    `init_image` and `init_text` take the place of fresh weights; what became of their keys is
    added to `reports`.

    Where the processes divide it, the first one alone has the weights; that of the others is on
    the meta device until `build_task` divides it.

    All heads of a model that is fine-tuned are kept, trained or not, so that what comes out can
    do what it could before. Its positions are interpolated to the image size of the data. With
    `lora.rank` it is frozen but for low-rank changes.
    """
    state: dict[str, torch.Tensor] | None = None
    config: StudentConfig
    if recipe.init_from is not None:
        loaded = starting_model(recipe)
        loaded.resize_images(recipe.data.image_size)
        family, config, state = family_of(loaded), loaded.config, loaded.state_dict()
    else:
        assert recipe.model is not None, "a recipe has a model or init_from"
        family, config = family_of(recipe.model), recipe.model
    config = overridden(config, recipe.overrides)
    _check_text_length(recipe.data, config)
    if recipe.train.sharding == "full" and not processes.is_first:
        return build_empty(lambda: _adapted(family.model(config), recipe.lora))
    with _fresh_weights(recipe.train.seed, _FRESH_WEIGHTS):
        model: Student = family.model(config)
        if state is not None:
            model.load_state_dict(state)
        begun = _begin(recipe, model)
        if reports is not None:
            reports += begun
        return with_frozen_parts(_adapted(model, recipe.lora), recipe)


def with_frozen_parts(model: Student, recipe: Recipe) -> Student:
    """The model, changed in place so that what `train.freeze` names stays as it is.

    Raises:
        RecipeError: `lora` changes such a part.
    """
    if "image_encoder" not in recipe.train.freeze:
        return model
    if any(name.startswith("image_encoder.") for name, _ in low_rank_layers(model)):
        raise RecipeError(
            "lora.targets name layers of the image encoder, which train.freeze leaves as they "
            "are: name those of the text stack, such as text"
        )
    if _is_untrained(recipe, model):
        warnings.warn(
            "train.freeze: the image encoder has random weights, and nothing will train them. "
            "Give --init-image, --init-from, or a backbone that comes with its weights",
            OpenBlipWarning,
            stacklevel=2,
        )
    model.freeze_images()
    return model


def _is_untrained(recipe: Recipe, model: Student) -> bool:
    """Whether nobody has trained the image encoder."""
    if recipe.init_from is not None or recipe.init_image is not None:
        return False
    encoder, name = model.image_encoder, model.config.vision.backbone
    if not isinstance(encoder, BackboneEncoder) or name is None or not is_reference(name):
        return True
    # A module of somebody may come with weights: then another one has the same.
    other = undrawn(name).state_dict()
    own = encoder.backbone.state_dict()
    return any(not torch.equal(weight.cpu(), other[key]) for key, weight in own.items())


def _begin(recipe: Recipe, model: Student) -> list[KeyReport]:
    """What became of the keys of the weights that a fresh model begins with; puts them there."""
    reports = []
    if recipe.init_image is not None:
        reports.append(begin_images(model.image_encoder, recipe.init_image))
    if recipe.init_text is not None:
        assert isinstance(model, Med | Albef), "a task with fresh weights"
        tokenizer = text_tokenizer(recipe.init_text)
        reports.append(begin_text(model.text, recipe.init_text, tokenizer))
    return reports


def _adapted(model: Student, lora: LoraConfig) -> Student:
    """The model, of which only changes are trained if the recipe says so."""
    if lora.rank:
        adapt(model, lora.rank, lora.alpha, lora.targets, lora.trained)
    return model


def build_task(
    recipe: Recipe, model: Student, tokenizer: TextTokenizer, processes: Processes
) -> AnyTask:
    """The task around the student, on the device of this process, in training mode.

    With `train.sharding` "full" it is divided among the processes.
    """
    task = assemble_task(recipe, model, tokenizer, processes)
    if recipe.train.sharding == "full":
        shard(task, processes)
    return task.to(processes.device).train()


def assemble_task(
    recipe: Recipe, model: Student, tokenizer: TextTokenizer, collectives: Collectives
) -> AnyTask:
    """The task around the student, where the student is; weights of its own follow from the seed.

    Raises:
        RecipeError: it has another student than the one it was given, or does not say which of its
            heads are trained: nobody would be warned of those that are not.
    """
    name, seed = task_name(recipe.task), recipe.train.seed
    prompt = _prompt_tokens(recipe.data, tokenizer)
    context = TaskContext(
        tokenizer=tokenizer, collectives=collectives, seed=seed, prompt_tokens=prompt
    )
    with _fresh_weights(seed, _FRESH_TASK):
        task = find_task(name).build(model, recipe.objectives, context)
    if getattr(task, "student", None) is not model:
        raise RecipeError(f"task {name}: its `student` is not the model that it was built with")
    heads = getattr(model.config, "heads", ())
    if heads and not (task.trained_heads and set(task.trained_heads) <= set(heads)):
        raise RecipeError(
            f"task {name}: its `trained_heads` are {task.trained_heads!r}; name those of "
            f"{', '.join(heads)} that its loss reaches"
        )
    return task


def compile_stacks(model: Student, **options: Any) -> None:
    """Let the image encoder and the text stack of a model be compiled at their first use.

    Args:
        model: changed in place; names in its state stay as they are.
        options: of `torch.compile`.
    """
    for name in ("image_encoder", *family_of(model).text_parts):
        getattr(model, name).compile(**options)


def _captions(data: DataConfig, tables: Sequence[PairTable]) -> Iterator[str]:
    # What is learnt here lowers case.
    clean = Cleaning(lowercases=True).caption
    for part in resolved_parts(data, tables):
        rows = part.index.rows
        for start in range(0, len(rows), 8192):
            for texts in part.index.captions_of_rows(rows[start : start + 8192]):
                # With the prefix, whose words the vocabulary must have too.
                yield from (data.prefix + clean(text, data.max_words) for text in texts)


def sized(config: SizesT, image_size: int, vocab_size: int) -> SizesT:
    """The configuration for images and a vocabulary of those sizes."""
    return replace(
        config,
        vision=replace(config.vision, image_size=image_size),
        text=replace(config.text, vocab_size=vocab_size),
    )


def overridden(config: SizesT, overrides: ModelOverrides) -> SizesT:
    """The configuration with a recipe's changes that leave the weights as they are."""
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


def _check_text_length(data: DataConfig, config: StudentConfig) -> None:
    padded = -(-data.longest // _PADDING) * _PADDING
    positions = config.text.max_positions
    if padded > positions:
        given = f" and of given texts {data.given_tokens + 1}" if data.given else ""
        raise RecipeError(
            f"data.max_tokens is {data.max_tokens}{given}, {padded} with padding, but the model "
            f"has {positions} positions (model.text.max_positions): "
            f"{_lengths_for(positions, data)} fits"
        )


def _lengths_for(positions: int, data: DataConfig) -> str:
    """Flags of text lengths that a model with so many positions has room for."""
    room = positions // _PADDING * _PADDING
    if not data.given:
        return f"--data.max-tokens {room}"
    # The caption's tokens stay as they are where that leaves a given text something.
    caption = data.max_tokens if data.max_tokens <= 3 * room // 4 else room // 2
    flags = f"--data.given-tokens {room - caption - 1}"
    return flags if caption == data.max_tokens else f"{flags} --data.max-tokens {caption}"


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
def _fresh_weights(seed: int, purpose: int) -> Iterator[None]:
    """The global generator, which modules draw their weights from, as the seed decides."""
    with torch.random.fork_rng([]):
        # The processor's alone: `torch.manual_seed` would change those of accelerators for good.
        torch.default_generator.manual_seed(keyed_hash(seed, purpose))
        yield


def starting_model(recipe: Recipe) -> Student:
    """The model that a recipe's `init_from` gives its task.

    One for questions or for two images is made out of a pre-trained MED, or goes on from one of its
    own kind.

    Raises:
        CheckpointError: if it is another model, or cannot be read.
    """
    assert recipe.init_from is not None, "a recipe that starts from a model"
    loaded = read_model(find_model(recipe.init_from))
    student = find_task(task_name(recipe.task)).student_from(loaded.model)
    if student is None:
        raise CheckpointError(
            f"{loaded.source}: a {loaded.kind} model, which the task {recipe.task!r} cannot start "
            "from"
        )
    return student
