"""Grad-CAM over cross-attention: equal to a live peer's, and right where the answer is known."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.original import to_original
from openblip.inference.captions import find_words
from openblip.inference.decoding import Decoding
from openblip.inference.explanation import (
    default_layer,
    explain_answer,
    explain_caption,
    explain_match,
)
from openblip.model.vqa import Vqa, VqaConfig
from openblip.runtime.errors import DataError, MissingHead, RecipeError

from .conftest import make_med

TEXT = "a small elephant in the grass, under two umbrellas"
PROMPT = "a picture of "


def make_vqa(tokenizer: TextTokenizer) -> Vqa:
    config = make_med(tokenizer).config
    vqa = Vqa(VqaConfig(vision=config.vision, text=config.text))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in vqa.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.25, generator=generator)
    return vqa.eval()


def row(tokenizer: TextTokenizer, text: str, first: str = "enc") -> list[int]:
    tokens = tokenizer.encode([text], 40, first=first)
    return tokens.ids[0][tokens.mask[0]].tolist()


@pytest.fixture
def med(tokenizer):
    return make_med(tokenizer)


@pytest.fixture
def vqa(tokenizer) -> Vqa:
    return make_vqa(tokenizer)


@pytest.fixture
def hidden(med, images) -> torch.Tensor:
    with torch.no_grad():
        return med.encode_images(images[:1])


@pytest.fixture
def vqa_hidden(vqa, images) -> torch.Tensor:
    with torch.no_grad():
        return vqa.encode_images(images[:1])


@pytest.fixture
def question(tokenizer) -> list[int]:
    return row(tokenizer, "what is under the umbrella?")


@pytest.fixture
def answer(tokenizer) -> list[int]:
    return row(tokenizer, "a large dog", "dec")


@pytest.fixture
def caption(blip, images):
    """A caption of `hidden`, whose model is that of `blip`."""
    decoding = Decoding(max_length=14, min_length=12)
    return blip.generate(blip.encode(images[:1]), decoding, PROMPT)[0][0]


class TestPeer:
    """The same maps from `transformers`, whose attention is eager and in the graph."""

    @pytest.mark.parametrize("layer", [0, 1])
    @pytest.mark.parametrize("first", ["enc", "cls"])
    def test_match(self, med, tokenizer, hidden, layer, first):
        ids = row(tokenizer, TEXT, first)
        peer, state = self.encoder(med, to_original(med, "itm"))
        read = self.run(peer, ids, hidden)
        head = F.linear(read.last_hidden_state[0, 0], state["itm_head.weight"])
        logit = (head + state["itm_head.bias"])[1]
        (gradient,) = torch.autograd.grad(logit, read.cross_attentions[layer])
        expected = grad_cam(gradient, read.cross_attentions[layer])
        heat = explain_match(med, tokenizer, hidden, ids, layer)
        assert_same(heat, tokenizer, ids, expected)
        assert heat.score == pytest.approx(logit.item(), abs=1e-5)

    @pytest.mark.parametrize("layer", [0, 1])
    def test_caption(self, med, tokenizer, hidden, caption, layer):
        ids = list(caption.token_ids)
        start = len(row(tokenizer, PROMPT)) - 1
        peer = self.decoder(med, to_original(med, "caption"))
        written = self.run(peer, ids[:-1], hidden)
        logprobs = written.logits[0].log_softmax(-1)[range(len(ids) - 1), ids[1:]]
        attention = written.cross_attentions[layer]
        expected = []
        for place in range(start, len(ids)):
            (gradient,) = torch.autograd.grad(logprobs[place - 1], attention, retain_graph=True)
            expected.append(grad_cam(gradient, attention)[place - 1])
        heat = explain_caption(med, tokenizer, hidden, ids, PROMPT, layer)
        assert_same(heat, tokenizer, ids[start:], torch.stack(expected))
        assert heat.score == pytest.approx(caption.logprob, abs=1e-4)

    @pytest.mark.parametrize("layer", [0, 1])
    def test_answer(self, vqa, tokenizer, vqa_hidden, question, answer, layer):
        state = to_original(vqa)
        peer, _ = self.encoder(vqa, state)
        read = self.run(peer, question, vqa_hidden)
        decoder = self.decoder(vqa, state, vqa.config.text.width)
        written = self.run(decoder, answer[:-1], read.last_hidden_state)
        logprobs = written.logits[0].log_softmax(-1)[range(len(answer) - 1), answer[1:]]
        (gradient,) = torch.autograd.grad(logprobs.sum(), read.cross_attentions[layer])
        expected = grad_cam(gradient, read.cross_attentions[layer])
        heat = explain_answer(vqa, tokenizer, vqa_hidden, question, answer, layer)
        assert_same(heat, tokenizer, question, expected)
        assert heat.score == pytest.approx(logprobs.sum().item(), abs=1e-4)

    def encoder(self, model, state):
        transformers = pytest.importorskip("transformers")
        peer = transformers.BlipTextModel(peer_config(model), add_pooling_layer=False)
        return loaded(peer, state, "text_encoder."), state

    def decoder(self, model, state, memory_width=None):
        transformers = pytest.importorskip("transformers")
        peer = transformers.BlipTextLMHeadModel(peer_config(model, memory_width))
        return loaded(peer, state, "text_decoder.")

    def run(self, peer, ids, memory):
        ids = torch.tensor([ids])
        return peer(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            encoder_hidden_states=memory,
            encoder_attention_mask=torch.ones(memory.shape[:2], dtype=torch.int64),
            output_attentions=True,
        )


def peer_config(model, memory_width=None):
    transformers = pytest.importorskip("transformers")
    text = model.config.text
    return transformers.BlipTextConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        encoder_hidden_size=memory_width or model.config.vision.width,
        intermediate_size=text.ffn_width,
        num_hidden_layers=text.depth,
        num_attention_heads=text.heads,
        max_position_embeddings=text.max_positions,
        layer_norm_eps=text.norm_eps,
        is_decoder=True,
        attn_implementation="eager",
    )


def loaded(peer: nn.Module, state, prefix: str) -> nn.Module:
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and not name.endswith("position_ids")
    }
    missing, unexpected = peer.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("position_ids") for name in missing)
    return peer.eval()


def grad_cam(gradient, attention):
    """(tokens, rows, columns), by the definition."""
    return (gradient.relu() * attention).detach()[0, :, :, 1:].mean(0).unflatten(1, (2, 2))


def assert_same(heat, tokenizer, ids, expected):
    """The heat map holds the pieces' expected maps, joined to words, and their mean."""
    words = find_words(tokenizer, ids)
    assert heat.tokens == tuple(word.text for word in words)
    joined = torch.stack([expected[list(word.places)].mean(0) for word in words])
    scale = expected.max().clamp(min=1e-9)
    assert torch.allclose(heat.maps / scale, joined / scale, atol=1e-5)
    pieces = [place for word in words for place in word.places]
    assert torch.allclose(heat.overall / scale, expected[pieces].mean(0) / scale, atol=1e-5)


