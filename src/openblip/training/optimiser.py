"""AdamW over the trained parameters, and which of them decay."""

from collections.abc import Iterable

import torch
from torch import nn

from openblip.training.config import OptimiserConfig

# Devices that have a kernel which updates all parameters at once.
_FUSED_ON = ("cpu", "cuda", "mps")


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that receive gradients, each once, in a fixed order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def build_optimiser(
    parameters: Iterable[nn.Parameter], config: OptimiserConfig
) -> torch.optim.AdamW:
    """AdamW of the parameters (Loshchilov and Hutter, 2019; BLIP, section 4.1).

    Args:
        parameters: in the same order whenever a run is resumed; all on one device.
        config: with `decay_norms_and_biases=False` one-dimensional parameters (norms and biases)
            do not decay; the temperature, which has no dimension, does.
    """
    every = list(parameters)

    def decay_of(parameter: nn.Parameter) -> float:
        exempt = parameter.ndim == 1 and not config.decay_norms_and_biases
        return 0.0 if exempt else config.weight_decay

    # The kernel takes parameters that are divided among processes and whole ones, but not at once.
    keys = [(type(parameter), decay_of(parameter)) for parameter in every]
    groups = [
        {
            "params": [p for p, own in zip(every, keys, strict=True) if own == key],
            "weight_decay": key[1],
        }
        for key in dict.fromkeys(keys)
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=all(p.device.type in _FUSED_ON for p in every),
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of the optimiser the learning rate `lr`."""
    for group in optimiser.param_groups:
        group["lr"] = lr
