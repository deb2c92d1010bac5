"""Low-rank adaptation: a frozen model, and changes of some weights that are learnt (LoRA).

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openblip.model.kernels import Linear, linear
from openblip.runtime.errors import RecipeError


class LowRankLinear(Linear):
    """A frozen linear layer with a change that is learnt: W + (alpha / rank) up down.

    Section 4.1 of the paper. `up` begins at zero, and with it the change. Weight and bias keep
    their names in a state dict.

    Args:
        layer: whose weight and bias are taken over.
        rank: of the change.
        alpha: how much it counts, times the rank.
    """

    is_plain: ClassVar[bool] = False

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        # Not that of nn.Linear, which would draw weights that are not used.
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = alpha / rank
        self.down = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.up = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        if not self.down.is_meta:
            nn.init.normal_(self.down, std=self.in_features**-0.5)

    def forward(self, hidden: Float[Tensor, "*rows inner"]) -> Float[Tensor, "*rows outer"]:
        # Scaled where it is narrow; torch.compile loses a factor (`alpha`) of the sum.
        change = linear(self.scale * linear(hidden, self.down, None), self.up, None)
        return super().forward(hidden) + change

    def of_normed(
        self, hidden: Float[Tensor, "*rows inner"], norm: nn.LayerNorm
    ) -> Float[Tensor, "*rows outer"]:
        """Of `norm` of the states."""
        out: Tensor = self(norm(hidden))
        return out

    def with_gelu(self, hidden: Float[Tensor, "*rows inner"]) -> Float[Tensor, "*rows outer"]:
        """The exact GELU of the outputs."""
        return F.gelu(self(hidden))


def adapt(
    model: nn.Module, rank: int, alpha: float, targets: Sequence[str], trained: Sequence[str] = ()
) -> None:
    """Freeze a model, in place, but for low-rank changes of some of its linear layers.

    Args:
        model: any.
        rank: of the changes.
        alpha: a change counts alpha / rank times.
        targets: which layers are changed, by components of their names that follow each other:
            "qkv", "cross_attention", "image_encoder.blocks.11".
        trained: what is trained in full besides, likewise.

    Raises:
        RecipeError: if there is nothing of a name, or the rank is no less than a layer's own.
    """
    model.requires_grad_(False)
    layers = {name: m for name, m in model.named_modules() if _is_adaptable(m)}
    for name in _named(layers, targets, "lora.targets"):
        layer = layers[name]
        full = min(layer.in_features, layer.out_features)
        if rank >= full:
            raise RecipeError(
                f"lora.rank is {rank}, but {name} has rank {full}: lower it, or leave the layer "
                "out of lora.targets"
            )
        model.set_submodule(name, LowRankLinear(layer, rank, alpha))
    parameters = dict(model.named_parameters())
    for name in _named(parameters, trained, "lora.trained"):
        parameters[name].requires_grad_()


def low_rank_layers(model: nn.Module) -> Iterator[tuple[str, LowRankLinear]]:
    """The layers of a model that have a low-rank change, by name; of one not adapted, none."""
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            yield name, module


def merge(weights: dict[str, Tensor], adapted: nn.Module) -> None:
    """Put the changes of an adapted model into the weights, and take their factors out, in place.

    Args:
        weights: of the model's state dict; afterwards that of one without changes, which computes
            the same.
        adapted: the model.
    """
    for name, layer in low_rank_layers(adapted):
        # In the weights that are written, not in the model, which goes on learning.
        down, up = (weights.pop(f"{name}.{factor}") for factor in ("down", "up"))
        weights[f"{name}.weight"].addmm_(up, down, alpha=layer.scale)


@torch.no_grad()
def add_changes(module: nn.Module, adapted: nn.Module, factor: float) -> None:
    """Add the changes of an adapted model, `factor` times, to weights of the same names.

    Args:
        module: changed in place; it may lack some of the layers.
        adapted: the model; without a change nothing happens.
        factor: of all changes.
    """
    weights = dict(module.named_parameters())
    for name, layer in low_rank_layers(adapted):
        weight = weights.get(f"{name}.weight")
        if weight is not None:
            # Not in place: of a model that is divided among processes, PyTorch 2.8 cannot.
            scale = factor * layer.scale
            weight.copy_(torch.addmm(weight, layer.up, layer.down, alpha=scale))


def _is_adaptable(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a linear layer of ours or of a backbone; a subclass may be read otherwise."""
    return isinstance(module, Linear) or type(module) is nn.Linear


def _named(names: Iterable[str], parts: Sequence[str], field: str) -> list[str]:
    """The names that have one of the parts among their components, in order."""
    every = list(names)
    for part in parts:
        if not any(_has(name, part) for name in every):
            known = dict.fromkeys(
                component for name in every for component in name.split(".") if component.isalpha()
            )
            raise RecipeError(
                f"{field}: nothing of this model is named {part!r}; components of names are "
                f"{', '.join(known)}"
            )
    return [name for name in every if any(_has(name, part) for part in parts)]


def _has(name: str, part: str) -> bool:
    return f".{part}." in f".{name}."
