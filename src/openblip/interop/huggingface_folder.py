"""Folders in the Hugging Face layout: a model of `transformers` with its processor, both ways."""

from dataclasses import dataclass
from pathlib import Path

from openblip.atomic import replace_folder
from openblip.data.tokenizer import TOKENIZER_FILE, VOCABULARY_FILE, TextTokenizer
from openblip.data.wordpiece import TOKENIZER_CONFIG_FILE
from openblip.errors import CheckpointError, DataError
from openblip.interop.adapters import find_base, is_adapter, with_adapter
from openblip.interop.assembly import write_safetensors
from openblip.interop.folder import CONFIG_FILE, WEIGHTS_FILE, check_replaceable, read_json
from openblip.interop.huggingface import from_huggingface, to_huggingface
from openblip.interop.huggingface_config import check_readable, check_token_ids
from openblip.interop.huggingface_layout import TIED, HuggingFaceKind
from openblip.interop.huggingface_processor import (
    IMAGE_CONFIG_FILE,
    read_image_size,
    read_max_tokens,
    read_tokenizer,
    write_json,
    write_processor,
)
from openblip.interop.huggingface_weights import find_weights, read_weights
from openblip.interop.models import AnyModel, check_vocabulary, fit_vocabulary
from openblip.model.vqa import Vqa, VqaConfig

_WRITTEN = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    VOCABULARY_FILE,
    IMAGE_CONFIG_FILE,
)


@dataclass(frozen=True, kw_only=True)
class LoadedHuggingFace:
    """A folder of `transformers` in memory."""

    model: AnyModel
    """On the CPU, in training mode; what the layouts store alike is mapped from the file."""
    tokenizer: TextTokenizer
    """The one of the folder, with `[DEC]` and `[ENC]`."""
    kind: HuggingFaceKind
    """Which of `transformers`' classes it is."""
    image_size: int
    """Side of the square that images are resized to, in pixels; positions of another size are
    interpolated."""
    max_tokens: int
    """Longest text, special tokens included."""


def is_huggingface(folder: Path) -> bool:
    """Whether a folder is in the Hugging Face layout; `read_huggingface` tells of which model."""
    if is_adapter(folder):
        return True
    try:
        return "model_type" in read_json(folder / CONFIG_FILE)
    except CheckpointError:
        return False


def read_huggingface(folder: Path) -> LoadedHuggingFace:
    """The model of a folder, or of an adapter's folder with its base; no code of it is run.

    Raises:
        CheckpointError: if a file is missing, damaged, of another model than BLIP, or does not
            fit the others.
    """
    has_adapter = is_adapter(folder)
    base = find_base(folder) if has_adapter else folder
    config_file = base / CONFIG_FILE
    config = read_json(config_file)
    check_readable(config, str(config_file))
    weights = find_weights(base)
    tensors = read_weights(weights)
    if has_adapter:
        tensors = with_adapter(tensors, folder)
    checkpoint = from_huggingface(tensors, config, str(weights), config_source=str(config_file))
    sizes = checkpoint.config
    if isinstance(sizes, VqaConfig) and sizes.answer_memory_width is not None:
        raise CheckpointError(
            f"{weights}: its answer decoder expects states of {sizes.answer_memory_width} channels "
            f"where a question has {sizes.text.width}; transformers builds such a model, but "
            "cannot run it either; load one whose image encoder is as wide as its text"
        )
    model, tokenizer = checkpoint.model(), read_tokenizer(base, sizes.text.vocab_size)
    if not fit_vocabulary(model, tokenizer, str(weights)):
        raise CheckpointError(
            f"{base}: its tokenizer has {tokenizer.vocab_size} tokens with [DEC] and [ENC], but "
            f"text_config.vocab_size in {CONFIG_FILE} is {sizes.text.vocab_size}, as many rows as "
            "the word embedding has; restore the model's own tokenizer"
        )
    check_token_ids(config, checkpoint.kind, tokenizer.special, str(config_file))
    return LoadedHuggingFace(
        model=model,
        tokenizer=tokenizer,
        kind=checkpoint.kind,
        image_size=read_image_size(base, sizes.vision.image_size, sizes.vision.patch_size),
        max_tokens=read_max_tokens(base, sizes.text.max_positions),
    )


def save_huggingface(
    folder: Path,
    model: AnyModel,
    tokenizer: TextTokenizer,
    kind: HuggingFaceKind | None = None,
    max_tokens: int | None = None,
) -> None:
    """Write a folder that `from_pretrained` reads, whole or not at all.

    Args:
        folder: replaced if it holds such a model.
        model: what is written.
        tokenizer: the one that it was trained with.
        kind: as which class; needed where a model can be written as several.
        max_tokens: longest text, special tokens included; by default as many as there are
            positions.

    Raises:
        MissingHead: if the model lacks a head that the kind has.
        CheckpointError: if there is no class for the model, the kind must be given, the tokenizer
            is of another model, or the folder cannot be written or holds something else.
    """
    tensors, config = to_huggingface(model, tokenizer.special, kind)
    sizes = model.config
    check_vocabulary(model, tokenizer, max_tokens)
    _check_widths(model)
    check_replaceable(folder, _WRITTEN)
    stored = {key: tensor for key, tensor in tensors.items() if not key.startswith(TIED)}
    try:
        with replace_folder(folder) as unfinished:
            write_json(unfinished / CONFIG_FILE, config)
            write_safetensors(unfinished / WEIGHTS_FILE, stored)
            write_processor(
                unfinished,
                tokenizer,
                sizes.vision.image_size,
                max_tokens or sizes.text.max_positions,
            )
    except (OSError, DataError) as error:
        raise CheckpointError(str(error)) from error


def _check_widths(model: AnyModel) -> None:
    vision, text = model.config.vision, model.config.text
    if isinstance(model, Vqa) and vision.width != text.width:
        raise CheckpointError(
            f"transformers builds a BlipForQuestionAnswering for equal widths alone, but this one "
            f"has vision.width {vision.width} and text.width {text.width}; write it in the "
            "original layout or ours"
        )
