"""AdamW, and which parameters decay."""

import pytest
import torch
from torch import nn

from openblip.training.optimiser import build_optimiser, set_learning_rate, trained_parameters
from openblip.training.recipe import OptimiserConfig


class Parts(nn.Module):
    """A weight, a bias, a norm and a temperature; and a frozen copy, like a teacher's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.teacher = nn.Linear(2, 2).requires_grad_(False)
        for parameter in self.parameters():
            parameter.data.fill_(1.0)


def after_a_step_without_gradient(config: OptimiserConfig) -> dict[str, float]:
    parts = Parts()
    optimiser = build_optimiser(trained_parameters(parts), config)
    for parameter in trained_parameters(parts):
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    return {name: parameter.mean().item() for name, parameter in parts.named_parameters()}


def test_everything_that_is_trained_decays_by_default() -> None:
    values = after_a_step_without_gradient(OptimiserConfig(lr=0.1, weight_decay=0.05))
    trained = {name: value for name, value in values.items() if not name.startswith("teacher")}
    assert trained == pytest.approx(dict.fromkeys(trained, 1 - 0.1 * 0.05))
    assert values["teacher.weight"] == 1.0


def test_norms_and_biases_can_be_exempt() -> None:
    config = OptimiserConfig(lr=0.1, weight_decay=0.05, decay_norms_and_biases=False)
    values = after_a_step_without_gradient(config)
    assert values["linear.bias"] == values["norm.weight"] == values["norm.bias"] == 1.0
    assert values["linear.weight"] == pytest.approx(0.995)
    assert values["temperature"] == pytest.approx(0.995)


def test_the_learning_rate_is_that_of_every_group() -> None:
    config = OptimiserConfig(lr=0.1, decay_norms_and_biases=False)
    optimiser = build_optimiser(trained_parameters(Parts()), config)
    set_learning_rate(optimiser, 0.02)
    assert [group["lr"] for group in optimiser.param_groups] == [0.02, 0.02]
