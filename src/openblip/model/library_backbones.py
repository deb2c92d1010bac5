"""Image encoders of `transformers` and timm as backbones (extras `transformers` and `timm`)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openblip.runtime.errors import CheckpointError, RecipeError, install_extra

TRANSFORMERS, TIMM = "transformers", "timm"
# Tokens before those of the patches; of registers there are as many as the settings say.
_PREFIX_TOKENS = {
    "vit": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
}
# Modules whose output nobody reads are not built; with these types this is no setting.
_POOLED = ("vit", "deit")
# What says nothing of what is computed.
_UNSAID = (
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "torch_dtype",
)


def transformers_settings(source: str) -> str:
    """The settings of a vision tower as JSON.

    Args:
        source: these settings; or a folder or a name of the hub, of a vision model or of one that
            has one among its parts.

    Raises:
        RecipeError: if there is none, or it is of a kind that is not known here.
    """
    if source.startswith("{"):
        _known(source)
        return source
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise _missing(TRANSFORMERS, error) from error
    try:
        config: Any = AutoConfig.from_pretrained(source)
    # It raises what its parts raise: no common class.
    except Exception as error:
        raise RecipeError(
            f"transformers:{source} has no configuration that can be read ({_reason(error)})"
        ) from error
    config = getattr(config, "vision_config", config)
    values = {k: v for k, v in config.to_dict().items() if k not in _UNSAID}
    # By kind, not by whether the key is there: transformers 5.0 reads it but does not list it.
    values |= {"vision_use_head": False} if config.model_type == "siglip_vision_model" else {}
    settings = json.dumps(values, sort_keys=True)
    _known(settings)
    return settings


def model_type(settings: str) -> str:
    """What kind of model settings are of."""
    return str(_known(settings)["model_type"])


def _known(settings: str) -> dict[str, Any]:
    try:
        values: Any = json.loads(settings)
    except ValueError as error:
        raise RecipeError(f"vision.backbone: its settings are no JSON ({error})") from error
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in _PREFIX_TOKENS:
        raise RecipeError(
            f"a {kind} of transformers is no backbone that is known here, which are "
            f"{', '.join(_PREFIX_TOKENS)}: write a module around it, and give its module:name"
        )
    if values.get("num_channels", 3) != 3:
        raise RecipeError(f"this {kind} takes {values['num_channels']} channels; images have 3")
    return cast("dict[str, Any]", values)


class TransformersBackbone(nn.Module):
    """A vision tower of `transformers`: its last hidden states, as it gives them.

    Positions belong to the size that its settings say, and are interpolated to that of the images.
    """

    def __init__(self, settings: str) -> None:
        super().__init__()
        values = _known(settings)
        kind = values.pop("model_type")
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            raise _missing(TRANSFORMERS, error) from error
        config: Any = AutoConfig.for_model(kind, **values)
        make: Any = AutoModel
        self.tower = _without_unread(make.from_config(config, **_options(kind)))
        self.num_prefix_tokens = _PREFIX_TOKENS[kind] + values.get("num_register_tokens", 0)
        self._num_layers = int(config.num_hidden_layers)
        # DINOv2 interpolates unasked.
        self._asks = {} if kind.startswith("dinov2") else {"interpolate_pos_encoding": True}
        self._image_size = config.image_size

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the tower."""
        lists = (m for m in self.tower.modules() if isinstance(m, nn.ModuleList))
        return tuple(next((m for m in lists if len(m) == self._num_layers), ()))

    def forward(
        self, images: Float[Tensor, "batch 3 height width_px"]
    ) -> Float[Tensor, "batch tokens width"]:
        is_own_size = images.shape[2] == images.shape[3] == self._image_size
        out = self.tower(pixel_values=images, **({} if is_own_size else self._asks))
        return cast("Tensor", out.last_hidden_state)


def read_transformers_weights(
    source: Path, settings: str
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The weights of a folder for a `TransformersBackbone`, and the keys that are left over.

    Args:
        source: the folder.
        settings: of its vision tower.

    Returns:
        the state of the backbone, and names by "missing" (they have no weights, and are as drawn)
        and "unexpected" (of the folder, without a place).

    Raises:
        CheckpointError: if the folder cannot be read.
    """
    values = _known(settings)
    kind = values.pop("model_type")
    from transformers import AutoConfig, AutoModel

    config: Any = AutoConfig.for_model(kind, **values)
    try:
        with quietly():
            tower, info = AutoModel.from_pretrained(
                source,
                config=config,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **_options(kind),
            )
    # It raises what its parts raise: no common class.
    except Exception as error:
        raise CheckpointError(
            f"{source}: transformers cannot read it ({_reason(error)})"
        ) from error
    left = {name: sorted(map(str, info[f"{name}_keys"])) for name in ("missing", "unexpected")}
    if any(info.get("mismatched_keys", ())):
        raise CheckpointError(f"{source}: {info['mismatched_keys']!s:.120} do not fit its config")
    state = _without_unread(tower).state_dict()
    return {f"tower.{name}": tensor for name, tensor in state.items()}, left


@contextmanager
def quietly() -> Iterator[None]:
    """No bar and no table of keys: they are listed by us."""
    from transformers.utils import logging as their_logging

    logging: Any = their_logging
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def _options(kind: str) -> dict[str, Any]:
    return {"add_pooling_layer": False} if kind in _POOLED else {}


def _without_unread(tower: Any) -> nn.Module:
    """The tower without what is no part of the hidden states: they would get no gradient.

    The norm of CLIP's pooled token, and the token for masked patches of DINOv2.
    """
    inner = getattr(tower, "vision_model", tower)
    if getattr(inner.embeddings, "mask_token", None) is not None:
        inner.embeddings.mask_token = None
    if type(tower).__name__ == "CLIPVisionModel":
        inner.post_layernorm = nn.Identity()
    return cast("nn.Module", tower)


class TimmBackbone(nn.Module):
    """A model of timm without its classifier: its last features, as tokens side by side."""

    def __init__(self, name: str, *, pretrained: bool = False) -> None:
        super().__init__()
        try:
            import timm
        # A timm whose torchvision does not fit this torch fails with a RuntimeError.
        except (ImportError, RuntimeError) as error:
            raise _missing(f"{TIMM} and a torchvision that fits this torch", error) from error
        options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
        try:
            try:
                self.model: Any = timm.create_model(name, dynamic_img_size=True, **options)
            except TypeError:
                # Convolutional networks take every size, and some transformers one alone.
                self.model = timm.create_model(name, **options)
        except (RuntimeError, ValueError, OSError) as error:
            raise RecipeError(f"timm:{name}: timm cannot make it ({_reason(error)})") from error
        self.num_prefix_tokens = int(getattr(self.model, "num_prefix_tokens", 0))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the model, where it has them in one list."""
        blocks = getattr(self.model, "blocks", ())
        return tuple(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else ()

    def forward(
        self, images: Float[Tensor, "batch 3 height width_px"]
    ) -> Float[Tensor, "batch tokens width"]:
        features: Tensor = self.model.forward_features(images)
        if features.ndim == 4:
            # Channels come last in some (Swin), second in most.
            if features.shape[1] == self.model.num_features:
                features = features.permute(0, 2, 3, 1)
            features = features.flatten(1, 2)
        return features


def _missing(library: str, error: Exception) -> RecipeError:
    name = library.split()[0]
    return RecipeError(
        f"vision.backbone {name}:... needs {library} ({_reason(error)}): {install_extra(name)}"
    )


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
