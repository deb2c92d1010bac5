"""Tokenizer and image-processor files of the Hugging Face layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.batches.tokenizer import TOKENIZER_FILE, VOCABULARY_FILE, TextTokenizer
from openblip.batches.transforms import IMAGE_MEAN, IMAGE_STD
from openblip.batches.wordpiece import SETTINGS, TOKENIZER_CONFIG_FILE
from openblip.checkpoints.families import FEWEST_TOKENS
from openblip.checkpoints.folder import read_json, write_json
from openblip.checkpoints.hub import fetch_bert_vocabulary, has_bert_vocabulary
from openblip.checkpoints.huggingface_config import check_no_code
from openblip.runtime.errors import CheckpointError, DataError

IMAGE_CONFIG_FILE = "preprocessor_config.json"
_PROCESSOR_CONFIG_FILE = "processor_config.json"
_ADDED_TOKENS_FILE = "added_tokens.json"

_BICUBIC = 3
# Fields that decide what becomes of the pixels, and the values that our transform stands for.
_PIXELS: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_center_crop": False,
    "resample": _BICUBIC,
    "rescale_factor": 1 / 255,
    "image_mean": list(IMAGE_MEAN),
    "image_std": list(IMAGE_STD),
}
_TOLERANCE = 1e-6
# Pixels along a side; a damaged file must not ask for positions that no memory holds.
_SIZES = range(1, 4097)


def read_image_size(folder: Path, model_size: int, patch_size: int) -> int:
    """Side of the square that images are resized to, in pixels.

    Args:
        folder: may hold an image processor's file; where there is none, it is the model's size.
        model_size: side of the square that the model's positions belong to.
        patch_size: the size must be a multiple of it.

    Raises:
        CheckpointError: if the file asks for other pixels than our transform gives.
    """
    path, values = _image_config(folder)
    check_no_code(values, str(path))
    for field, ours in _PIXELS.items():
        if field in values and not _same(values[field], ours):
            raise CheckpointError(
                f"{path}: {field} is {values[field]!r:.60}, but images are prepared with {ours!r}; "
                "load a checkpoint that was trained so"
            )
    size = values.get("size", model_size)
    if isinstance(size, Mapping) and size.get("height") == size.get("width"):
        size = size.get("height")
    if (
        isinstance(size, bool)
        or not isinstance(size, int)
        or size not in _SIZES
        or size % patch_size
    ):
        raise CheckpointError(
            f"{path}: size is {values.get('size', size)!r:.60}, expected a square (height and "
            f"width) whose side is a multiple of the model's patch size {patch_size}"
        )
    return size


def read_tokenizer(folder: Path, vocab_size: int) -> TextTokenizer:
    """The tokenizer of a folder: its `tokenizer.json`, or else its `vocab.txt`, or else BERT's.

    Args:
        folder: may be without a tokenizer if its model has BERT's vocabulary.
        vocab_size: rows of the model's word embedding.

    Raises:
        CheckpointError: if there is none, it is damaged, or a file beside a `vocab.txt` adds other
            tokens than BLIP's.
    """
    if not has_tokenizer(folder):
        if not has_bert_vocabulary(vocab_size):
            raise CheckpointError(
                f"{folder}: the tokenizer cannot be read, there is none, and its {vocab_size} "
                f"tokens are not those of bert-base-uncased; put the model's {TOKENIZER_FILE} or "
                f"{VOCABULARY_FILE} there"
            )
        return TextTokenizer.from_file(fetch_bert_vocabulary())
    try:
        tokenizer = TextTokenizer.from_file(folder)
    except DataError as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be read ({error})") from error
    if not (folder / TOKENIZER_FILE).is_file():
        _check_vocabulary(folder, tokenizer)
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer of its own."""
    return any((folder / name).is_file() for name in (TOKENIZER_FILE, VOCABULARY_FILE))


