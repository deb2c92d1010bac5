"""A linear layer gives the same by either product, with a gradient and without."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from openblip.model import kernels
from openblip.model.flops import flop_counter
from openblip.model.kernels import (
    FEW_ROWS,
    Linear,
    Products,
    has_onednn,
    linear,
    mlp,
    prefers_onednn,
    products,
    use_products,
)
from openblip.runtime.errors import RecipeError

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="no x86 processor with oneDNN")


@pytest.fixture
def with_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are oneDNN's, on Intel's processors too."""
    monkeypatch.setattr(kernels, "prefers_onednn", lambda *direction: True)


@pytest.fixture(params=[pytest.param(True, marks=needs_onednn), False], ids=["oneDNN", "PyTorch"])
def either_library(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(kernels, "prefers_onednn", lambda *direction: request.param)


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


@pytest.mark.usefixtures("either_library")
@pytest.mark.parametrize("rows", ROWS)
@torch.no_grad()
def test_outputs_are_those_of_pytorch(layer: Linear, rows: tuple[int, ...]) -> None:
    hidden = torch.randn(*rows, 24)
    expected = F.linear(hidden, layer.weight, layer.bias)
    torch.testing.assert_close(layer(hidden), expected)
    torch.testing.assert_close(layer.with_gelu(hidden), F.gelu(expected))
    no_bias = linear(hidden, layer.weight, None)
    torch.testing.assert_close(no_bias, F.linear(hidden, layer.weight))


@pytest.mark.usefixtures("either_library")
@torch.no_grad()
def test_tensors_that_are_not_contiguous(layer: Linear) -> None:
    hidden = torch.randn(24, 5, 7).permute(2, 1, 0)
    expected = F.linear(hidden, layer.weight, layer.bias)
    torch.testing.assert_close(layer(hidden), expected)
    view = torch.randn(80, 24)[::2]
    torch.testing.assert_close(linear(hidden, view, None), F.linear(hidden, view))


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine on which nobody has asked yet; where it keeps its choice."""
    monkeypatch.setattr(kernels, "_given", [])
    monkeypatch.delenv("OPENBLIP_PRODUCTS", raising=False)
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    kernels._of_this_machine.cache_clear()
    yield tmp_path / "cache"
    kernels._of_this_machine.cache_clear()


@needs_onednn
def test_the_choice_is_measured_once_on_a_machine(
    unasked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = products()
    (kept,) = unasked.iterdir()
    found = json.loads(kept.read_text())
    assert found["products"] == str(first)
    assert set(found["log_speedup"]) == {"forward", "input", "weight", "few"}
    # Another process, in which a measurement would come out otherwise.
    kernels._of_this_machine.cache_clear()
    other = "torch,onednn,torch,torch" if first.forward == "onednn" else "onednn,torch,onednn,torch"
    monkeypatch.setattr(kernels, "_measured", lambda: {"products": other})
    assert products() == first
    kernels._of_this_machine.cache_clear()
    kept.unlink()
    assert products() == Products.of(other)


@needs_onednn
def test_an_operation_counter_and_a_step_without_content_do_not_see_the_measurement(
    unasked: Path, layer: Linear
) -> None:
    hidden = torch.randn(6, 24)
    with flop_counter() as counter, torch.no_grad():
        layer(hidden)
    assert counter.get_total_flops() == 2 * 6 * 24 * 40
    assert list(unasked.iterdir())


@needs_onednn
@pytest.mark.parametrize(
    ("speedup", "chosen"), [(1.0, "torch"), (1.2, "torch"), (1.3, "onednn"), (0.5, "torch")]
)
def test_onednn_is_taken_where_it_is_clearly_faster(
    unasked: Path, monkeypatch: pytest.MonkeyPatch, speedup: float, chosen: str
) -> None:
    monkeypatch.setattr(
        kernels, "_ratio", lambda direction, *shape: speedup if direction == "input" else 1.0
    )
    assert products() == Products("torch", chosen, "torch", "torch")


@needs_onednn
@pytest.mark.parametrize(("speedup", "chosen"), [(1.1, "onednn"), (0.9, "torch")])
def test_of_few_rows_any_gain_counts(
    unasked: Path, monkeypatch: pytest.MonkeyPatch, speedup: float, chosen: str
) -> None:
    monkeypatch.setattr(
        kernels, "_ratio", lambda direction, *shape: speedup if direction == "few" else 1.0
    )
    assert products() == Products("torch", "torch", "torch", chosen)


@needs_onednn
@pytest.mark.parametrize(
    ("processor", "preferred"),
    [("Intel Xeon", False), ("AMD EPYC 9R14", True), ("QEMU Virtual", True), (None, True)],
)
@pytest.mark.parametrize("damage", ["a file for a folder", "no JSON", "unknown words"])
def test_the_vendor_decides_where_no_choice_can_be_kept(
    unasked: Path,
    monkeypatch: pytest.MonkeyPatch,
    processor: str | None,
    preferred: bool,
    damage: str,
) -> None:
    known = {} if processor is None else {"cpu_name": processor}
    # PyTorch 2.8 has no such function.
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    if damage == "a file for a folder":
        unasked.write_text("")
    else:
        unasked.mkdir()
        kept = unasked / f"products-by-shape-{kernels.machine_key()}.json"
        kept.write_text("{" if damage == "no JSON" else '{"products": "fast"}')
    assert products() == Products.of("onednn" if preferred else "torch")


@needs_onednn
@pytest.mark.parametrize("few", ["torch", "onednn"])
@pytest.mark.parametrize("many", ["torch", "onednn"])
def test_few_rows_have_a_choice_of_their_own(
    unasked: Path, monkeypatch: pytest.MonkeyPatch, layer: Linear, few: str, many: str
) -> None:
    use_products(Products.of(f"{many},{many},{many},{few}"))
    asked: list[int] = []
    by_onednn = kernels.onednn_linear

    def noted(hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        asked.append(hidden.numel() // 24)
        return by_onednn(hidden, *rest)

    monkeypatch.setattr(kernels, "onednn_linear", noted)
    with torch.no_grad():
        for rows in (1, FEW_ROWS, FEW_ROWS + 1, 500):
            hidden = torch.randn(rows, 24)
            torch.testing.assert_close(
                layer(hidden), F.linear(hidden, layer.weight, layer.bias), rtol=1e-5, atol=1e-6
            )
    expected = [1, FEW_ROWS] * (few == "onednn") + [FEW_ROWS + 1, 500] * (many == "onednn")
    assert asked == expected


def test_without_onednn_products_are_those_of_pytorch(
    unasked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "has_onednn", lambda: False)
    assert products() == Products.of("torch")
    use_products(Products.of("onednn"))  # of a run that was begun elsewhere
    assert not prefers_onednn()


def test_a_users_setting_wins(unasked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in {
        "onednn": Products("onednn", "onednn", "onednn", "onednn"),
        # As runs of earlier versions have it: few rows are as many.
        "onednn,torch,torch": Products("onednn", "torch", "torch", "onednn"),
        "torch,onednn,torch,onednn": Products("torch", "onednn", "torch", "onednn"),
    }.items():
        monkeypatch.setenv("OPENBLIP_PRODUCTS", text)
        assert products() == expected
    assert not unasked.exists()


@pytest.mark.parametrize("text", ["mkl", "torch,torch", "torch,onednn,fast", ",", "torch," * 4])
def test_a_setting_that_names_no_library_is_refused(
    unasked: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("OPENBLIP_PRODUCTS", text)
    with pytest.raises(RecipeError, match="torch or onednn, or several"):
        products()


@needs_onednn
@pytest.mark.parametrize("by_onednn", ["forward", "input", "weight"])
def test_each_direction_has_its_own_library(
    unasked: Path, layer: Linear, monkeypatch: pytest.MonkeyPatch, by_onednn: str
) -> None:
    chosen = Products.of("torch")._replace(**{by_onednn: "onednn"})
    use_products(chosen)
    monkeypatch.setattr(kernels, "_WORTH_A_FUNCTION", 0)
    calls = []
    plain = kernels.onednn_linear
    monkeypatch.setattr(
        kernels, "onednn_linear", lambda *given: calls.append(given[0].shape) or plain(*given)
    )
    hidden = torch.randn(6, 24, requires_grad=True)
    layer(hidden).sum().backward()
    assert calls == [{"forward": (6, 24), "input": (6, 40), "weight": (40, 6)}[by_onednn]]


@needs_onednn
@pytest.mark.usefixtures("with_onednn")
def test_onednn_is_taken_unless_a_small_product_has_a_gradient(layer: Linear) -> None:
    hidden = torch.randn(6, 24)
    assert not takes_onednn(layer, hidden)
    assert takes_onednn(layer, torch.randn(5000, 24))
    with torch.no_grad():
        assert takes_onednn(layer, hidden)
    with torch.inference_mode():
        assert takes_onednn(layer, hidden)


@needs_onednn
@pytest.mark.usefixtures("with_onednn")
@torch.no_grad()
def test_other_types_go_the_usual_way(layer: Linear) -> None:
    half = copy.deepcopy(layer).bfloat16()
    assert not takes_onednn(half, torch.randn(6, 24, dtype=torch.bfloat16))
    with torch.enable_grad():
        assert not takes_onednn(half, torch.randn(5000, 24, dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(6, 24)).dtype == torch.bfloat16


@pytest.fixture(params=[False, True], ids=["small", "beyond the caches"])
def any_size(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, either_library: None
) -> None:
    """Products of the tiny sizes here are functions of ours, too."""
    monkeypatch.setattr(kernels, "_WORTH_A_FUNCTION", 0)
    if request.param:
        monkeypatch.setattr(kernels, "_BEYOND_CACHES", 0)


def assert_gradients_are_exact(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, towards: torch.Tensor
) -> None:
    """What `linear` computes, and its gradients, against `F.linear` in float64."""
    given = [x for x in (hidden, weight, bias) if x is not None and x.requires_grad]
    out = linear(hidden, weight, bias)
    found = torch.autograd.grad(out, given, towards)
    exact = [None if x is None else x.detach().double() for x in (hidden, weight, bias)]
    for mine, original in zip(exact, (hidden, weight, bias), strict=True):
        if mine is not None:
            mine.requires_grad_(original.requires_grad)
    expected_out = F.linear(*exact)
    learning = [x for x in exact if x is not None and x.requires_grad]
    expected = torch.autograd.grad(expected_out, learning, towards.double())
    for mine, theirs in zip((out, *found), (expected_out.detach(), *expected), strict=True):
        assert mine.dtype == torch.float32
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("rows", [(), *ROWS])
@pytest.mark.parametrize(
    "learning", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, None), (0, 1, None)], ids=str
)
def test_gradients_are_those_of_pytorch(
    rows: tuple[int, ...], learning: tuple[int, int, int | None]
) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(*rows, 24, requires_grad=bool(learning[0]))
    weight = torch.randn(40, 24, requires_grad=bool(learning[1]))
    bias = None if learning[2] is None else torch.randn(40, requires_grad=bool(learning[2]))
    assert_gradients_are_exact(hidden, weight, bias, torch.randn(*rows, 40))


@pytest.mark.usefixtures("any_size")
def test_gradients_of_tensors_that_are_not_contiguous() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(24, 5, 7).permute(2, 1, 0).requires_grad_()
    bias = torch.randn(40, requires_grad=True)
    towards = {
        "contiguous": torch.randn(7, 5, 40),
        "transposed": torch.randn(40, 5, 7).permute(2, 1, 0),
        "a part of the rows": torch.randn(7, 5, 80)[..., ::2],
        "one value for all": torch.tensor(2.0).expand(7, 5, 40),
    }
    for weight in (torch.randn(80, 24)[::2], torch.randn(24, 40).t(), torch.randn(40, 48)[:, ::2]):
        for gradient in towards.values():
            assert_gradients_are_exact(hidden, weight.requires_grad_(), bias, gradient)


@pytest.mark.usefixtures("either_library")
def test_a_product_of_the_size_of_training() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 197, 256, requires_grad=True)
    weight, bias = torch.randn(512, 256, requires_grad=True), torch.randn(512, requires_grad=True)
    assert_gradients_are_exact(hidden, weight, bias, torch.randn(2, 197, 512))


@pytest.mark.usefixtures("any_size")
def test_a_gradient_through_gelu(layer: Linear) -> None:
    hidden = torch.randn(3, 24)
    layer.with_gelu(hidden).square().sum().backward()
    plain = nn.Linear(24, 40)
    plain.load_state_dict(layer.state_dict())
    F.gelu(plain(hidden)).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("learning", ["all", "hidden", "up", "down"])
def test_a_hidden_layer_that_is_computed_again_gives_the_same_gradients(learning: str) -> None:
    torch.manual_seed(0)
    up, down, hidden = Linear(24, 40), Linear(40, 24), torch.randn(3, 7, 24)
    towards = torch.randn(3, 7, 24)
    parts = {"hidden": [hidden], "up": list(up.parameters()), "down": list(down.parameters())}
    found = []
    for function in (mlp, lambda hidden, up, down: down(F.gelu(up(hidden)))):
        for name, tensors in parts.items():
            for tensor in tensors:
                tensor.requires_grad_(learning in (name, "all")).grad = None
        out = function(hidden, up, down)
        out.backward(towards)
        found.append([out.detach(), *(t.grad for own in parts.values() for t in own)])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("learns", [True, False])
def test_a_norm_that_is_computed_again_gives_the_same_gradients(learns: bool) -> None:
    torch.manual_seed(0)
    norm, up, down = nn.LayerNorm(24), Linear(24, 40), Linear(40, 24)
    nn.init.normal_(norm.weight)
    hidden, towards = torch.randn(3, 7, 24), torch.randn(3, 7, 64)
    given = [hidden.requires_grad_(learns), *norm.parameters(), *up.parameters()]
    found = []
    for first, second in (
        (up.of_normed(hidden, norm), mlp(hidden, up, down, norm)),
        (up(norm(hidden)), mlp(norm(hidden), up, down)),
    ):
        out = torch.cat([first, second], dim=-1)
        learning = [tensor for tensor in given if tensor.requires_grad]
        found.append([out.detach(), *torch.autograd.grad(out, learning, towards)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("either_library")
def test_what_gelu_and_norm_give_is_not_kept() -> None:
    norm, up, down = nn.LayerNorm(64), Linear(64, 256), Linear(256, 64)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mlp(torch.randn(1000, 64), up, down, norm)
    sizes = list(kept.values())
    assert sizes.count(1000 * 256) == sizes.count(1000 * 64) == 1


@pytest.mark.usefixtures("any_size")
def test_a_weight_that_is_used_twice_sums_both_gradients(layer: Linear) -> None:
    """As the word embeddings are, which are the LM head's weight too."""
    ids, again = torch.tensor([0, 3, 3]), torch.randn(3, 24)
    words = layer.weight.detach().clone().requires_grad_()
    for _ in range(2):  # the second adds to what the first left
        linear(F.embedding(ids, layer.weight), layer.weight, None).square().sum().backward()
        linear(again, layer.weight, None).square().sum().backward()
        F.linear(F.embedding(ids, words), words).square().sum().backward()
        F.linear(again, words).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, words.grad)
    # So that the optimiser reads both in one order.
    assert layer.weight.grad.stride() == layer.weight.stride()


