"""Adapters as peft writes them: changes of low rank (LoRA), added to the weights of their base."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from openblip.checkpoints.assembly import check_shape, listed, read_safetensors
from openblip.checkpoints.folder import ADAPTER_CONFIG_FILE, CONFIG_FILE, read_json
from openblip.checkpoints.huggingface_config import TIED
from openblip.checkpoints.pickled import read_state
from openblip.runtime.errors import CheckpointError

_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_DOWN = re.compile(r"(.*)\.lora_(?:A|embedding_A)(?:\.\w+)?(?:\.weight)?")
# How layers that have a change, or are trained whole, show in the names of what they hold.
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)\.")
# Fields that do not say how weights change, or are read below. What else is set may change them
# otherwise than by a product that is added, now or in a later version of peft.
_KNOWN_FIELDS = (
    *("peft_type", "peft_version", "base_model_name_or_path", "revision", "task_type"),
    *("auto_mapping", "inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "bias", "modules_to_save", "init_lora_weights", "eva_config", "loftq_config"),
    *("corda_config", "lora_ga_config", "qalora_group_size", "runtime_config", "megatron_core"),
)
# Other beginnings (pissa, olora, corda, loftq) change the base besides, also when it is read.
_BEGINNINGS = (True, False, None, "gaussian", "eva")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter; as in `transformers` it counts before a model there."""
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        return False
    has_weights = any((folder / name).is_file() for name in _FILES)
    return has_weights or not (folder / CONFIG_FILE).is_file()


def find_base(folder: Path) -> Path:
    """The folder of the model that an adapter changes; one of the hub is fetched.

    Raises:
        CheckpointError: if it cannot be found.
    """
    from openblip.checkpoints.reading import find_model

    path = folder / ADAPTER_CONFIG_FILE
    config = read_json(path)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{path}: does not name its base; {_by_hand(name)}")
    beside = folder / name
    pinned = f"@{revision}" if isinstance(revision, str) and not Path(name).exists() else ""
    try:
        base = find_model(beside if beside.is_dir() else name + pinned)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: an adapter whose base is not there: {error}") from error
    if base != folder and is_adapter(base):
        raise CheckpointError(f"{path}: its base {name:.80} is an adapter itself; {_by_hand(name)}")
    if not (base / CONFIG_FILE).is_file() or "model_type" not in read_json(base / CONFIG_FILE):
        raise CheckpointError(
            f"{path}: its base {name:.80} is no model of transformers, to which adapters belong"
        )
    return base


def adapter_files(folder: Path) -> list[Path]:
    """The files of an adapter that decide what its model computes."""
    return [folder / ADAPTER_CONFIG_FILE, _weights(folder)]


def with_adapter(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The weights of the base with the adapter's changes.

    Args:
        tensors: of the base, by the names of `transformers`.
        folder: of the adapter.

    Raises:
        CheckpointError: if the adapter is damaged, of another kind, or of another base.
    """
    config, file = read_json(folder / ADAPTER_CONFIG_FILE), _weights(folder)
    base = config.get("base_model_name_or_path")
    if (kind := _other_kind(config)) is not None:
        raise CheckpointError(
            f"{folder}: an adapter of the kind {kind:.60}, which is not merged here; "
            f"{_by_hand(base)}"
        )
    stored = read_safetensors(file) if file.suffix == ".safetensors" else read_state(file, "")
    changes = {
        _WRAPPED.sub(".", key.removeprefix(_PREFIX)): tensor
        for key, tensor in stored.items()
        if ".original_module." not in key
    }
    factors = {key for key in changes if ".lora_" in key}
    whole = {key: tensor for key, tensor in changes.items() if key not in factors}
    for key, tensor in whole.items():
        if key in tensors:
            check_shape(key, tuple(tensor.shape), tuple(tensors[key].shape), str(file))
        elif not key.startswith(TIED):
            raise _of_another_base(file, key, base)
    merged = {**tensors, **whole}
    while factors:
        key = min(factors)
        match = _DOWN.fullmatch(key)
        partner = key.replace(".lora_A", ".lora_B").replace("_embedding_A", "_embedding_B")
        name = f"{match[1]}.weight" if match else ""
        if name not in merged or partner not in factors:
            raise _of_another_base(file, key, base)
        assert match is not None
        factors -= {key, partner}
        scale = _scale(config, match[1], changes[key], folder)
        change = _change(changes[key], changes[partner], file)
        if ".lora_embedding_A" in key:
            change = change.T
        merged[name] = _sum(merged[name], scale * change, file)
    return merged


def _other_kind(config: Mapping[str, Any]) -> str | None:
    """What an adapter does besides adding products; None for nothing."""
    if config.get("peft_type") != "LORA":
        return repr(config.get("peft_type"))
    if (beginning := config.get("init_lora_weights", True)) not in _BEGINNINGS:
        return f"init_lora_weights {beginning!r}"
    return next((name for name in config if config[name] and name not in _KNOWN_FIELDS), None)


def _change(down: Tensor, up: Tensor, file: Path) -> Tensor:
    if down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0]:
        raise CheckpointError(
            f"{file}: factors of shapes {tuple(down.shape)} and {tuple(up.shape)} do not fit"
        )
    return up.float().flatten(1) @ down.float().flatten(1)


def _sum(weight: Tensor, change: Tensor, file: Path) -> Tensor:
    if change.numel() != weight.numel() or change.shape[0] != weight.shape[0]:
        raise CheckpointError(
            f"{file}: a change of shape {tuple(change.shape)} does not fit a weight of shape "
            f"{tuple(weight.shape)}; it is of another base"
        )
    # In float32: a change that is small beside its weight would be lost in half precision.
    return (weight.float() + change.reshape(weight.shape)).to(weight.dtype)


def _scale(config: Mapping[str, Any], layer: str, down: Tensor, folder: Path) -> float:
    """What a change is multiplied with; the file may give layers an alpha of their own."""
    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    try:
        for pattern, own in patterns.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", layer):
                alpha = own
                break
    except (AttributeError, re.error) as error:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG_FILE}: alpha_pattern is {patterns!r:.40}, expected layers "
            "and their alpha"
        ) from error
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG_FILE}: lora_alpha is {alpha!r:.40}, expected a number"
        )
    # The weights tell it: the configuration may give layers ranks of their own.
    rank = down.shape[0]
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _weights(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: an adapter without weights; expected {' or '.join(_FILES)}")


def _of_another_base(file: Path, key: str, base: object) -> CheckpointError:
    return CheckpointError(
        f"{file}: {listed([key])} changes nothing that the base has; {_by_hand(base)}"
    )


def _by_hand(base: object) -> str:
    return (
        f"merge it where it was trained (base {base!r:.80}), with peft's "
        "`model.merge_and_unload().save_pretrained(FOLDER)`, and give FOLDER"
    )