def read_max_tokens(folder: Path, max_positions: int) -> int:
    """Longest text, special tokens included: what the tokenizer's file says, if that fits.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = folder / TOKENIZER_CONFIG_FILE
    limit = _optional(path).get("model_max_length")
    if limit is None:
        return max_positions
    is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
    # NaN compares as False.
    if not is_number or not limit >= FEWEST_TOKENS:
        raise CheckpointError(
            f"{path}: model_max_length is {limit!r:.60}, expected a number of {FEWEST_TOKENS} or "
            "more"
        )
    # Without a limit `transformers` writes 1e30.
    return int(min(limit, max_positions))


def write_processor(
    folder: Path, tokenizer: TextTokenizer, image_size: int, max_tokens: int
) -> None:
    """Write what `BlipProcessor.from_pretrained` reads.

    Args:
        folder: an existing one.
        tokenizer: that of the model.
        image_size: side of the square that images are resized to, in pixels.
        max_tokens: longest text, special tokens included.

    Raises:
        OSError: if a file cannot be written.
        DataError: if the tokenizer's cannot.
    """
    tokenizer_json = tokenizer.save(folder)
    backend = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    is_bert = _is_bert(backend)
    backend["post_processor"] = _template(tokenizer)
    write_json(tokenizer_json, backend)
    if is_bert:
        vocabulary = sorted(backend["model"]["vocab"].items(), key=lambda item: item[1])
        lines = "".join(f"{token}\n" for token, _ in vocabulary)
        (folder / VOCABULARY_FILE).write_text(lines, encoding="utf-8")
    write_json(folder / TOKENIZER_CONFIG_FILE, _tokenizer_config(tokenizer, backend, max_tokens))
    image_config = {
        **_PIXELS,
        "do_convert_rgb": True,
        "size": {"height": image_size, "width": image_size},
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
    }
    # `transformers`' class has no cropping.
    del image_config["do_center_crop"]
    write_json(folder / IMAGE_CONFIG_FILE, image_config)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _image_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that describes the pixels, and what it says; nothing where there is none."""
    path = folder / _PROCESSOR_CONFIG_FILE
    values = _optional(path).get("image_processor")
    if isinstance(values, dict):
        return path, values
    return folder / IMAGE_CONFIG_FILE, _optional(folder / IMAGE_CONFIG_FILE)


def _same(value: Any, ours: Any) -> bool:
    if isinstance(ours, bool):
        return value is ours
    theirs, own = (v if isinstance(v, list) else [v] for v in (value, ours))
    return len(theirs) == len(own) and all(
        isinstance(a, int | float) and b - _TOLERANCE <= a <= b + _TOLERANCE
        for a, b in zip(theirs, own, strict=True)
    )


def _check_vocabulary(folder: Path, tokenizer: TextTokenizer) -> None:
    path = folder / _ADDED_TOKENS_FILE
    ours = {"[DEC]": tokenizer.special.dec, "[ENC]": tokenizer.special.enc}
    for token, index in _optional(path).items():
        if ours.get(token) != index:
            raise CheckpointError(
                f"{path}: {token} is {index}, expected {ours} alone; put the tokenizer's "
                f"{TOKENIZER_FILE} into the folder"
            )


def _is_bert(backend: Mapping[str, Any]) -> bool:
    normalizer, model = backend["normalizer"] or {}, backend["model"]
    return (
        model["type"] == "WordPiece"
        and model["continuing_subword_prefix"] == "##"
        and normalizer.get("type") == "BertNormalizer"
    )


def _template(tokenizer: TextTokenizer) -> dict[str, Any]:
    """`[CLS] text [SEP]`, as `transformers` tokenises a text."""
    names = _names(tokenizer)
    first, last = names["cls_token"], names["sep_token"]
    special, text = _special_part(first), {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"Sequence": {"id": "B", "type_id": 1}}, _special_part(last, 1)]
    single = [special, text, _special_part(last)]
    ids = {first: tokenizer.special.cls, last: tokenizer.special.sep}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *second],
        "special_tokens": {
            name: {"id": name, "ids": [index], "tokens": [name]} for name, index in ids.items()
        },
    }


def _special_part(name: str, type_id: int = 0) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": type_id}}


def _names(tokenizer: TextTokenizer) -> dict[str, str]:
    """What `transformers` calls the roles, and what the vocabulary calls their tokens."""
    roles = ("pad", "unk", "cls", "sep", "mask", "bos")
    # Without [ENC], for which it has no role.
    return {
        f"{role}_token": name
        for role, name in zip(roles, tokenizer.special_names[: len(roles)], strict=True)
    }


def _tokenizer_config(
    tokenizer: TextTokenizer, backend: Mapping[str, Any], max_tokens: int
) -> dict[str, Any]:
    is_bert = _is_bert(backend)
    config = {
        "tokenizer_class": "BertTokenizer" if is_bert else "PreTrainedTokenizerFast",
        "processor_class": "BlipProcessor",
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
        **_names(tokenizer),
        "additional_special_tokens": [tokenizer.special_names[-1]],
    }
    if is_bert:
        # Their class takes these from here, whatever the tokenizer's file says.
        normalizer = backend["normalizer"]
        config |= {theirs: normalizer[ours] for theirs, ours in SETTINGS.items()}
    return config
