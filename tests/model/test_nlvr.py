"""Two images and a sentence: which image is which, and how they are joined."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from openblip.model import MedConfig
from openblip.model.memory import LayerMemory
from openblip.model.packing import Packing
from openblip.model.vqa import Nlvr, NlvrConfig, TwinCrossAttention


@pytest.fixture
def nlvr(config: MedConfig, redraw: Callable[[nn.Module], None]) -> Nlvr:
    sizes = NlvrConfig(vision=config.vision, text=config.text, merge_from_layer=2)
    model = Nlvr(sizes)
    redraw(model)
    return model.eval()


@pytest.fixture
def pairs(nlvr: Nlvr, images: Tensor) -> tuple[Tensor, Tensor]:
    """Encoded first and second images of three pairs."""
    return nlvr.encode_images(images), nlvr.encode_images(images.flip(0, 3))


def test_a_logit_for_false_and_one_for_true(
    nlvr: Nlvr, pairs: tuple[Tensor, Tensor], ids: Tensor, mask: Tensor
) -> None:
    assert nlvr.compare(ids[:3], mask[:3], nlvr.memory(*pairs)).shape == (3, 2)


def test_the_order_of_the_images_matters(
    nlvr: Nlvr, pairs: tuple[Tensor, Tensor], ids: Tensor, mask: Tensor
) -> None:
    logits = nlvr.compare(ids[:3], mask[:3], nlvr.memory(*pairs))
    swapped = nlvr.compare(ids[:3], mask[:3], nlvr.memory(*reversed(pairs)))
    assert not torch.allclose(logits, swapped)


def test_pairs_do_not_touch_each_other(
    nlvr: Nlvr, pairs: tuple[Tensor, Tensor], ids: Tensor, mask: Tensor
) -> None:
    together = nlvr.compare(ids[:3], mask[:3], nlvr.memory(*pairs))
    for number in range(3):
        one = slice(number, number + 1)
        memory = nlvr.memory(pairs[0][one], pairs[1][one])
        assert torch.allclose(nlvr.compare(ids[one], mask[one], memory), together[one], atol=1e-5)


def test_several_sentences_about_a_pair_are_grouped(
    nlvr: Nlvr, pairs: tuple[Tensor, Tensor], ids: Tensor, mask: Tensor
) -> None:
    grouped = nlvr.compare(ids, mask, nlvr.memory(*pairs))
    rows = torch.arange(3).repeat_interleave(2)
    repeated = nlvr.memory(pairs[0][rows], pairs[1][rows])
    assert torch.allclose(grouped, nlvr.compare(ids, mask, repeated), atol=1e-5)


def test_lower_layers_average_and_upper_layers_merge(nlvr: Nlvr) -> None:
    names = {name for name, _ in nlvr.text.named_parameters() if "merge" in name}
    merge = "layers.2.cross_attention.merge"
    assert names == {f"{merge}.weight", f"{merge}.bias"}


def test_an_average_does_not_depend_on_the_order(
    config: MedConfig, redraw: Callable[[nn.Module], None]
) -> None:
    twin = TwinCrossAttention(config.text, config.vision.width, merges=False).eval()
    redraw(twin)
    twin.second.load_state_dict(twin.first.state_dict())
    hidden, images = torch.randn(10, 32), torch.randn(4, 17, 24)
    one_way = twin(hidden, [LayerMemory(*twin.remember(images))], [Packing(2, 5)])
    other_way = twin(hidden, [LayerMemory(*twin.remember(images.roll(2, 0)))], [Packing(2, 5)])
    assert torch.allclose(one_way, other_way, atol=1e-6)


def test_a_merge_is_linear_in_what_was_attended_to(
    config: MedConfig, redraw: Callable[[nn.Module], None]
) -> None:
    """A merge that takes half of each branch is the average: nothing else is between."""
    twin = TwinCrossAttention(config.text, config.vision.width, merges=True).eval()
    redraw(twin)
    assert twin.merge is not None
    half = torch.eye(32) / 2
    with torch.no_grad():
        twin.merge.weight.copy_(torch.cat([half, half], dim=1))
        twin.merge.bias.zero_()
    hidden, images = torch.randn(10, 32), torch.randn(4, 17, 24)
    merged = twin(hidden, [LayerMemory(*twin.remember(images))], [Packing(2, 5)])
    twin.merge = None
    assert torch.allclose(
        merged, twin(hidden, [LayerMemory(*twin.remember(images))], [Packing(2, 5)]), atol=1e-6
    )
