"""The analytic counts are those of the operations that run."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from openblip.model import Med, MedConfig, TextConfig, TextPass, VisionConfig
from openblip.model.flops import (
    class_token_flops,
    flop_counter,
    image_encoder_flops,
    lm_head_flops,
    memory_flops,
    text_flops,
)

IMAGES, ROWS, TOKENS = 2, 4, 7


def counted(run: Callable[[], object]) -> int:
    # Only the unfused attention consists of operations that the counter knows.
    with flop_counter() as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        run()
    return counter.get_total_flops()


TINY = MedConfig.preset("tiny", vocab_size=1000, image_size=96)
# No two sizes equal, so that none can stand for another.
UNEVEN = MedConfig(
    vision=VisionConfig(image_size=96, patch_size=8, width=48, depth=2, heads=2, mlp_ratio=3.0),
    text=TextConfig(vocab_size=300, width=80, depth=5, heads=4, ffn_width=200),
)


@pytest.fixture(scope="module", params=[TINY, UNEVEN], ids=["tiny", "uneven"])
def med(request: pytest.FixtureRequest) -> Med:
    return Med(request.param).eval()


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.zeros(ROWS, TOKENS, dtype=torch.int64)


def image_hidden(med: Med) -> Tensor:
    vision = med.config.vision
    return torch.zeros(IMAGES, vision.num_patches, vision.width)


@pytest.mark.parametrize("size", [None, 160])
def test_image_encoder(med: Med, size: int | None) -> None:
    images = torch.zeros(IMAGES, 3, size or 96, size or 96)
    run = counted(lambda: med.encode_images(images))
    assert image_encoder_flops(med.config, IMAGES, size) == pytest.approx(run, rel=0.01)


def test_memory(med: Med) -> None:
    run = counted(lambda: med.memories(image_hidden(med)))
    assert memory_flops(med.config, IMAGES) == pytest.approx(run, rel=0.01)


def test_a_memory_at_another_image_size(med: Med) -> None:
    side = 64 // med.config.vision.patch_size
    hidden = torch.zeros(IMAGES, side**2 + 1, med.config.vision.width)
    run = counted(lambda: med.memories(hidden))
    assert memory_flops(med.config, IMAGES, image_size=64) == pytest.approx(run, rel=0.01)


def test_a_text_alone(med: Med, ids: Tensor) -> None:
    run = counted(lambda: med.text(TextPass(ids)))
    assert text_flops(med.config, ROWS, TOKENS) == pytest.approx(run, rel=0.01)


def test_a_text_with_an_image(med: Med, ids: Tensor) -> None:
    memory = med.memories(image_hidden(med)).encoder
    run = counted(lambda: med.text(TextPass(ids, None, memory)))
    patches = med.config.vision.num_patches
    assert text_flops(med.config, ROWS, TOKENS, patches) == pytest.approx(run, rel=0.01)


def test_lm_head(med: Med, ids: Tensor) -> None:
    hidden = torch.zeros(ROWS, TOKENS, med.config.text.width)
    run = counted(lambda: med.text.logits(hidden))
    assert lm_head_flops(med.config, ROWS, TOKENS) == pytest.approx(run, rel=0.01)


def test_the_image_encoder_at_384_px_takes_111_gflop() -> None:
    """As measured on the original (BLIP base)."""
    assert image_encoder_flops(MedConfig.preset("base"), 1, 384) == pytest.approx(111e9, rel=0.01)


def test_what_is_read_of_a_text_decides_what_is_computed(med: Med, ids: Tensor) -> None:
    mask = torch.arange(TOKENS) < torch.tensor([[7], [2], [4], [5]])
    packed = int(mask.sum())
    memory = med.memories(med.encode_images(torch.zeros(ROWS, 3, 96, 96))).encoder
    patches = med.config.vision.num_patches
    tokens = TextPass(ids, mask, memory, causal=True, reads="tokens")
    assert text_flops(med.config, ROWS, TOKENS, patches, packed=packed) == counted(
        lambda: med.text(tokens)
    )
    first = TextPass(ids, mask, memory, reads="first")
    assert text_flops(
        med.config, ROWS, TOKENS, patches, packed=packed, reads_first=True
    ) == counted(lambda: med.text(first))


def test_class_tokens(med: Med) -> None:
    images = torch.zeros(IMAGES, 3, 96, 96)
    expected = counted(lambda: med.encode_class_tokens(images))
    assert class_token_flops(med.config, IMAGES) == expected


def test_fused_attention_is_counted_as_its_products() -> None:
    query, keys = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(2, 3, 7, 8)
    counts = []
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        keys.requires_grad_()
        with flop_counter() as counter, sdpa_kernel(backend):
            F.scaled_dot_product_attention(query, keys, keys).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 2 * (2 * 3 * 5 * 7 * 8)
