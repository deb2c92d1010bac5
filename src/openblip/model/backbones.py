"""Image encoders of others in the place of ours: found by name, built, and measured.

A backbone is any module that maps images (batch, 3, height, width) to states (batch, tokens,
width). It may say more of itself, as the modules of timm do:

- `num_prefix_tokens`: so many tokens come before those of the patches, the first of them for the
  image as a whole. Where it is 0 or unsaid, the mean of all tokens is put before them.
- `blocks`: its layers in order; they can recompute their activations, and be divided among
  processes.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from math import isqrt
from typing import Any, cast, get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.checkpoint import checkpoint

from openblip.model.config import VisionConfig
from openblip.runtime.errors import RecipeError
from openblip.runtime.references import find_object, is_reference, reference_to

TIMM, TRANSFORMERS = "timm", "transformers"
_FORMS = "timm:NAME, transformers:NAME (a folder or a name of the hub) or module:name"


@dataclass(frozen=True)
class Measures:
    """What a backbone gives for images of a size."""

    tokens: int
    """Of an image, the one for the image as a whole included."""
    width: int
    """Channels of a token."""
    prefix_tokens: int
    """Tokens before those of the patches; at least 1."""
    blocks: int
    """Layers that it shows."""

    @property
    def side(self) -> int | None:
        """Patches along a side, where they are a square."""
        patches = self.tokens - self.prefix_tokens
        side = isqrt(patches)
        return side if side * side == patches and side else None


class BackboneEncoder(nn.Module):
    """A backbone as an image encoder: the token for the image as a whole comes first.

    Args:
        config: names the backbone; the attribute `config` has the sizes that it turned out to have.
        backbone: the module itself; by default it is built by its name.

    Raises:
        RecipeError: if there is no such backbone, or it cannot do what `config` asks of it.
    """

    def __init__(self, config: VisionConfig, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.config = settled(config)
        name = cast("str", self.config.backbone)
        self.backbone = build(name) if backbone is None else backbone
        self.num_prefix_tokens = max(1, _num_prefix_tokens(self.backbone))
        count = self.config.checkpoint_layers
        for block in self.blocks[len(self.blocks) - count :] if count else ():
            # The method, not the module: a wrapper would be in the names of its weights.
            block.forward = _recomputing(block)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers that the backbone shows."""
        return blocks_of(self.backbone)

    def forward(
        self, images: Float[Tensor, "batch 3 height width_px"], num_given: int | None = None
    ) -> Float[Tensor, "batch given width"]:
        """The first `num_given` tokens, by default all."""
        hidden: Tensor = self.backbone(images)
        if _num_prefix_tokens(self.backbone) == 0:
            # Everything that reads an image as a whole reads the first token.
            hidden = torch.cat([hidden.mean(dim=1, keepdim=True), hidden], dim=1)
        return hidden[:, :num_given]


def settled(config: VisionConfig) -> VisionConfig:
    """The configuration with the sizes that its backbone has, and enough to build it anywhere.

    One without a backbone stays as it is.

    Raises:
        RecipeError: if there is no such backbone, or it cannot do what `config` asks of it.
    """
    if config.backbone is None:
        return config
    name = settled_name(config.backbone)
    if config.drop_path:
        raise RecipeError(
            f"vision.drop_path is {config.drop_path}, but the blocks of {shown(name)} are not "
            "ours: set it to 0 (--overrides.drop-path 0), or the backbone's own setting"
        )
    measures = measure(name, config.image_size)
    if config.checkpoint_layers and not measures.blocks:
        raise RecipeError(
            f"vision.checkpoint_layers is {config.checkpoint_layers}, but {shown(name)} shows no "
            "layers: set it to 0, or give the module an attribute `blocks` that lists them"
        )
    return replace(
        config,
        backbone=name,
        tokens=measures.tokens,
        width=measures.width,
        depth=max(1, measures.blocks),
        patch_size=config.image_size // (measures.side or 1),
    )


@cache
def settled_name(backbone: str) -> str:
    """The name with all that it takes to build the backbone where a folder of others is not."""
    library, _, name = backbone.partition(":")
    if not (name and library in (TIMM, TRANSFORMERS)) and not is_reference(backbone):
        raise RecipeError(f"vision.backbone is {backbone!r}; give {_FORMS}")
    if library == TRANSFORMERS:
        from openblip.model.library_backbones import transformers_settings

        return f"{TRANSFORMERS}:{transformers_settings(name)}"
    return backbone


def build(backbone: str) -> nn.Module:
    """The module of a name, with fresh weights.

    On the meta device its state has no memory and the global generator stays as it is, while what
    it keeps besides its state is there: a state dict makes it complete.

    Raises:
        RecipeError: if there is no such module.
    """
    if torch.get_default_device().type != "meta":
        return _made(backbone)
    return _emptied(undrawn(backbone))


def undrawn(backbone: str) -> nn.Module:
    """The module of a name on the CPU, with weights of any values; nothing is drawn from others."""
    # Also where a step is simulated: what looks at its own draws must find numbers.
    with _disable_current_modes(), torch.device("cpu"), _PrivateDraws():
        return _made(backbone)


def _made(backbone: str) -> nn.Module:
    library, _, name = backbone.partition(":")
    if library in (TIMM, TRANSFORMERS):
        from openblip.model import library_backbones as libraries

        if library == TIMM:
            return libraries.TimmBackbone(name)
        return libraries.TransformersBackbone(name)
    make = _maker(backbone)
    try:
        return make()
    except Exception as error:  # whatever a module of anybody raises
        raise RecipeError(
            f"vision.backbone {backbone} cannot be built without arguments ({error!s:.120}): give "
            "a function that knows them"
        ) from error


