"""`transformers`' BLIP models: to and from ours, strictly; their folders and files of weights.

Every key is either converted, or dropped with a reason that the result names, or an error. Weights
are one file, or shards with an index; beside them stands the model's processor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.batches.tokenizer import TOKENIZER_FILE, VOCABULARY_FILE, SpecialTokens, TextTokenizer
from openblip.batches.wordpiece import TOKENIZER_CONFIG_FILE
from openblip.checkpoints.adapters import find_base, is_adapter, with_adapter
from openblip.checkpoints.assembly import (
    NameMap,
    Shapes,
    StateReader,
    check_names,
    fill,
    has_numbers,
    read_safetensors,
    shapes_of,
    write_safetensors,
    write_state,
)
from openblip.checkpoints.families import (
    AnyModel,
    check_layout,
    check_vocabulary,
    empty_model,
    fit_vocabulary,
    state_to_write,
)
from openblip.checkpoints.folder import (
    CONFIG_FILE,
    FROM_HUGGINGFACE,
    WEIGHTS_FILE,
    LoadedModel,
    check_replaceable,
    read_json,
    write_json,
)
from openblip.checkpoints.huggingface_config import (
    CLASSES,
    LOGIT_SCALE,
    MED_HEADS,
    SECTIONS,
    TIED,
    HuggingFaceConfig,
    HuggingFaceKind,
    check_readable,
    check_token_ids,
    config_from_huggingface,
    config_to_huggingface,
    kind_of_huggingface,
    temperature_of,
)
from openblip.checkpoints.huggingface_processor import (
    IMAGE_CONFIG_FILE,
    read_image_size,
    read_max_tokens,
    read_tokenizer,
    write_processor,
)
from openblip.checkpoints.model_card import CARD_FILE, CardFacts, write_model_card
from openblip.checkpoints.pickled import plain_names, read_state
from openblip.model import Med
from openblip.model.albef import Albef
from openblip.model.dual import DualEncoder
from openblip.model.vqa import Nlvr, Vqa, VqaConfig
from openblip.runtime.atomic import replace_folder
from openblip.runtime.errors import CheckpointError, DataError

_WRITTEN = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    VOCABULARY_FILE,
    IMAGE_CONFIG_FILE,
    CARD_FILE,
)

_PICKLE_FILE = "pytorch_model.bin"
_INDEX_ENDING = ".index.json"
# The first that is there is read.
_FILES = (
    WEIGHTS_FILE,
    WEIGHTS_FILE + _INDEX_ENDING,
    _PICKLE_FILE,
    _PICKLE_FILE + _INDEX_ENDING,
)
_REMEDY = "fetch the file again, or save the model as model.safetensors"


@dataclass(frozen=True)
class HuggingFaceCheckpoint:
    """A checkpoint of `transformers` in our names."""

    kind: HuggingFaceKind
    """Which of its models it is."""
    config: HuggingFaceConfig
    """Sizes of the model."""
    state: dict[str, Tensor]
    """State of the model; not copied from the input where the names map one to one."""
    dropped: dict[str, str]
    """Keys that have no place in ours, with the reason."""
    source: str
    """What errors name."""

    def model(self) -> AnyModel:
        """The `Med`, `Vqa` or `DualEncoder`, whose weights are the tensors of `state`."""
        return fill(empty_model(self.config), self.state, self.source)


def from_huggingface(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    source: str = "the checkpoint",
    *,
    config_source: str = "config.json",
) -> HuggingFaceCheckpoint:
    """The checkpoint in our names; tensors on the meta device are checked by shape alone.

    Args:
        tensors: the state dict; tied weights may be stored once or several times.
        config: what `config.json` holds. Where it is silent, `transformers`' defaults hold; which
            class it is, the keys of `tensors` tell.
        source: what errors about weights name, usually the file.
        config_source: what errors about `config` name.

    Raises:
        CheckpointError: if the configuration is of another model, or a key is missing, unknown,
            of another shape than it says, or unequal to the one that it is tied to.
    """
    check_readable(config, config_source)
    kind = kind_of_huggingface(tensors, source)
    ours = config_from_huggingface(config, kind, config_source)
    if isinstance(ours, VqaConfig) and _decoder_is_built_for_images(tensors, ours):
        ours = replace(ours, answer_memory_width=ours.vision.width)
    shapes, names = shapes_of(empty_model(ours)), NameMap(SECTIONS[kind])
    complete, stands_in = _with_tied(tensors, shapes, names)
    reader = StateReader(complete, source)
    state = reader.state(shapes, names)
    if kind == "retrieval":
        state["temperature"] = torch.tensor(temperature_of(config, config_source))
    reader.drop_position_ids(ours.text.max_positions)
    # Files of other classes may hold it too, where it was trained with them and is not used.
    if LOGIT_SCALE in reader.unread:
        reader.take(LOGIT_SCALE, ())
        reader.dropped[LOGIT_SCALE] = f"not part of a {CLASSES[kind]}"
    check_names(set(), reader.unread, source)
    _check_floating(tensors, set(reader.dropped), source)
    dropped = {k: why for k, why in reader.dropped.items() if k in tensors and k not in stands_in}
    return HuggingFaceCheckpoint(kind, ours, state, dropped, source)


def to_huggingface(
    model: AnyModel, special: SpecialTokens, kind: HuggingFaceKind | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The complete state dict of a model's class in `transformers`, and what `config.json` holds.

    Tensors are shared with the model, not copied, and tied weights stand under every name.

    Args:
        model: what is written.
        special: the ids of its tokenizer.
        kind: as which class; needed where a model can be written as several.

    Raises:
        MissingHead: if the model lacks a head that the kind has.
        CheckpointError: if there is no class for the model, it is not of the kind, or the kind
            must be given; or if the decoder shares other parts than in the original.
    """
    if isinstance(model, Nlvr | Albef):
        raise CheckpointError(
            f"transformers has no class for a model like {type(model).__name__}; write it in the "
            "original layout or ours"
        )
    check_layout(model, "the Hugging Face layout")
    kind = _kind_of(model, kind)
    temperature = None
    # A model on the meta device has shapes and no numbers.
    if isinstance(model, Med) and kind == "retrieval" and not model.temperature.is_meta:
        temperature = model.temperature.item()
    written = write_state(state_to_write(model), NameMap(SECTIONS[kind]))
    return written, config_to_huggingface(model.config, kind, special, temperature)


