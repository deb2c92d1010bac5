"""Models for questions and for two images begin as the MED that they are made of."""

from dataclasses import replace

import pytest
import torch

from openblip.model import Med, MedConfig, TextConfig, TextPass, VisionConfig
from openblip.model.vqa import nlvr_from, vqa_from
from openblip.runtime.errors import MissingHead

CONFIG = MedConfig(
    vision=VisionConfig(image_size=32, patch_size=16, width=32, depth=1, heads=2),
    text=TextConfig(
        vocab_size=40, width=32, depth=4, heads=2, ffn_width=48, max_positions=16, dropout=0.0
    ),
    embed_dim=12,
)
IDS = torch.tensor([[6, 9, 11, 3]])
MASK = torch.ones_like(IDS, dtype=torch.bool)


def med(**changes: object) -> Med:
    torch.manual_seed(0)
    model = Med(replace(CONFIG, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def hidden() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, 32, generator=generator)


@pytest.mark.parametrize("sharing", ["all_but_self_attention", "all", "none"])
@torch.no_grad()
def test_questions_are_read_and_answers_written_with_the_same_weights(
    sharing: str, hidden: torch.Tensor
) -> None:
    source = med(text=replace(CONFIG.text, sharing=sharing))
    vqa = vqa_from(source).eval()
    (expected,) = source.text(TextPass(IDS, MASK, source.text.remember(hidden[:1])))
    read = vqa.read_questions(IDS, MASK, vqa.image_memory(hidden[:1]))
    torch.testing.assert_close(read, expected)
    # Question states are as wide as an image's, so that the decoder is the MED's.
    memory = vqa.question_memory(hidden[:1], mask=None)
    decoded = vqa.decode(IDS, MASK, memory)
    torch.testing.assert_close(
        decoded, source.decode(IDS, MASK, source.text.remember(hidden[:1], causal=True))
    )


@torch.no_grad()
def test_where_widths_differ_only_what_reads_the_question_is_fresh() -> None:
    source = med(vision=replace(CONFIG.vision, width=24))
    answer = vqa_from(source).answer.state_dict()
    differing = {
        name
        for name, weight in source.text.state_dict().items()
        if name in answer and not torch.equal(answer[name], weight)
    }
    assert differing
    assert all(".cross_attention.key_value." in name for name in differing)


@torch.no_grad()
def test_below_the_merging_layers_two_equal_images_are_as_one(hidden: torch.Tensor) -> None:
    source = med(text=replace(CONFIG.text, depth=1))
    nlvr = nlvr_from(source).eval()
    # One layer alone lies in the upper half, where a fresh map merges: let it average.
    average = torch.cat([torch.eye(32), torch.eye(32)], dim=1) / 2
    twin = nlvr.text.layers[0].cross_attention
    twin.merge.weight.copy_(average)
    twin.merge.bias.zero_()
    (expected,) = source.text(TextPass(IDS, MASK, source.text.remember(hidden[:1])))
    (read,) = nlvr.text(TextPass(IDS, MASK, nlvr.memory(hidden[:1], hidden[:1])))
    torch.testing.assert_close(read, expected)


def test_the_upper_half_merges_by_a_learnt_map() -> None:
    layers = nlvr_from(med()).text.layers
    assert [layer.cross_attention.merge is not None for layer in layers] == [
        *[False] * 2,
        *[True] * 2,
    ]


def test_what_the_med_lacks_is_named() -> None:
    with pytest.raises(MissingHead, match="lm"):
        vqa_from(med(heads=("itc", "itm")))
    with pytest.raises(MissingHead, match="image-grounded"):
        vqa_from(med(heads=("lm",)))
    with pytest.raises(MissingHead, match="image-grounded"):
        nlvr_from(med(heads=("itc",)))