def _maker(reference: str) -> Callable[[], nn.Module]:
    """The class or function of a name, which makes a module.

    A model folder names it too: nothing else is called than what says that it makes a module.
    """
    found: Any = find_object(reference)
    made = found if inspect.isclass(found) else _return_type(found)
    if not (inspect.isclass(made) and issubclass(made, nn.Module)):
        raise RecipeError(
            f"vision.backbone {reference} is no class of modules, and no function that is "
            "annotated to return one (`-> nn.Module`)"
        )
    return cast("Callable[[], nn.Module]", found)


def _return_type(function: Any) -> Any:
    try:
        return get_type_hints(function).get("return")
    except (TypeError, NameError):
        return None


def name_of(backbone: nn.Module) -> str:
    """The name by which a module's like is built again.

    Raises:
        RecipeError: if its class alone does not give modules with the same weights.
    """
    name = reference_to(type(backbone))
    shapes = {key: tensor.shape for key, tensor in backbone.state_dict().items()}
    try:
        with torch.device("meta"):
            like = build(name)
        is_like = shapes == {key: tensor.shape for key, tensor in like.state_dict().items()}
    except RecipeError:
        is_like = False
    if not is_like:
        raise RecipeError(
            f"{name}() does not build this backbone again, as teachers and saved models need: "
            "write a function without arguments, annotated to return the module, in a file that "
            "can be imported, and give vision.backbone its name as module:function"
        )
    return name


@cache
def measure(backbone: str, image_size: int) -> Measures:
    """What a backbone gives for square images; it is asked without computing, if it can be.

    Raises:
        RecipeError: if it takes no such images, or gives something else than tokens.
    """
    module = undrawn(backbone).eval()
    try:
        shape = output_shape(module, image_size)
    except Exception as error:  # whatever a module of anybody raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"{shown(backbone)} takes no images of {image_size} px ({reason:.120}): give the "
            "size that it was made for"
        ) from error
    if len(shape) != 3:
        raise RecipeError(
            f"{shown(backbone)} gives a tensor of shape {tuple(shape)}; a backbone gives "
            "(batch, patches, width)"
        )
    own = _num_prefix_tokens(module)
    return Measures(
        tokens=shape[1] + (own == 0),
        width=shape[2],
        prefix_tokens=max(1, own),
        blocks=len(blocks_of(module)),
    )


@torch.no_grad()
def output_shape(
    module: nn.Module,
    image_size: int,
    watch: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> torch.Size:
    """The shape of what a module gives for one image.

    Args:
        module: a backbone, in evaluation mode.
        image_size: in pixels.
        watch: makes a context for the forward pass.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), watch():
            out: Tensor = module(torch.zeros(1, 3, image_size, image_size, device="cpu"))
    except Exception:  # it may look at numbers, which are not there
        with watch():
            out = module(torch.zeros(1, 3, image_size, image_size, device="cpu"))
    return out.shape


def blocks_of(backbone: nn.Module) -> Sequence[nn.Module]:
    """The layers that a backbone shows; none of one that has no `blocks`."""
    blocks = getattr(backbone, "blocks", None)
    if not isinstance(blocks, Iterable):
        return ()
    listed = tuple(blocks)
    return listed if all(isinstance(block, nn.Module) for block in listed) else ()


def shown(backbone: str) -> str:
    """A backbone's name for people: of settings, the kind of model alone."""
    library, _, name = backbone.partition(":")
    if library == TRANSFORMERS and name.startswith("{"):
        from openblip.model.library_backbones import model_type

        return f"the backbone {library}:{model_type(name)}"
    return f"the backbone {backbone}"


def _num_prefix_tokens(backbone: nn.Module) -> int:
    return int(getattr(backbone, "num_prefix_tokens", 0))


def _recomputing(block: nn.Module) -> Callable[..., Any]:
    """The block's forward, whose activations the backward pass of training computes again."""
    forward = block.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not block.training:
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return recomputed


class _PrivateDraws(TorchFunctionMode):
    """Lets nobody draw from the global generator.

    A checkpoint is written beside training, whose draws must not depend on when.
    """

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator(device="cpu")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in _LIKE:
            return torch.zeros_like(*args, **named)
        if func in _DRAWS and named.get("generator") is None:
            named["generator"] = self._generator
        return func(*args, **named)


# What draws where weights are made, and takes a generator; the two below take none.
_DRAWS = frozenset(
    {
        *(getattr(torch, name) for name in ("rand", "randn", "randint", "randperm", "normal")),
        *(getattr(Tensor, f"{name}_") for name in ("normal", "uniform", "random", "exponential")),
        *(getattr(nn.init, f"{name}_") for name in ("normal", "uniform", "trunc_normal")),
        *(getattr(nn.init, f"kaiming_{name}_") for name in ("normal", "uniform")),
        *(getattr(nn.init, f"xavier_{name}_") for name in ("normal", "uniform")),
        nn.init.orthogonal_,
    }
)
_LIKE = frozenset({torch.rand_like, torch.randn_like})


def _emptied(module: nn.Module) -> nn.Module:
    """The module with its state on the meta device, in place."""
    state = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    empty: dict[int, Tensor] = {}

    def without_memory(tensor: Tensor) -> Tensor:
        # By identity: weights that are tied stay so.
        if id(tensor) not in empty:
            bare = torch.empty_like(tensor, device="meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            empty[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if is_parameter else bare
        return empty[id(tensor)]

    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, tensor in own.items():
                if tensor is not None and id(tensor) in state:
                    cast("dict[str, Any]", own)[name] = without_memory(tensor)
    return module