@pytest.mark.usefixtures("any_size")
def test_checkpointed_activations_give_the_same_bits(layer: Linear) -> None:
    gradients = []
    for again in (False, False, True):
        layer.zero_grad()
        hidden = torch.ones(64, 24).mul(torch.arange(24) / 7).requires_grad_()
        out = checkpoint(layer, hidden, use_reentrant=False) if again else layer(hidden)
        out.square().sum().backward()
        gradients.append((hidden.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    for others in gradients[1:]:
        for one, other in zip(gradients[0], others, strict=True):
            assert torch.equal(one, other)


@pytest.mark.usefixtures("either_library")
def test_the_backward_pass_is_two_products_where_both_sides_learn(layer: Linear) -> None:
    hidden, forward = torch.randn(5000, 24), 2 * 5000 * 24 * 40
    counted = {}
    for name, learns in {"both": True, "weight": False}.items():
        with flop_counter() as counter:
            layer(hidden.clone().requires_grad_(learns)).sum().backward()
        counted[name] = counter.get_total_flops()
    layer.requires_grad_(False)
    with flop_counter() as counter:
        layer(hidden.requires_grad_()).sum().backward()
    assert counted == {"both": 3 * forward, "weight": 2 * forward}
    assert counter.get_total_flops() == 2 * forward
    with flop_counter() as counter:
        layer(hidden.detach())
    assert counter.get_total_flops() == forward


@needs_onednn
@pytest.mark.usefixtures("with_onednn")
def test_a_gradient_has_no_gradient(layer: Linear) -> None:
    hidden = torch.randn(5000, 24, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(hidden).square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