@pytest.fixture(params=["match", "caption", "answer"])
def explained(request, med, vqa, tokenizer, hidden, vqa_hidden, question, answer, caption):
    """A model, and a function that explains with it."""
    if request.param == "match":
        ids = row(tokenizer, TEXT)
        return med, lambda layer=None: explain_match(med, tokenizer, hidden, ids, layer)
    if request.param == "caption":
        ids = caption.token_ids
        return med, lambda layer=None: explain_caption(med, tokenizer, hidden, ids, PROMPT, layer)
    return vqa, lambda layer=None: explain_answer(
        vqa, tokenizer, vqa_hidden, question, answer, layer
    )


def test_maps_are_of_words_on_the_patch_grid_and_not_negative(explained):
    heat = explained[1]()
    assert heat.maps.shape == (len(heat.tokens), 2, 2)
    assert heat.overall.shape == (2, 2)
    assert heat.maps.dtype == heat.overall.dtype == torch.float32
    assert heat.maps.min() >= 0
    assert (heat.maps.amax(dim=(1, 2)) > 0).any()
    assert not heat.maps.requires_grad


def test_nothing_is_left_in_the_model(explained):
    model, explain = explained
    model.requires_grad_(False)
    next(model.parameters()).requires_grad_()
    before = copy.deepcopy(model.state_dict())
    explain()
    assert [p.requires_grad for p in model.parameters()].count(True) == 1
    assert all(p.grad is None for p in model.parameters())
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules()
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any("record" in name for m in model.modules() for name in vars(m))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_does_not_matter_whether_gradients_are_switched_off(explained, mode):
    model, explain = explained
    expected = explain()
    model.requires_grad_(False)
    with mode():
        heat = explain()
    assert torch.allclose(heat.maps, expected.maps, atol=1e-6)
    assert torch.is_grad_enabled()


