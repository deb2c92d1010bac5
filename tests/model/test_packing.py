"""Texts without their padding compute what they compute with it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from openblip.model import Med, MedConfig, TextPass
from openblip.model.packing import Packing
from openblip.model.text import TextStack

MASK = torch.arange(6) < torch.tensor([4, 6, 1])[:, None]


@pytest.fixture
def packing() -> Packing:
    return Packing.without_padding(MASK)


def test_only_the_places_of_the_mask_are_packed(packing: Packing) -> None:
    states = torch.randn(3, 6, 8)
    assert packing.count == 11
    assert torch.equal(packing.pack(states), states[MASK])


def test_padding_is_zeros(packing: Packing) -> None:
    states = torch.randn(3, 6, 8)
    assert torch.equal(packing.pad(packing.pack(states)), states * MASK[:, :, None])


def test_gradients_return_to_their_places(packing: Packing) -> None:
    states = torch.randn(3, 6, 8, requires_grad=True)
    towards = torch.randn(3, 6, 8)
    packing.pad(packing.pack(states)).backward(towards)
    assert torch.equal(states.grad, towards * MASK[:, :, None])


@pytest.mark.parametrize("rows", [0, 3])
def test_texts_without_padding_are_not_copied(rows: int) -> None:
    packing = Packing.without_padding(torch.ones(rows, 6, dtype=torch.bool))
    assert packing.places is None
    states = torch.randn(rows, 6, 8)
    packed = packing.pack(states)
    assert packed.shape == (rows * 6, 8)
    assert packed.data_ptr() == states.data_ptr() == packing.pad(packed).data_ptr()


@pytest.fixture
def med() -> Med:
    torch.manual_seed(0)
    config = MedConfig.preset("tiny", vocab_size=50, image_size=32)
    return Med(replace(config, text=replace(config.text, dropout=0.0)))


def passes(med: Med, images: Tensor, reads: str | None) -> tuple[TextPass, ...]:
    """Matching and decoding of the same texts; `reads` None as training has it."""
    ids = torch.randint(50, (3, 6), generator=torch.Generator().manual_seed(1))
    memory = med.memories(med.encode_images(images)).encoder
    matching = TextPass(ids, MASK, memory, reads=reads or "first")
    return matching, TextPass(ids, MASK, memory, causal=True, reads=reads or "tokens")


def test_states_and_gradients_are_those_with_padding(med: Med) -> None:
    images = torch.randn(3, 3, 32, 32)
    towards = torch.randn(3 + int(MASK.sum()), med.config.text.width)
    found = []
    for reads in ("all", None):
        med.zero_grad()
        first, decoded = med.text(*passes(med, images, reads))
        states = torch.cat([first[:, 0], decoded[MASK]])
        states.backward(towards)
        found.append((states.detach(), {n: p.grad for n, p in med.named_parameters()}))
    (expected, with_padding), (states, without) = found
    torch.testing.assert_close(states, expected)
    assert {n for n, g in without.items() if g is None} == {
        n for n, g in with_padding.items() if g is None
    }
    for name, gradient in with_padding.items():
        if gradient is not None:
            scale = float(gradient.abs().max())
            torch.testing.assert_close(without[name], gradient, rtol=0, atol=1e-5 * scale)


def tokens_of_layers(stack: TextStack, *texts: TextPass) -> list[int]:
    """How many tokens each layer's feed-forward network computes."""
    seen: list[int] = []
    hooks = [
        layer.ffn.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
        for layer in stack.layers
    ]
    stack(*texts)
    for hook in hooks:
        hook.remove()
    return seen


def test_padding_is_not_computed_nor_what_nobody_reads(med: Med) -> None:
    matching, decoding = passes(med, torch.randn(3, 3, 32, 32), None)
    tokens = int(MASK.sum())
    assert tokens_of_layers(med.text, matching) == [tokens, tokens, 3]
    assert tokens_of_layers(med.text, decoding) == [tokens] * 3
    assert tokens_of_layers(med.text, matching, decoding) == [2 * tokens, 2 * tokens, 3 + tokens]
    whole = replace(matching, reads="all")
    assert tokens_of_layers(med.text, whole) == [MASK.numel()] * 3


def test_a_recorded_attention_is_that_of_all_tokens(med: Med) -> None:
    matching, _ = passes(med, torch.randn(3, 3, 32, 32), None)
    assert matching.memory is not None
    last = len(med.text.layers) - 1
    memory, record = matching.memory.recording(last)
    (states,) = med.text(replace(matching, memory=memory))
    assert record.probabilities is not None
    assert record.probabilities.shape[2] == MASK.shape[1]
    (expected,) = med.text(matching)
    torch.testing.assert_close(states[:, :1], expected)
