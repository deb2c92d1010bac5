"""Our model folder: `config.json`, `model.safetensors`, `tokenizer.json`.

The only file that knows this layout; version 1 is the current one. It says what a model was trained
as, for which the layouts of others have other words: they are the tables at the end.
"""

import json
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openblip.batches.tokenizer import TOKENIZER_FILE, TextTokenizer, unpack_tokens
from openblip.batches.transforms import IMAGE_MEAN, IMAGE_STD
from openblip.checkpoints.assembly import fill, read_safetensors, reason_of, write_safetensors
from openblip.checkpoints.families import (
    FEWEST_TOKENS,
    AnyConfig,
    AnyModel,
    Family,
    check_vocabulary,
    family_named,
    family_of,
    state_to_write,
)
from openblip.checkpoints.huggingface_config import HuggingFaceKind
from openblip.checkpoints.original_layout import Kind
from openblip.model import Med
from openblip.model.config import config_from_dict, config_to_dict
from openblip.runtime.atomic import replace_folder
from openblip.runtime.errors import CheckpointError, DataError, OpenBlipWarning, RecipeError

CONFIG_FILE = "config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
"""Of a folder that holds an adapter of `peft` for another model."""
MANIFEST_FILE = "openblip.json"
"""Of a folder that holds graphs in the place of weights (`openblip export`), and what programs
without OpenBLIP must know."""
WEIGHTS_FILE = "model.safetensors"
_OTHER_LAYOUT = "this is no folder of OpenBLIP's layout; `openblip.load` reads the others, too"
_FORMAT = "openblip"
_VERSION = 1
_CHECKPOINTS = ("best", "last")


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """What `config.json` says of a model."""

    family: Family
    """Which kind of model it is."""
    model: AnyConfig
    """Sizes and heads."""
    kind: str
    """What the model was trained as."""
    max_tokens: int
    """Longest text, special tokens included."""
    given_tokens: int = 0
    """Longest text that a captioner reads before it writes; 0 where it was not trained to."""
    name_tokens: str = ""
    """Tokens that it writes from that text alone, packed by `pack_tokens`; empty for none."""
    trained: tuple[str, ...] | None = None
    """Heads that its last training was for; None where that was not noted."""

    @property
    def image_size(self) -> int:
        """Side of the square that images are resized to, in pixels."""
        return self.model.vision.image_size


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model folder in memory."""

    model: AnyModel
    """On the CPU, in training mode; its weights are mapped from the file."""
    tokenizer: TextTokenizer
    """The one that it was trained with."""
    kind: str
    """What it was trained as."""
    image_size: int
    """Side of the square that images are resized to, in pixels."""
    max_tokens: int
    """Longest text, special tokens included."""
    source: str
    """What errors name."""
    trained: tuple[str, ...] | None = None
    """Heads that its last training was for; None where that was not noted."""
    given_tokens: int = 0
    """Longest text that a captioner reads before it writes; 0 where it was not trained to."""
    name_tokens: str = ""
    """Tokens that it writes from that text alone, packed by `pack_tokens`; empty for none."""

    @property
    def med(self) -> Med:
        """The model, of a kind that is a `Med`.

        Raises:
            CheckpointError: if it is another model, such as one that answers questions.
        """
        if not isinstance(self.model, Med):
            raise CheckpointError(
                f"{self.source}: a {self.kind} model; give a pre-trained one, a captioner or a "
                "filter"
            )
        return self.model


def save_folder(
    folder: Path,
    model: AnyModel,
    tokenizer: TextTokenizer,
    kind: str,
    max_tokens: int,
    trained: Collection[str] | None = None,
    given_tokens: int = 0,
    name_tokens: str = "",
) -> None:
    """Write a model folder, whole or not at all; one that was there is replaced.

    Raises:
        CheckpointError: if it cannot be written, or `folder` holds something else than a model.
        ValueError: if there is no such kind, or it is of another model.
    """
    check_replaceable(folder, (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE))
    try:
        with replace_folder(folder) as unfinished:
            about = kind, max_tokens, trained, given_tokens, name_tokens
            write_model(unfinished, model, tokenizer, *about)
    except OSError as error:
        raise CheckpointError(str(error)) from error


def write_model(
    folder: Path,
    model: AnyModel,
    tokenizer: TextTokenizer,
    kind: str,
    max_tokens: int,
    trained: Collection[str] | None = None,
    given_tokens: int = 0,
    name_tokens: str = "",
) -> None:
    """Write the files of a model into a folder that is there, beside what else it holds.

    Raises:
        OSError: if they cannot be written.
        CheckpointError: if `read_folder` would not give the model back.
        ValueError: if there is no such kind, or it is of another model.
    """
    check_vocabulary(model, tokenizer, max_tokens)
    state = state_to_write(model, family_of(model))
    # The short file goes first: what is refused has cost no writing of weights. Weights and
    # tokenizer were held to their readers above, and this is the rest of what is read again.
    write_config(folder, model, kind, max_tokens, trained, given_tokens, name_tokens)
    write_safetensors(folder / WEIGHTS_FILE, state)
    tokenizer.save(folder)


def write_config(
    folder: Path,
    model: AnyModel,
    kind: str,
    max_tokens: int,
    trained: Collection[str] | None = None,
    given_tokens: int = 0,
    name_tokens: str = "",
) -> None:
    """Write a model's `config.json` alone, which `read_config` reads.

    Raises:
        OSError: if it cannot be written.
        CheckpointError: if it would not be the same again.
        ValueError: if there is no such kind, or it is of another model.
    """
    family = family_of(model)
    if kind not in family.kinds:
        # A word that no family has is told as such.
        family_named(kind)
        raise ValueError(f"kind {kind!r} is not a {type(model).__name__}")
    config = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "kind": kind,
        "model": config_to_dict(model.config),
        "preprocess": _preprocess(model.config),
        "text": {"max_tokens": max_tokens},
    }
    if given_tokens:
        names = {"name_tokens": name_tokens} if name_tokens else {}
        config["text"] = {"max_tokens": max_tokens, "given_tokens": given_tokens, **names}
    if family.reference is not None:
        config["class"] = family.reference
    # Left out where nobody knows, and not only empty: a head that is not named counts as untrained.
    if trained:
        config["trained"] = list(trained)
    write_json(folder / CONFIG_FILE, config)
    if read_config(folder).model != model.config:
        raise CheckpointError(
            f"{kind}: its configuration is another one when it is read from JSON; give its fields "
            "types that JSON has: numbers, words, tuples of them, or dataclasses"
        )


def read_folder(folder: Path) -> LoadedModel:
    """The model of a folder, without a copy of its weights: they are read when they are used.

    Raises:
        CheckpointError: if a file is missing, damaged, or does not fit the others.
    """
    config = read_config(folder)
    weights = read_safetensors(folder / WEIGHTS_FILE)
    empty = config.family.empty(config.model)
    model = fill(empty, weights, str(folder / WEIGHTS_FILE))
    try:
        tokenizer = TextTokenizer.from_file(folder / TOKENIZER_FILE)
    except DataError as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be read ({error})") from error
    if tokenizer.vocab_size != config.model.text.vocab_size:
        raise CheckpointError(
            f"{folder / TOKENIZER_FILE} has {tokenizer.vocab_size} tokens, but text.vocab_size in "
            f"{CONFIG_FILE} is {config.model.text.vocab_size}; restore the model's own tokenizer"
        )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        kind=config.kind,
        image_size=config.image_size,
        max_tokens=config.max_tokens,
        source=str(folder),
        trained=config.trained,
        given_tokens=config.given_tokens,
        name_tokens=config.name_tokens,
    )


def read_config(folder: Path) -> FolderConfig:
    """What a folder's `config.json` says; the weights are not looked at.

    Raises:
        CheckpointError: if it is missing, damaged, or of another or a later format.
    """
    if folder.is_file():
        raise CheckpointError(f"{folder}: {_OTHER_LAYOUT}")
    path = folder / CONFIG_FILE
    values = read_json(path)
    _check_format(values, path)
    try:
        for part in ("model", "text", "preprocess"):
            if not isinstance(values[part], dict):
                raise ValueError(f"{part} is {values[part]!r:.40}; expected an object")
        family = family_named(values["kind"], values.get("class"))
        config = FolderConfig(
            family=family,
            model=config_from_dict(family.config, values["model"]),
            kind=values["kind"],
            max_tokens=_num_tokens(values["text"], "max_tokens", FEWEST_TOKENS),
            given_tokens=_num_tokens({"given_tokens": 0, **values["text"]}, "given_tokens", 0),
            name_tokens=_packed(values["text"].get("name_tokens", ""), values["model"]),
            trained=_trained(values.get("trained")),
        )
        _check_heads_are_said(values["model"])
        preprocess = {name: values["preprocess"][name] for name in ("image_size", "mean", "std")}
    except KeyError as error:
        raise CheckpointError(f"{path}: missing {error.args[0]!r}") from error
    except (CheckpointError, RecipeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {reason_of(error)}") from error
    if preprocess != _preprocess(config.model):
        raise CheckpointError(
            f"{path}: preprocess is {preprocess!s:.120}, but this model's images are prepared with "
            f"{_preprocess(config.model)}"
        )
    return config


def model_below(path: Path) -> Path | None:
    """The folder of a model: `path` itself, or the best or last checkpoint of the run there."""
    folders = (path, *(path / "checkpoints" / name for name in _CHECKPOINTS))
    names = (CONFIG_FILE, ADAPTER_CONFIG_FILE)
    return next((one for one in folders if any((one / name).is_file() for name in names)), None)


def _preprocess(config: AnyConfig) -> dict[str, Any]:
    # It follows from the model, but a folder says it: other programs prepare images by it, and a
    # later version that prepares them otherwise would see that this model was trained so.
    size = config.vision.image_size
    return {"image_size": size, "mean": list(IMAGE_MEAN), "std": list(IMAGE_STD)}


def _trained(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(head, str) for head in value):
        raise ValueError(f"trained is {value!r}, not a list of heads")
    return tuple(value)


def _packed(text: object, model: Mapping[str, Any]) -> str:
    """A set of tokens of the model's vocabulary; raises `ValueError` where it is none."""
    if not isinstance(text, str):
        raise ValueError(f"name_tokens is {text!r:.40}; expected a word")
    if text:
        unpack_tokens(text, model["text"]["vocab_size"])
    return text