def test_half_the_precision_gives_about_the_same(explained, med, hidden, tokenizer):
    ids = row(tokenizer, TEXT)
    expected = explain_match(med, tokenizer, hidden, ids).overall
    heat = explain_match(med.bfloat16(), tokenizer, hidden.bfloat16(), ids)
    assert heat.maps.dtype == torch.float32
    assert (
        torch.nn.functional.cosine_similarity(heat.overall.flatten(), expected.flatten(), dim=0)
        > 0.95
    )


@pytest.mark.parametrize("layer", [-1, 2, 12])
def test_an_unknown_layer(explained, layer):
    with pytest.raises(RecipeError, match=f"layer {layer}: .* numbered 0 to 1"):
        explained[1](layer)


def test_the_default_layer_is_the_demonstrations_scaled_and_not_the_last():
    assert default_layer(12) == 7
    assert [default_layer(depth) for depth in (1, 2, 3, 4, 6)] == [0, 0, 1, 1, 3]


def test_a_missing_head(tokenizer, hidden, caption):
    captioner = make_med(tokenizer, heads=("lm",))
    matcher = make_med(tokenizer, heads=("itc", "itm"))
    with pytest.raises(MissingHead, match="no itm head"):
        explain_match(captioner, tokenizer, hidden, row(tokenizer, TEXT))
    with pytest.raises(MissingHead, match="no lm head"):
        explain_caption(matcher, tokenizer, hidden, caption.token_ids, PROMPT)


def test_a_text_without_words(med, vqa, tokenizer, hidden, vqa_hidden, answer):
    special = tokenizer.special
    with pytest.raises(DataError, match="text has no word"):
        explain_match(med, tokenizer, hidden, [special.enc, special.sep])
    with pytest.raises(DataError, match="caption has no word"):
        explain_caption(med, tokenizer, hidden, row(tokenizer, PROMPT, "dec"), PROMPT)
    with pytest.raises(DataError, match="question has no word"):
        explain_answer(vqa, tokenizer, vqa_hidden, [special.enc, special.sep], answer)


@pytest.mark.parametrize("patch", [0, 2, 3])
def test_the_one_patch_that_has_a_value_is_found(tokenizer, med, patch):
    """Attention is uniform and all other patches have a zero value: they cannot drive a match."""
    with torch.no_grad():
        for layer in med.text.layers:
            layer.cross_attention.key_value.bias.zero_()
            layer.cross_attention.key_value.weight.chunk(2)[0].zero_()
    hidden = torch.zeros(1, 5, med.config.vision.width)
    hidden[0, 1 + patch] = torch.randn(24, generator=torch.Generator().manual_seed(5))
    heat = explain_match(med, tokenizer, hidden, row(tokenizer, TEXT))
    flat = heat.maps.flatten(1)
    assert (flat[:, patch] > 0).all()
    flat[:, patch] = 0
    assert flat.max() == 0


def test_the_last_layer_has_no_gradient_at_the_words_of_a_match(med, tokenizer, hidden):
    heat = explain_match(med, tokenizer, hidden, row(tokenizer, TEXT), layer=1)
    assert heat.maps.max() == 0
