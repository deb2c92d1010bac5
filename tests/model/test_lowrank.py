"""Low-rank changes of frozen weights: exact, learnt alone, and merged without a difference."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.model import Med
from openblip.model import kernels as linear_module
from openblip.model.kernels import Linear, mlp
from openblip.model.lowrank import adapt, add_changes, low_rank_layers, merge
from openblip.runtime.errors import RecipeError

MakeMed = Callable[..., Med]
EVERY = ("image_encoder", "text", "image_projection", "text_projection")


def draw(model: nn.Module) -> None:
    """Changes as if they had been learnt."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in low_rank_layers(model):
            layer.up.copy_(torch.randn(layer.up.shape, generator=generator) * 0.2)
            layer.down.copy_(torch.randn(layer.down.shape, generator=generator) * 0.2)


def outputs(med: Med) -> dict[str, Tensor]:
    """Everything that a model computes, of given inputs."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    ids = torch.randint(1, 50, (2, 7), generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [5]])
    hidden = med.encode_images(images)
    memory = med.text.remember(hidden)
    return {
        "images": hidden,
        "image embed": med.embed_images(hidden),
        "text embed": med.embed_texts(ids, mask),
        "match": med.match(ids, mask, memory),
        "next tokens": med.decode(ids, mask, memory),
    }


def merged(med: Med) -> Med:
    weights = {name: tensor.clone() for name, tensor in med.state_dict().items()}
    merge(weights, med)
    plain = Med(med.config).eval()
    plain.load_state_dict(weights)
    return plain


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5, msg=name)


def test_a_change_begins_at_nothing(make_med: MakeMed) -> None:
    med = make_med()
    before = outputs(med)
    adapt(med, 4, 8.0, EVERY)
    for name, tensor in outputs(med).items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("with_gradient", [False, True])
def test_the_merged_model_computes_what_the_adapted_one_does(
    make_med: MakeMed, with_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_gradient:
        # Fused functions are taken for small products too.
        monkeypatch.setattr(linear_module, "_WORTH_A_FUNCTION", 0)
    med = make_med()
    plain = outputs(med)
    adapt(med, 4, 8.0, EVERY)
    draw(med)
    with torch.set_grad_enabled(with_gradient):
        adapted, together = outputs(med), outputs(merged(med))
    assert_equal(together, adapted)
    for name, tensor in plain.items():
        assert not torch.allclose(adapted[name], tensor, atol=1e-2), name


def test_factors_have_the_gradient_of_the_merged_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    for least in (0, 2**40):
        monkeypatch.setattr(linear_module, "_WORTH_A_FUNCTION", least)
        up, down, norm = Linear(12, 20), Linear(20, 12), nn.LayerNorm(12)
        pair = nn.ModuleDict({"up": up, "down": down})
        adapt(pair, 3, 6.0, ("up", "down"))
        draw(pair)
        hidden = torch.randn(5, 12, requires_grad=True)

        mlp(hidden, pair["up"], pair["down"], norm).square().sum().backward()

        layers = dict(low_rank_layers(pair))
        copies = {
            (name, factor): getattr(layer, factor).detach().clone().requires_grad_()
            for name, layer in layers.items()
            for factor in ("up", "down")
        }
        whole = {
            name: layer.weight + 2.0 * copies[name, "up"] @ copies[name, "down"]
            for name, layer in layers.items()
        }
        again = hidden.detach().clone().requires_grad_()
        inner = F.gelu(F.linear(norm(again), whole["up"], layers["up"].bias))
        F.linear(inner, whole["down"], layers["down"].bias).square().sum().backward()
        torch.testing.assert_close(hidden.grad, again.grad)
        for (name, factor), copy in copies.items():
            torch.testing.assert_close(getattr(layers[name], factor).grad, copy.grad)
        assert layers["up"].weight.grad is None


def test_only_the_factors_and_what_is_named_are_trained(make_med: MakeMed) -> None:
    med = make_med()
    adapt(med, 4, 8.0, ("text.layers.1.ffn", "query"), ("itm_head",))
    trained = {name for name, p in med.named_parameters() if p.requires_grad}
    layers = [f"text.layers.1.ffn.{name}" for name in ("up", "down")]
    layers += [f"text.layers.{n}.cross_attention.query" for n in range(3)]
    factors = {f"{layer}.{factor}" for layer in layers for factor in ("up", "down")}
    assert trained == factors | {"itm_head.weight", "itm_head.bias"}
    assert {name for name, _ in low_rank_layers(med)} == set(layers)


def test_a_slow_copy_follows_the_changed_weights(make_med: MakeMed) -> None:
    med, copy = make_med(), make_med(heads=("itc",))
    adapt(med, 4, 8.0, EVERY)
    draw(med)
    whole, before = merged(med).state_dict(), copy.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}

    add_changes(copy, med, 0.25)

    plain = med.state_dict()
    for name, tensor in copy.state_dict().items():
        expected = before[name] + 0.25 * (whole[name] - plain[name])
        torch.testing.assert_close(tensor, expected)


def test_what_cannot_be_adapted_is_named(make_med: MakeMed) -> None:
    with pytest.raises(RecipeError, match=r"lora.targets: nothing .* 'querry'.* query"):
        adapt(make_med(), 4, 8.0, ("querry",))
    with pytest.raises(RecipeError, match=r"lora.trained: nothing .* 'classifier'"):
        adapt(make_med(), 4, 8.0, ("query",), ("classifier",))
    with pytest.raises(RecipeError, match=r"lora.rank is 24, but image_encoder\S+ has rank 24"):
        adapt(make_med(), 24, 8.0, ("qkv",))