def _decoder_is_built_for_images(tensors: Mapping[str, Tensor], config: VqaConfig) -> bool:
    """Whether the answer decoder's cross-attention expects the image encoder's channels.

    `transformers` builds it so where the image encoder is wider than the text; it attends to
    questions all the same, so that such a model cannot be run.
    """
    key = tensors.get("text_decoder.bert.encoder.layer.0.crossattention.self.key.weight")
    return key is not None and config.text.width != key.shape[-1] == config.vision.width


def _with_tied(
    tensors: Mapping[str, Tensor], shapes: Shapes, names: NameMap
) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors with every tied weight under all its names, whichever a file has.

    Returns:
        the tensors, and the keys that stand in for one that comes before them.
    """
    complete, stands_in = dict(tensors), set()
    for name in shapes:
        # Weights that are fused from several have no copies.
        first, *copies = [place[0] for place in names.places(name)] or [""]
        stored = next((key for key in (first, *copies) if key in tensors), None)
        if not copies or stored is None:
            continue
        # Under which of its names a tied weight is stored depends on what wrote the file.
        if stored != first:
            stands_in.add(stored)
        for key in (first, *copies):
            complete.setdefault(key, tensors[stored])
    return complete, stands_in


def _check_floating(tensors: Mapping[str, Tensor], dropped: set[str], source: str) -> None:
    for key, tensor in tensors.items():
        if key not in dropped and not has_numbers(tensor):
            raise CheckpointError(
                f"{source}: {key} holds {tensor.dtype}, expected floating-point numbers; quantised "
                "weights cannot be read, load the checkpoint that they were made from"
            )


def _kind_of(model: Med | Vqa | DualEncoder, kind: HuggingFaceKind | None) -> HuggingFaceKind:
    if isinstance(model, Med):
        fitting = [k for k, heads in MED_HEADS.items() if set(heads) <= set(model.config.heads)]
        return _kind_of_med(model, kind, fitting)
    only: HuggingFaceKind = "vqa" if isinstance(model, Vqa) else "dual"
    if kind not in (None, only):
        raise CheckpointError(f"a {type(model).__name__} cannot be written as a {kind} checkpoint")
    return only


def _kind_of_med(
    med: Med, kind: HuggingFaceKind | None, fitting: list[HuggingFaceKind]
) -> HuggingFaceKind:
    if kind is None:
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise CheckpointError(
                f"this model can be written as {' and as '.join(fitting)}, which transformers has "
                "as separate classes; give one of them as kind"
            )
        raise CheckpointError(
            f"transformers has no class for a model with the heads {', '.join(med.config.heads)} "
            "alone; it needs lm, or itc and itm"
        )
    if kind not in MED_HEADS:
        raise CheckpointError(f"a Med cannot be written as a {kind} checkpoint")
    for head in MED_HEADS[kind]:
        med.require(head)
    return kind


def is_huggingface(folder: Path) -> bool:
    """Whether a folder is in the Hugging Face layout; `read_huggingface` tells of which model."""
    if is_adapter(folder):
        return True
    try:
        return "model_type" in read_json(folder / CONFIG_FILE)
    except CheckpointError:
        return False


def read_huggingface(folder: Path) -> LoadedModel:
    """The model of a folder, or of an adapter's folder with its base; no code of it is run.

    Positions are interpolated to the size that its processor resizes images to.

    Raises:
        CheckpointError: if a file is missing, damaged, of another model than BLIP, or does not
            fit the others.
    """
    has_adapter = is_adapter(folder)
    base = find_base(folder) if has_adapter else folder
    config = read_json(base / CONFIG_FILE)
    check_readable(config, str(base / CONFIG_FILE))
    weights = find_weights(base)
    tensors = read_weights(weights)
    if has_adapter:
        tensors = with_adapter(tensors, folder)
    loaded = _assembled(base, config, tensors, weights, str(folder))
    if loaded.image_size != loaded.model.config.vision.image_size:
        loaded.model.resize_images(loaded.image_size)
    return loaded


def _assembled(
    base: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], weights: Path, source: str
) -> LoadedModel:
    """The model of tensors, a configuration and a folder's processor files."""
    config_file = str(base / CONFIG_FILE)
    checkpoint = from_huggingface(tensors, config, str(weights), config_source=config_file)
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
    check_token_ids(config, checkpoint.kind, tokenizer.special, config_file)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        kind=FROM_HUGGINGFACE[checkpoint.kind],
        image_size=read_image_size(base, sizes.vision.image_size, sizes.vision.patch_size),
        max_tokens=read_max_tokens(base, sizes.text.max_positions),
        source=source,
    )


