"""A linear layer gives the same by either product, and takes oneDNN's where no gradient is due."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from openblip.model.flops import flop_counter
from openblip.model.linear import Linear, has_onednn, linear

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="no x86 processor with oneDNN")
ROWS = [(1,), (3,), (0,), (2, 5), (2, 0), (2, 3, 4)]


@pytest.fixture
def layer() -> Linear:
    torch.manual_seed(0)
    return Linear(24, 40)


def takes_onednn(layer: nn.Module, hidden: torch.Tensor) -> bool:
    """PyTorch's own counter does not know the operator; ours does."""
    with FlopCounterMode(display=False) as without:
        layer(hidden)
    with flop_counter() as counter:
        layer(hidden)
    assert counter.get_total_flops() == 2 * hidden.numel() // 24 * 24 * 40
    return without.get_total_flops() == 0


@pytest.mark.parametrize("rows", ROWS)
@torch.no_grad()
def test_outputs_are_those_of_pytorch(layer: Linear, rows: tuple[int, ...]) -> None:
    hidden = torch.randn(*rows, 24)
    expected = F.linear(hidden, layer.weight, layer.bias)
    torch.testing.assert_close(layer(hidden), expected)
    torch.testing.assert_close(layer.with_gelu(hidden), F.gelu(expected))
    no_bias = linear(hidden, layer.weight, None)
    torch.testing.assert_close(no_bias, F.linear(hidden, layer.weight))


@torch.no_grad()
def test_tensors_that_are_not_contiguous(layer: Linear) -> None:
    hidden = torch.randn(24, 5, 7).permute(2, 1, 0)
    expected = F.linear(hidden, layer.weight, layer.bias)
    torch.testing.assert_close(layer(hidden), expected)
    view = torch.randn(80, 24)[::2]
    torch.testing.assert_close(linear(hidden, view, None), F.linear(hidden, view))


@needs_onednn
def test_onednn_is_taken_without_a_gradient_alone(layer: Linear) -> None:
    hidden = torch.randn(6, 24)
    assert not takes_onednn(layer, hidden)
    with torch.no_grad():
        assert takes_onednn(layer, hidden)
    with torch.inference_mode():
        assert takes_onednn(layer, hidden)


@needs_onednn
@torch.no_grad()
def test_other_types_go_the_usual_way(layer: Linear) -> None:
    half = copy.deepcopy(layer).bfloat16()
    assert not takes_onednn(half, torch.randn(6, 24, dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(6, 24)).dtype == torch.bfloat16


def test_gradients_are_those_of_pytorch(layer: Linear) -> None:
    hidden = torch.randn(3, 24)
    layer.with_gelu(hidden).square().sum().backward()
    plain = nn.Linear(24, 40)
    plain.load_state_dict(layer.state_dict())
    F.gelu(plain(hidden)).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
