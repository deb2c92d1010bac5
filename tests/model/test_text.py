"""The text stack: what is shared, what each role may see, and decoding with a cache."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openblip.model import ImageMemory, KeyValueCache, Med, MedConfig, TextPass
from openblip.model.config import initial_std
from openblip.model.text import TextStack

MakeMed = Callable[..., Med]

# What the decoder has for itself (BLIP, table 3).
OWN_PARTS = {
    "all": set(),
    "all_but_self_attention": {"self_attention"},
    "all_but_cross_attention": {"cross_attention"},
    "none": {"self_attention", "cross_attention", "ffn", "embeddings"},
}


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def own_parts(stack: nn.Module) -> set[str]:
    components = {
        component for name, _ in stack.named_parameters() for component in name.split(".")
    }
    return {c.removeprefix("causal_") for c in components if c.startswith("causal_")}


class TestSharing:
    @pytest.mark.parametrize("sharing", OWN_PARTS)
    def test_the_decoder_owns_what_it_does_not_share(self, make_med: MakeMed, sharing: str) -> None:
        assert own_parts(make_med(sharing=sharing).text) == OWN_PARTS[sharing]

    @pytest.mark.parametrize("sharing", OWN_PARTS)
    def test_each_own_part_is_one_further_copy(self, make_med: MakeMed, sharing: str) -> None:
        everything_shared = make_med(sharing="all").text
        expected = size(everything_shared)
        for part in OWN_PARTS[sharing]:
            if part == "embeddings":
                expected += size(everything_shared.embeddings)
            else:
                expected += sum(size(getattr(layer, part)) for layer in everything_shared.layers)
        assert size(make_med(sharing=sharing).text) == expected

    @pytest.mark.parametrize("sharing", OWN_PARTS)
    def test_the_roles_use_one_memory_where_cross_attention_is_shared(
        self, make_med: MakeMed, images: Tensor, sharing: str
    ) -> None:
        med = make_med(sharing=sharing)
        memories = med.memories(med.encode_images(images))
        is_one = memories.encoder is memories.decoder
        assert is_one == ("cross_attention" not in OWN_PARTS[sharing])

    @pytest.mark.parametrize("sharing", OWN_PARTS)
    def test_an_own_part_is_used_by_the_decoder_alone(
        self, make_med: MakeMed, images: Tensor, ids: Tensor, mask: Tensor, sharing: str
    ) -> None:
        med = make_med(sharing=sharing)
        memories = med.memories(med.encode_images(images))
        matched = med.match(ids, mask, memories.encoder).sum()
        matched = matched + med.embed_texts(ids, mask).sum()
        matched.backward(retain_graph=True)
        names = [name for name, p in med.named_parameters() if p.grad is None]
        encoder_leaves = {name for name in names if name.startswith("text.")}
        assert encoder_leaves == {
            n for n, _ in med.named_parameters() if "causal_" in n or "lm_head" in n
        }

        med.zero_grad()
        med.decode(ids, mask, memories.decoder).sum().backward()
        unused = {n for n, p in med.named_parameters() if p.grad is None and n.startswith("text.")}
        assert unused == {
            name
            for name, _ in med.named_parameters()
            for part in OWN_PARTS[sharing]
            if f".{part}." in name
        }

    @pytest.mark.parametrize("sharing", OWN_PARTS)
    @pytest.mark.parametrize("heads", [("lm",), ("itm",), ("itc",), ("itc", "lm")])
    def test_every_combination_of_heads_runs_and_has_no_idle_weight(
        self,
        make_med: MakeMed,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        heads: tuple[Any, ...],
        sharing: str,
    ) -> None:
        med = make_med(sharing=sharing, heads=heads)
        hidden = med.encode_images(images)
        total = hidden.sum()
        if "itc" in heads:
            total = total + med.embed_images(hidden).sum() + med.embed_texts(ids, mask).sum()
        if "itm" in heads:
            total = total + med.match(ids, mask, med.memories(hidden).encoder).sum()
        if "lm" in heads:
            total = total + med.decode(ids, mask, med.memories(hidden).decoder).sum()
        total.backward()
        idle = {name for name, p in med.named_parameters() if p.grad is None}
        assert idle <= {"temperature"}


class TestMasks:
    def test_the_decoder_sees_no_later_token(
        self, med: Med, images: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        memory = med.memories(med.encode_images(images)).decoder
        logits = med.decode(ids, None, memory)
        for position in range(1, ids.shape[1]):
            changed = ids.clone()
            changed[:, position:] = (changed[:, position:] + 1) % 50
            difference = (med.decode(changed, None, memory) - logits).abs().amax(dim=(0, 2))
            assert difference[:position].max() == 0
            assert difference[position:].min() > 0

    def test_the_encoder_sees_every_token(self, med: Med, ids: Tensor, mask: Tensor) -> None:
        embeds = med.embed_texts(ids, torch.ones_like(mask))
        changed = ids.clone()
        changed[:, -1] = (changed[:, -1] + 1) % 50
        assert ((med.embed_texts(changed, torch.ones_like(mask)) - embeds) != 0).any(dim=1).all()

    @pytest.mark.parametrize("role", ["embed", "match", "decode"])
    def test_padding_does_not_change_a_result(
        self, med: Med, images: Tensor, ids: Tensor, mask: Tensor, role: str
    ) -> None:
        memory = med.memories(med.encode_images(images)).encoder.select(
            torch.arange(3).repeat_interleave(2)
        )

        def run(ids: Tensor, mask: Tensor, memory: ImageMemory) -> Tensor:
            if role == "embed":
                return med.embed_texts(ids, mask)
            if role == "match":
                return med.match(ids, mask, memory)
            return med.decode(ids, mask, memory)

        padded = run(ids, mask, memory)
        other_padding = run(torch.where(mask, ids, 1), mask, memory)
        compared = mask if role == "decode" else slice(None)
        assert torch.equal(other_padding[compared], padded[compared])
        for row, length in enumerate(mask.sum(1).tolist()):
            one = torch.tensor([row])
            alone = run(ids[one, :length], mask[one, :length], memory.select(one))
            result = padded[one, :length] if role == "decode" else padded[one]
            assert torch.allclose(alone, result, atol=1e-5)

    def test_no_mask_attends_to_all(self, med: Med, ids: Tensor, mask: Tensor) -> None:
        full = torch.ones_like(mask)
        assert torch.allclose(*med.text(TextPass(ids)), *med.text(TextPass(ids, full)), atol=1e-6)


class TestCache:
    @pytest.mark.parametrize("steps", [[1] * 7, [4, 1, 1, 1], [3, 4], [7]])
    def test_decoding_in_steps_gives_the_logits_of_the_whole(
        self, med: Med, images: Tensor, ids: Tensor, steps: list[int]
    ) -> None:
        memory = med.memories(med.encode_images(images)).decoder
        whole = med.decode(ids, None, memory)
        cache = KeyValueCache.empty(med.config.text, len(ids), max_tokens=9)
        parts = [med.decode(part, None, memory, cache) for part in ids.split(steps, dim=1)]
        assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
        assert cache.length == 7

    def test_padding_at_the_left_of_a_cached_prompt_is_not_seen(
        self, med: Med, images: Tensor, ids: Tensor
    ) -> None:
        memory = med.memories(med.encode_images(images)).decoder
        mask = torch.ones(6, 7, dtype=torch.bool)
        mask[:, 1] = False
        cache = KeyValueCache.empty(med.config.text, len(ids), max_tokens=7)
        med.decode(ids[:, :4], mask[:, :4], memory, cache)
        last = med.decode(ids[:, 4:], mask, memory, cache)
        assert torch.allclose(last, med.decode(ids, mask, memory)[:, 4:], atol=1e-5)

    def test_rows_can_be_exchanged_and_left_out(
        self, med: Med, images: Tensor, ids: Tensor
    ) -> None:
        memory = med.memories(med.encode_images(images)).decoder
        rows = torch.arange(3).repeat_interleave(2)
        order = torch.tensor([4, 1, 1])
        cache = KeyValueCache.empty(med.config.text, len(ids), max_tokens=7)
        med.decode(ids[:, :5], None, memory, cache)
        selected = cache.select(order)
        assert selected.length == 5
        chosen = memory.select(rows[order])
        stepped = med.decode(ids[order, 5:6], None, chosen, selected)
        whole = med.decode(ids[order, :6], None, chosen)[:, 5:]
        assert torch.allclose(stepped, whole, atol=1e-5)

    def test_a_selected_cache_is_independent(self, med: Med) -> None:
        cache = KeyValueCache.empty(med.config.text, 2, max_tokens=4)
        selected = cache.select(torch.tensor([0]))
        selected.keys.fill_(1.0)
        selected.advance(2)
        assert cache.length == 0
        assert cache.keys.abs().max() == 0

    def test_it_has_the_size_and_type_asked_for(self, med: Med) -> None:
        cache = KeyValueCache.empty(med.config.text, 5, max_tokens=9, dtype=torch.bfloat16)
        assert cache.keys.shape == cache.values.shape == (3, 5, 4, 9, 8)
        assert cache.keys.dtype == torch.bfloat16


@pytest.mark.parametrize("checkpointed", [1, 3])
@pytest.mark.parametrize("index", [[0, 1, 2], [2, 0, 2]])
def test_recomputed_activations_change_neither_output_nor_gradient(
    make_med: MakeMed,
    images: Tensor,
    ids: Tensor,
    mask: Tensor,
    index: list[int],
    checkpointed: int,
) -> None:
    def output_and_gradients(checkpoint_layers: int) -> tuple[Tensor, dict[str, Tensor]]:
        med = make_med(checkpoint_layers=checkpoint_layers).train()
        memory = med.memories(med.encode_images(images)).decoder.select(torch.tensor(index))
        with torch.random.fork_rng():
            torch.manual_seed(4)
            logits = med.decode(ids, mask, memory)
            logits.square().mean().backward()
        return logits, {n: p.grad for n, p in med.named_parameters() if p.grad is not None}

    logits, gradients = output_and_gradients(0)
    again, gradients_again = output_and_gradients(checkpointed)
    assert torch.equal(again, logits)
    assert set(gradients) == set(gradients_again)
    for name, gradient in gradients.items():
        assert torch.allclose(gradients_again[name], gradient, atol=1e-6), name


class TestPassesTogether:
    """Passes that run as one batch give what each of them gives alone."""

    @pytest.mark.parametrize("sharing", OWN_PARTS)
    @pytest.mark.parametrize("masked", [True, False])
    def test_hidden_states_and_gradients(
        self,
        make_med: MakeMed,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        sharing: str,
        masked: bool,
    ) -> None:
        med = make_med(sharing=sharing)
        given = mask if masked else None
        few = len(images)

        def gradients(*, together: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
            med.zero_grad()
            memories = med.memories(med.encode_images(images))
            passes = [
                TextPass(ids, given, memories.encoder),
                TextPass(ids[:few], None, memories.encoder.select(torch.arange(few).flip(0))),
                TextPass(ids.flip(0), given, memories.decoder, causal=True),
            ]
            batches = [passes] if together else [[each] for each in passes]
            hidden = [states for batch in batches for states in med.text(*batch)]
            torch.stack([(n + 1) * h.pow(3).mean() for n, h in enumerate(hidden)]).sum().backward()
            found = {n: p.grad.clone() for n, p in med.named_parameters() if p.grad is not None}
            return [h.detach() for h in hidden], found

        hidden, found = gradients(together=True)
        expected_hidden, expected = gradients(together=False)
        for one, other in zip(hidden, expected_hidden, strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        assert found.keys() == expected.keys()
        scale = max(gradient.abs().max() for gradient in expected.values())
        for name, gradient in expected.items():
            assert (found[name] - gradient).abs().max() < 1e-5 * scale, name

    def test_texts_alone(self, med: Med, ids: Tensor, mask: Tensor) -> None:
        encoded, decoded = med.text(TextPass(ids, mask), TextPass(ids, mask, causal=True))
        assert torch.allclose(encoded, *med.text(TextPass(ids, mask)), atol=1e-5)
        assert torch.allclose(decoded, *med.text(TextPass(ids, mask, causal=True)), atol=1e-5)

    def test_a_shared_part_runs_once(self, med: Med, images: Tensor, ids: Tensor) -> None:
        memory = med.memories(med.encode_images(images)).encoder
        calls = []
        for layer in med.text.layers:
            layer.ffn.register_forward_hook(lambda *_: calls.append(1))
        med.text(TextPass(ids, None, memory), TextPass(ids, None, memory, causal=True))
        assert len(calls) == len(med.text.layers)


def test_dropout_is_active_in_training_alone(make_med: MakeMed, ids: Tensor, mask: Tensor) -> None:
    text = make_med().text
    with torch.random.fork_rng():
        torch.manual_seed(5)
        texts = TextPass(ids, mask)
        assert torch.equal(*text(texts), *text(texts))
        text.train()
        assert not torch.equal(*text(texts), *text(texts))


def test_without_dropout_training_is_evaluation(
    make_med: MakeMed, ids: Tensor, mask: Tensor
) -> None:
    text = make_med(dropout=0.0).text
    texts = TextPass(ids, mask)
    assert torch.equal(*text.train()(texts), *text.eval()(texts))


def test_the_lm_head_reads_the_word_embedding(med: Med) -> None:
    hidden = torch.randn(2, 3, 32)
    before = med.text.logits(hidden)
    with torch.no_grad():
        med.text.embeddings.word.weight[7] += 1
    changed = (med.text.logits(hidden) != before).any(dim=0).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [7]


def test_the_initial_weights_are_those_of_the_original_and_larger_in_narrow_models() -> None:
    assert initial_std(768) == initial_std(1024) == 0.02
    assert initial_std(192) == pytest.approx(0.04)


def test_initial_weights_are_drawn_for_the_width(config: MedConfig) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        wide = replace(config.text, width=128, vocab_size=500)
        stack = TextStack(wide, 24, ("itc", "itm", "lm"))
    for name, parameter in stack.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert parameter.std().item() == pytest.approx(initial_std(128), rel=0.1), name
