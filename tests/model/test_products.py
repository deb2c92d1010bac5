"""Attention is PyTorch's, whichever way it is computed."""

import pytest
import torch
import torch.nn.functional as F

from openblip.model import kernels as products
from openblip.model.attention import split_heads
from openblip.model.kernels import attend, has_onednn

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="no x86 processor with oneDNN")


@pytest.fixture(params=[pytest.param(True, marks=needs_onednn), False], ids=["oneDNN", "PyTorch"])
def either_library(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(products, "prefers_onednn", lambda *direction: request.param)


def make(queries: int, keys: int) -> tuple[torch.Tensor, ...]:
    """Heads as a linear layer leaves them: not contiguous."""
    generator = torch.Generator().manual_seed(queries + keys)
    return tuple(
        split_heads(2 * torch.randn(2, tokens, 24, generator=generator), 3)
        for tokens in (queries, keys, keys)
    )


# Few queries, many queries, few keys; at and beside the bounds.
SIZES = [
    (1, 20),
    (1, 200),
    (3, 577),
    (32, 128),
    (33, 128),
    (33, 127),
    (33, 256),
    (33, 255),
    (260, 260),
    (0, 300),
]


@pytest.mark.usefixtures("either_library")
@pytest.mark.parametrize(("queries", "keys"), SIZES)
def test_attention_is_that_of_pytorch(queries: int, keys: int) -> None:
    query, key, value = make(queries, keys)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double()).float()
    with torch.no_grad():
        torch.testing.assert_close(attend(query, key, value), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attend(query, key, value), exact, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_mask_hides_tokens() -> None:
    query, key, value = make(4, 150)
    mask = torch.ones(2, 1, 1, 150, dtype=torch.bool)
    mask[..., 100:] = False
    seen = attend(query, key[:, :, :100], value[:, :, :100])
    torch.testing.assert_close(attend(query, key, value, mask), seen)


@pytest.mark.usefixtures("either_library")
@torch.no_grad()
def test_nothing_that_was_given_is_changed() -> None:
    for size in SIZES:
        given = make(*size)
        before = [part.clone() for part in given]
        attend(*given)
        for part, copy in zip(given, before, strict=True):
            assert torch.equal(part, copy)


@pytest.mark.parametrize("queries", [3, 150])
def test_a_gradient_reaches_all_three(queries: int) -> None:
    parts = [part.requires_grad_() for part in make(queries, 150)]
    attend(*parts).sum().backward()
    assert all(part.grad is not None for part in parts)
