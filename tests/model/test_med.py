"""The composition: roles, heads, memories and what a model without a head says."""

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from openblip.model import ImageMemory, Med, TextPass
from openblip.runtime.errors import MissingHead

MakeMed = Callable[..., Med]


@pytest.fixture
def memory(med: Med, images: Tensor) -> ImageMemory:
    return med.memories(med.encode_images(images)).encoder


class TestShapes:
    def test_patches_come_with_a_class_token(self, med: Med, images: Tensor) -> None:
        assert med.encode_images(images).shape == (3, 17, 24)

    def test_embeddings_have_unit_length(
        self, med: Med, images: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        for embeds, rows in (
            (med.embed_images(med.encode_images(images)), 3),
            (med.embed_texts(ids, mask), 6),
        ):
            assert embeds.shape == (rows, 8)
            assert torch.allclose(embeds.norm(dim=1), torch.ones(rows), atol=1e-6)

    def test_matching_gives_two_logits_and_decoding_one_per_token(
        self, med: Med, memory: ImageMemory, ids: Tensor, mask: Tensor
    ) -> None:
        assert med.match(ids, mask, memory).shape == (6, 2)
        assert med.decode(ids, mask, memory).shape == (6, 7, 50)

    def test_a_half_precision_model_embeds_in_float32(
        self, med: Med, images: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        half = med.bfloat16()
        assert half.embed_images(half.encode_images(images.bfloat16())).dtype == torch.float32
        assert half.embed_texts(ids, mask).dtype == torch.float32


class TestHeads:
    @pytest.mark.parametrize(
        ("heads", "parts"),
        [
            (("itc",), {"image_projection", "text_projection", "temperature"}),
            (("itm",), {"itm_head"}),
            (("lm",), set()),
            (("multimodal",), set()),
        ],
    )
    def test_what_is_not_asked_for_is_not_built(
        self, make_med: MakeMed, heads: Any, parts: set[str]
    ) -> None:
        state = make_med(heads=heads).state_dict()
        tops = {name.split(".")[0] for name in state}
        assert tops == {"image_encoder", "text"} | parts
        assert any("lm_head" in name for name in state) == ("lm" in heads)
        assert any("causal_" in name for name in state) == ("lm" in heads)
        assert any("cross_attention" in name for name in state) == (heads != ("itc",))

    def test_the_temperature_begins_at_the_papers(self, config: Any) -> None:
        assert Med(config).temperature.item() == pytest.approx(0.07)

    @pytest.mark.parametrize(
        ("heads", "call", "message"),
        [
            (("lm",), "embed_images", r"no itc head \(it has: lm\); load a pre-trained, retr"),
            (("lm",), "embed_texts", "no itc head"),
            (("itc", "lm"), "match", r"no itm head \(it has: itc, lm\); load a pre-trained, ret"),
            (("itc", "itm"), "decode", "no lm head .*; load a pre-trained or captioner checkpoint"),
            (("itc",), "memories", r"no multimodal head \(it has: itc\)"),
        ],
    )
    def test_a_missing_head_is_named_with_the_checkpoint_that_has_it(
        self,
        make_med: MakeMed,
        memory: ImageMemory,
        ids: Tensor,
        mask: Tensor,
        heads: Any,
        call: str,
        message: str,
    ) -> None:
        med = make_med(heads=heads)
        hidden = torch.zeros(1, 17, 24)
        calls: dict[str, Callable[[], object]] = {
            "embed_images": lambda: med.embed_images(hidden),
            "embed_texts": lambda: med.embed_texts(ids, mask),
            "match": lambda: med.match(ids, mask, memory),
            "decode": lambda: med.decode(ids, mask, memory),
            "memories": lambda: med.memories(hidden),
        }
        with pytest.raises(MissingHead, match=message):
            calls[call]()

    def test_the_multimodal_head_gives_the_states_that_matching_reads(
        self, make_med: MakeMed, images: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        matcher, states = make_med(heads=("itm",)), make_med(heads=("multimodal",))
        shared = states.state_dict()
        states.load_state_dict({k: v for k, v in matcher.state_dict().items() if k in shared})
        memory = states.memories(states.encode_images(images)).encoder
        (hidden,) = states.text(TextPass(ids, mask, memory))
        expected = matcher.match(ids, mask, memory)
        assert torch.allclose(matcher.itm_head(hidden[:, 0]), expected, atol=1e-6)


class TestRoles:
    def test_a_text_alone_is_not_a_text_with_an_image(
        self, med: Med, memory: ImageMemory, ids: Tensor, mask: Tensor
    ) -> None:
        assert not torch.allclose(
            *med.text(TextPass(ids, mask)), *med.text(TextPass(ids, mask, memory))
        )

    def test_the_image_changes_match_and_caption(
        self, med: Med, memory: ImageMemory, ids: Tensor, mask: Tensor
    ) -> None:
        turned = memory.select(torch.tensor([1, 2, 0]))
        for run in (med.match, med.decode):
            assert not torch.allclose(run(ids, mask, memory), run(ids, mask, turned))

    def test_encoder_and_decoder_differ_on_a_single_token(
        self, med: Med, memory: ImageMemory, ids: Tensor
    ) -> None:
        """There the mask is the same, so that only the self-attention's weights can differ."""
        first = ids[:, :1]
        (encoded,) = med.text(TextPass(first, None, memory))
        assert not torch.allclose(encoded, *med.text(TextPass(first, None, memory, causal=True)))


def test_the_annotated_shapes_are_checked_in_this_room(med: Med, images: Tensor) -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="encode_images"):
        med.encode_images(images[0, 0])


def test_one_image_without_a_batch_is_not_taken_for_states(med: Med, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images are \(batch, 3, height, width\)"):
        med.encode_images(images[0])
