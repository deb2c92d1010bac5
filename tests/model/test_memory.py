"""Keys and values of an image, computed once and used by many texts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from openblip.model import ImageMemory, Med
from openblip.model.attention import MemoryAttention
from openblip.model.lowrank import LowRankLinear
from openblip.model.memory import LayerMemory
from openblip.model.packing import Packing
from openblip.runtime.errors import RecipeError


@pytest.fixture
def hidden(med: Med, images: Tensor) -> Tensor:
    return med.encode_images(images).detach().requires_grad_()


@pytest.fixture
def memory(med: Med, hidden: Tensor) -> ImageMemory:
    return med.memories(hidden).encoder


def test_it_has_keys_and_values_of_every_layer(memory: ImageMemory) -> None:
    assert memory.images == 3
    assert [k.shape for k in memory.keys] == [(3, 4, 17, 8)] * 3
    assert [v.shape for v in memory.values] == [(3, 4, 17, 8)] * 3


@pytest.mark.parametrize("role", ["match", "decode"])
def test_grouped_rows_attend_to_their_image(
    med: Med, memory: ImageMemory, ids: Tensor, mask: Tensor, role: str
) -> None:
    run = getattr(med, role)
    one_per_row = memory.select(torch.tensor([0, 0, 1, 1, 2, 2]))
    assert torch.allclose(run(ids, mask, memory), run(ids, mask, one_per_row), atol=1e-5)


def test_one_image_serves_all_rows(
    med: Med, memory: ImageMemory, ids: Tensor, mask: Tensor
) -> None:
    second = memory.select(torch.tensor([1]))
    expected = med.match(ids, mask, memory.select(torch.full((6,), 1)))
    assert torch.allclose(med.match(ids, mask, second), expected, atol=1e-5)


def test_rows_that_are_no_multiple_of_the_images_are_refused(
    med: Med, memory: ImageMemory, ids: Tensor, mask: Tensor
) -> None:
    with pytest.raises(AssertionError, match="4 texts are not grouped over 3 images"):
        med.match(ids[:4], mask[:4], memory)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_selected_images_are_those_of_the_index(memory: ImageMemory, with_gradient: bool) -> None:
    index, again = torch.tensor([2, 0, 2, 1]), torch.tensor([3, 0])
    with torch.set_grad_enabled(with_gradient):
        selected = memory.select(index)
        twice = selected.select(again)
        assert (selected.images, twice.images) == (4, 2)
        for layer in range(3):
            with selected.layer(layer).read() as (keys, values):
                assert torch.equal(keys, memory.keys[layer][index])
                assert torch.equal(values, memory.values[layer][index])
            with twice.layer(layer).read() as (keys, _):
                assert torch.equal(keys, memory.keys[layer][index[again]])


def test_a_selection_keeps_no_copy_for_the_backward_pass(
    med: Med, memory: ImageMemory, ids: Tensor, mask: Tensor
) -> None:
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    index = torch.tensor([0, 1, 2, 2, 1, 0])
    of_a_copy = 6, 4, 17, 8
    with torch.no_grad():
        copied = memory.select(index)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        med.match(ids, mask, copied)
        assert of_a_copy in kept
        kept.clear()
        med.match(ids, mask, memory.select(index))
        assert of_a_copy not in kept


def test_a_gradient_of_a_selection_has_a_gradient() -> None:
    keys = torch.randn(3, 2, 5, 2, dtype=torch.float64, requires_grad=True)

    def squared_keys(keys: Tensor) -> Tensor:
        layer = ImageMemory((keys,), (keys,)).select(torch.tensor([2, 0, 2])).layer(0)
        with layer.read() as (own, _):
            return own.square().sum(dim=(1, 2, 3))

    assert torch.autograd.gradcheck(squared_keys, (keys,))
    assert torch.autograd.gradgradcheck(squared_keys, (keys,))


def test_a_selection_of_nothing_leaves_a_gradient_of_zero() -> None:
    keys = torch.randn(3, 2, 5, 2, requires_grad=True)
    nothing = ImageMemory((keys,), (keys,)).select(torch.tensor([], dtype=torch.int64))
    with nothing.layer(0).read() as (own, _):
        own.sum().backward()
    assert torch.equal(keys.grad, torch.zeros_like(keys))


def test_gradients_flow_back_through_a_selection(
    med: Med, memory: ImageMemory, hidden: Tensor, ids: Tensor, mask: Tensor
) -> None:
    """An image gets the sum of the gradients of all texts that attend to it, others none."""
    index = torch.tensor([0, 0, 0, 2, 2, 0])
    med.match(ids, mask, memory.select(index)).square().sum().backward()
    assert hidden.grad is not None
    selected = hidden.grad.clone()
    assert selected[1].abs().max() == 0

    expected = torch.zeros_like(selected)
    for row, image in enumerate(index.tolist()):
        alone = hidden.detach()[image : image + 1].requires_grad_()
        logits = med.match(ids[row : row + 1], mask[row : row + 1], med.memories(alone).encoder)
        logits.square().sum().backward()
        assert alone.grad is not None
        expected[image] += alone.grad[0]
    assert torch.allclose(selected, expected, atol=1e-4)


class TestMask:
    """A memory of question states has padding; a memory of patches has none."""

    @pytest.fixture
    def memory_mask(self) -> Tensor:
        return torch.arange(17) < torch.tensor([17, 9, 1])[:, None]

    def test_masked_states_are_not_seen(
        self, med: Med, hidden: Tensor, memory_mask: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        masked = med.text.remember(hidden, mask=memory_mask)
        other_padding = torch.where(memory_mask[:, :, None], hidden, 3.0)
        same = med.text.remember(other_padding, mask=memory_mask)
        assert torch.allclose(med.match(ids, mask, masked), med.match(ids, mask, same), atol=1e-6)

    def test_masked_states_might_as_well_be_cut_off(
        self, med: Med, hidden: Tensor, memory_mask: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        masked = med.match(ids, mask, med.text.remember(hidden, mask=memory_mask))
        cut = med.text.remember(hidden[1:2, :9])
        assert torch.allclose(med.match(ids[2:4], mask[2:4], cut), masked[2:4], atol=1e-5)

    def test_a_selection_takes_its_mask_along(
        self, med: Med, hidden: Tensor, memory_mask: Tensor
    ) -> None:
        index = torch.tensor([1, 0])
        selected = med.text.remember(hidden, mask=memory_mask).select(index)
        assert selected.mask is not None
        assert torch.equal(selected.mask, memory_mask[index])


class TestStates:
    """Few tokens read the states themselves: the same result for less work."""

    @pytest.fixture
    def states(self, med: Med, images: Tensor) -> Tensor:
        with torch.no_grad():
            return med.encode_images(images)

    @pytest.mark.parametrize("role", ["match", "decode"])
    @pytest.mark.parametrize("with_mask", [False, True])
    @torch.no_grad()
    def test_the_result_is_that_of_keys_and_values(
        self, med: Med, states: Tensor, ids: Tensor, mask: Tensor, role: str, with_mask: bool
    ) -> None:
        seen = torch.arange(17) < torch.tensor([17, 9, 1])[:, None] if with_mask else None
        few = med.text.remember(states, mask=seen, num_tokens=7)
        assert not few.is_projected
        run = getattr(med, role)
        # Padded texts, two of each image, and one of each.
        for texts, own in ((ids, mask), (ids[:3, :1], mask[:3, :1])):
            expected = run(texts, own, med.text.remember(states, mask=seen))
            read = own if role == "decode" else slice(None)
            assert_same(run(texts, own, few)[read], expected[read])

    @torch.no_grad()
    def test_a_selection_of_states_copies_them_once(
        self, med: Med, states: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        index = torch.tensor([2, 0, 0])
        selected = med.text.remember(states, num_tokens=2).select(index)
        assert len({each.data_ptr() for each in (*selected.keys, *selected.values)}) == 1
        expected = med.match(ids, mask, med.text.remember(states).select(index))
        assert_same(med.match(ids, mask, selected), expected)

    @pytest.mark.parametrize("tokens", [1, 7, 24])
    @torch.no_grad()
    def test_it_is_the_same_at_the_size_of_base(self, tokens: int) -> None:
        torch.manual_seed(0)
        attention = MemoryAttention(768, 768, 12, 0.1).eval()
        # Larger than they begin, so that the attention is far from uniform.
        torch.nn.init.normal_(attention.key_value.weight, std=0.05)
        torch.nn.init.normal_(attention.key_value.bias)
        states, texts = torch.randn(2, 577, 768), torch.randn(4 * tokens, 768)
        packings = [Packing(4, tokens)]
        few = ImageMemory.of_states(states, 1).layer(0)
        keys = LayerMemory(*attention.remember(states))
        assert_same(attention(texts, [few], packings), attention(texts, [keys], packings))

    @torch.no_grad()
    def test_the_amount_of_work_decides(self) -> None:
        attention = MemoryAttention(768, 768, 12, 0.0).eval()
        states = torch.zeros(1, 577, 768)
        # A token's folded queries are 12 times as wide as its query: from 64 on, keys are cheaper.
        assert attention.reads_states(states, 60)
        assert not attention.reads_states(states, 68)
        assert not attention.train().reads_states(states, 1)
        with torch.enable_grad():
            assert not attention.eval().reads_states(states, 1)
        assert not attention.reads_states(states.bfloat16(), 1)
        attention.key_value = LowRankLinear(attention.key_value, 2, 1.0)
        assert not attention.reads_states(states, 1)

    def test_any_number_of_texts_gets_keys_and_values(self, med: Med, states: Tensor) -> None:
        assert med.text.remember(states).is_projected
        assert med.text.remember(states, num_tokens=1).is_projected  # there may be a gradient


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest number."""
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


