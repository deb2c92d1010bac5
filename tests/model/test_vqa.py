"""Question answering: answers see the question, the question sees the image."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from openblip.model import KeyValueCache, MedConfig
from openblip.model.vqa import Vqa, VqaConfig


@pytest.fixture
def vqa(config: MedConfig, redraw: Callable[[nn.Module], None]) -> Vqa:
    model = Vqa(VqaConfig(vision=config.vision, text=config.text))
    redraw(model)
    return model.eval()


@pytest.fixture
def questions(ids: Tensor) -> Tensor:
    return ids[:3]


@pytest.fixture
def question_mask(mask: Tensor) -> Tensor:
    return mask[:3]


def read(vqa: Vqa, images: Tensor, questions: Tensor, mask: Tensor) -> Tensor:
    return vqa.read_questions(questions, mask, vqa.image_memory(vqa.encode_images(images)))


def test_shapes(
    vqa: Vqa, images: Tensor, questions: Tensor, question_mask: Tensor, ids: Tensor, mask: Tensor
) -> None:
    states = read(vqa, images, questions, question_mask)
    assert states.shape == (3, 7, 32)
    logits = vqa.decode(ids, mask, vqa.question_memory(states, question_mask))
    assert logits.shape == (6, 7, 50)


def test_the_image_changes_the_question_and_the_question_the_answer(
    vqa: Vqa, images: Tensor, questions: Tensor, question_mask: Tensor, ids: Tensor
) -> None:
    states = read(vqa, images, questions, question_mask)
    other_images = read(vqa, images.flip(0), questions, question_mask)
    assert not torch.allclose(states[0, 0], other_images[0, 0])
    answers = [
        vqa.decode(ids, None, vqa.question_memory(s, question_mask)) for s in (states, other_images)
    ]
    assert not torch.allclose(*answers)


def test_padding_of_a_question_does_not_change_the_answer(
    vqa: Vqa, images: Tensor, questions: Tensor, question_mask: Tensor, ids: Tensor
) -> None:
    states = read(vqa, images, questions, question_mask)
    logits = vqa.decode(ids[:3], None, vqa.question_memory(states, question_mask))
    for row, length in enumerate(question_mask.sum(1).tolist()):
        one = slice(row, row + 1)
        alone = read(vqa, images[one], questions[one, :length], question_mask[one, :length])
        answer = vqa.decode(ids[one], None, vqa.question_memory(alone, None))
        assert torch.allclose(answer, logits[one], atol=1e-5)


def test_answers_are_decoded_in_steps(
    vqa: Vqa, images: Tensor, questions: Tensor, question_mask: Tensor, ids: Tensor
) -> None:
    memory = vqa.question_memory(read(vqa, images, questions, question_mask), question_mask)
    cache = KeyValueCache.empty(vqa.config.text, len(ids), max_tokens=7)
    steps = [vqa.decode(step, None, memory, cache) for step in ids.split([2, 1, 4], dim=1)]
    assert torch.allclose(torch.cat(steps, dim=1), vqa.decode(ids, None, memory), atol=1e-5)


def test_question_and_answer_share_nothing(
    vqa: Vqa, images: Tensor, questions: Tensor, question_mask: Tensor, ids: Tensor
) -> None:
    memory = vqa.question_memory(read(vqa, images, questions, question_mask), question_mask)
    vqa.decode(ids, None, memory).sum().backward()
    assert all(parameter.grad is not None for parameter in vqa.parameters())
    shared = set(map(id, vqa.question.parameters())) & set(map(id, vqa.answer.parameters()))
    assert not shared