def _num_tokens(text: Mapping[str, Any], name: str, least: int) -> int:
    value = text[name]
    # To Python, True is a whole number.
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"text.{name} is {value!r:.40}; expected {least} or more")
    return value


def _check_heads_are_said(model: Mapping[str, Any]) -> None:
    """A default in their place would change what the model computes, and no weight shows them."""
    for part in ("vision", "text"):
        for field in ("heads", "norm_eps"):
            if field not in model.get(part, {}):
                raise ValueError(f"missing model.{part}.{field!r}")


def _check_format(values: dict[str, Any], path: Path) -> None:
    if values.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: format is {values.get('format')!r:.40}, expected {_FORMAT!r}; {_OTHER_LAYOUT}"
        )
    if values.get("format_version") != _VERSION:
        raise CheckpointError(
            f"{path}: format_version is {values.get('format_version')!r:.40}, this version of "
            f"OpenBLIP reads {_VERSION}; update OpenBLIP"
        )


def warn_of_given_text(given_tokens: int, layout: str) -> None:
    """Tell that a layout does not say that a captioner reads a given text.

    Args:
        given_tokens: of the captioner; of 0 there is nothing to tell.
        layout: whose it is.
    """
    if given_tokens:
        warnings.warn(
            f"{layout} has no place for what this captioner reads before it writes (given_tokens "
            f"{given_tokens}): what is loaded from it writes without a given text",
            OpenBlipWarning,
            stacklevel=3,
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: if it is missing, damaged, or holds something else.
    """
    try:
        # Some editors put a byte order mark before the text.
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; expected a model folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({reason_of(error)})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as JSON.

    Raises:
        OSError: if the file cannot be written.
    """
    text = json.dumps(values, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def check_replaceable(folder: Path, known: Collection[str]) -> None:
    """Nothing, if a folder is absent or holds known files alone.

    A wrong path must not cost a photo collection.

    Raises:
        CheckpointError: naming what else is there.
    """
    if folder.is_file():
        raise CheckpointError(f"{folder}: is a file; give a folder")
    others = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if unknown := [name for name in others if name not in known]:
        raise CheckpointError(
            f"{folder}: holds {unknown[0]}, which is not part of a model; give an empty folder"
        )


# The original's code cuts the texts of each kind to so many tokens; sentences about two images
# it does not cut.
FROM_ORIGINAL: dict[Kind, tuple[str, int | None]] = {
    "pretrain": ("pretrain", 30),
    "caption": ("captioner", 40),
    "retrieval": ("filter", 35),
    "itm": ("filter", 35),
    "vqa": ("vqa", 35),
    "nlvr": ("nlvr", None),
    "albef_pretrain": ("albef", 30),
    "albef_retrieval": ("albef", 30),
}
"""Our kind and longest text, for the original's kinds that can be used here."""

TO_ORIGINAL: dict[str, Kind] = {
    "pretrain": "pretrain",
    "captioner": "caption",
    "filter": "retrieval",
    "vqa": "vqa",
    "nlvr": "nlvr",
}
"""As what the original writes a model of ours."""

FROM_HUGGINGFACE: dict[HuggingFaceKind, str] = {
    "caption": "captioner",
    "retrieval": "filter",
    "vqa": "vqa",
    "dual": "dual_encoder",
}
"""Our kind for the classes of `transformers`."""

TO_HUGGINGFACE: dict[str, HuggingFaceKind] = {
    ours: theirs for theirs, ours in FROM_HUGGINGFACE.items()
}
"""As which class `transformers` has a model of ours; a pre-trained one is none alone."""

TRAINED_AS = {"captioner": ("lm",), "filter": ("itc", "itm")}
"""Heads that models were trained for which do not say it themselves."""


def original_kind(kind: str, wanted: str | None) -> Kind | None:
    """As which of the original's models one of ours is written; None where its heads say that.

    Args:
        kind: what the model was trained as.
        wanted: what a person asks for.

    Raises:
        RecipeError: the original has no such kind.
    """
    chosen = wanted or TO_ORIGINAL.get(kind)
    if chosen is None and kind == "albef":
        return None
    if chosen not in FROM_ORIGINAL:
        raise RecipeError(
            f"the original has no kind {wanted or kind!r}; there are {', '.join(FROM_ORIGINAL)}"
        )
    return chosen