class TestRecording:
    """A pass can leave one layer's cross-attention probabilities behind, as part of its graph."""

    @pytest.mark.parametrize("layer", [0, 1, 2])
    @pytest.mark.parametrize("role", ["match", "decode"])
    def test_the_result_is_that_of_the_ordinary_pass(
        self, med: Med, memory: ImageMemory, ids: Tensor, mask: Tensor, role: str, layer: int
    ) -> None:
        recording, record = memory.recording(layer)
        run = getattr(med, role)
        assert torch.allclose(run(ids, mask, recording), run(ids, mask, memory), atol=1e-5)
        assert record.probabilities is not None
        assert record.probabilities.shape == (6, 4, 7, 17)
        assert torch.allclose(record.probabilities.sum(-1), torch.ones(6, 4, 7))

    def test_masked_states_have_probability_zero(
        self, med: Med, hidden: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        memory_mask = torch.arange(17) < torch.tensor([17, 9, 1])[:, None]
        memory = med.text.remember(hidden, mask=memory_mask)
        recording, record = memory.recording(1)
        masked = med.match(ids, mask, recording)
        assert torch.allclose(masked, med.match(ids, mask, memory), atol=1e-5)
        assert record.probabilities is not None
        seen = (record.probabilities > 0).all(dim=2).all(dim=1)
        assert torch.equal(seen, memory_mask.repeat_interleave(2, dim=0))

    def test_a_changed_probability_changes_the_result_as_its_gradient_says(
        self, med: Med, memory: ImageMemory, ids: Tensor, mask: Tensor
    ) -> None:
        """A value added to a patch's key moves the probabilities; the chain rule must hold."""
        recording, record = memory.recording(2)
        logit = med.match(ids, mask, recording)[3, 1]
        (gradient,) = torch.autograd.grad(logit, record.probabilities, retain_graph=True)
        (whole,) = torch.autograd.grad(logit, recording.keys[2], retain_graph=True)
        (through,) = torch.autograd.grad(record.probabilities, recording.keys[2], gradient)
        assert gradient[3].abs().max() > 0
        assert gradient[[0, 1, 2, 4, 5]].abs().max() == 0
        assert torch.allclose(through, whole, atol=1e-6)

    def test_frozen_weights_do_not_matter(
        self, med: Med, images: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        def gradient() -> Tensor:
            with torch.no_grad():
                memory = med.memories(med.encode_images(images)).encoder
            recording, record = memory.recording(1)
            logit = med.match(ids, mask, recording)[0, 1]
            return torch.autograd.grad(logit, record.probabilities)[0]

        expected = gradient()
        med.requires_grad_(False)
        assert torch.equal(gradient(), expected)

    def test_training_drops_probabilities_as_always(
        self, make_med: Callable[..., Med], images: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        med = make_med(dropout=0.5)
        memory, record = med.memories(med.encode_images(images)).encoder.recording(1)
        evaluated = med.match(ids, mask, memory)
        trained = med.train().match(ids, mask, memory)
        assert not torch.allclose(trained, evaluated)
        assert record.probabilities is not None
        assert torch.allclose(record.probabilities.sum(-1), torch.ones(6, 4, 7))

    def test_the_memory_itself_and_a_selection_of_it(self, memory: ImageMemory) -> None:
        recording, record = memory.recording(1)
        assert memory.record is None
        assert recording.select(torch.tensor([2])).record is record

    @pytest.mark.parametrize("layer", [-1, 3, 12])
    def test_an_unknown_layer_is_refused(self, memory: ImageMemory, layer: int) -> None:
        with pytest.raises(RecipeError, match=f"layer {layer}: .* 0 to 2"):
            memory.recording(layer)