def save_huggingface(
    folder: Path,
    model: AnyModel,
    tokenizer: TextTokenizer,
    kind: HuggingFaceKind | None = None,
    max_tokens: int | None = None,
    source: str = "",
) -> None:
    """Write a folder that `from_pretrained` reads, with its card, whole or not at all.

    Args:
        folder: replaced if it holds such a model.
        model: what is written.
        tokenizer: the one that it was trained with.
        kind: as which class; needed where a model can be written as several.
        max_tokens: longest text, special tokens included; by default as many as there are
            positions.
        source: what the model was loaded from; the card says how that was trained.

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
    # As `transformers` writes it: safetensors hold no tensor twice, and it ties them on reading.
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
            write_model_card(unfinished, model, _card_facts(config, tokenizer, source))
            # What is read again, but for the bytes of the weights: they are many.
            shapes = {key: tensor.to("meta") for key, tensor in stored.items()}
            _assembled(unfinished, config, shapes, unfinished / WEIGHTS_FILE, str(folder))
    except (OSError, DataError) as error:
        raise CheckpointError(str(error)) from error


_USAGE = """
from transformers import AutoProcessor, {name}

processor = AutoProcessor.from_pretrained("FOLDER")
model = {name}.from_pretrained("FOLDER")
inputs = processor(images=image, {text}return_tensors="pt")
{call}
"""
# What is given besides the image, and what is done with it.
_CALLS: dict[HuggingFaceKind, tuple[str, str]] = {
    "caption": ("", "processor.decode(model.generate(**inputs)[0], skip_special_tokens=True)"),
    "retrieval": ('text="a dog", ', "model(**inputs).itm_score.softmax(dim=-1)[:, 1]"),
    "vqa": (
        'text="what is this?", ',
        "processor.decode(model.generate(**inputs)[0], skip_special_tokens=True)",
    ),
    "dual": ('text=["a dog", "a cat"], padding=True, ', "model(**inputs).logits_per_image"),
}


def _card_facts(config: Mapping[str, Any], tokenizer: TextTokenizer, source: str) -> CardFacts:
    (name,) = config["architectures"]
    kind = next(kind for kind, known in CLASSES.items() if known == name)
    text, call = _CALLS[kind]
    return CardFacts(
        kind=FROM_HUGGINGFACE[kind],
        source=source,
        vocab_size=tokenizer.vocab_size,
        layout="transformers",
        usage=_USAGE.format(name=name, text=text, call=call),
    )


def _check_widths(model: AnyModel) -> None:
    vision, text = model.config.vision, model.config.text
    if isinstance(model, Vqa) and vision.width != text.width:
        raise CheckpointError(
            f"transformers builds a BlipForQuestionAnswering for equal widths alone, but this one "
            f"has vision.width {vision.width} and text.width {text.width}; write it in the "
            "original layout or ours"
        )


def find_weights(folder: Path) -> Path:
    """The weights of a folder: a file, or the index of its shards.

    Raises:
        CheckpointError: if there are none.
    """
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: holds no weights; expected one of {', '.join(_FILES)}")


def read_weights(weights: Path) -> dict[str, Tensor]:
    """Every tensor of what `find_weights` found, memory-mapped; no code of a file is run.

    Raises:
        CheckpointError: if a file is missing, damaged, or not what the index says.
    """
    if not weights.name.endswith(_INDEX_ENDING):
        return plain_names(_read_file(weights), str(weights))
    index = _index(weights)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(index.values())):
        shard = weights.parent / name
        if not shard.is_file():
            raise CheckpointError(
                f"{shard}: no such file, but {weights.name} names it; fetch the missing shard"
            )
        found = _read_file(shard)
        # Of two downloads that were mixed, a shard has other keys than the index says.
        check_names({key for key, file in index.items() if file == name}, set(found), str(shard))
        tensors |= found
    return plain_names(tensors, str(weights))


def _index(path: Path) -> dict[str, str]:
    """The shard of every key."""
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{path}: weight_map is no object with keys; fetch the file again")
    for key, name in index.items():
        # An index may not lead to files outside of its folder, on any system.
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise CheckpointError(
                f"{path}: {key} is said to be in {name!r}, expected a file of the same folder; "
                "files elsewhere are not read"
            )
    return index


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return read_state(path, _REMEDY)
