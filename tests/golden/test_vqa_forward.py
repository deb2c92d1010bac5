"""Question states, answer logits and the loss that they give are the original's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.model.memory import ImageMemory
from openblip.model.vqa import Vqa

pytestmark = pytest.mark.golden

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def vqa(golden: Callable[[str], Any]) -> Any:
    return golden("vqa")


@pytest.fixture(scope="module")
def model(vqa: Any) -> Vqa:
    return vqa.model().eval()


def question_states(vqa: Any, model: Vqa) -> Tensor:
    memory = model.image_memory(model.encode_images(vqa["image"]))
    return model.read_questions(
        vqa["question_input_ids"], vqa.mask("question_attention_mask"), memory
    )


def answer_memory(vqa: Any, model: Vqa) -> ImageMemory:
    """One entry per answer: a question has several."""
    mask = vqa.mask("question_attention_mask")
    memory = model.question_memory(question_states(vqa, model), mask)
    questions = torch.arange(memory.images)
    return memory.select(questions.repeat_interleave(torch.tensor(vqa.json["n"])))


@torch.no_grad()
def test_question_states(vqa: Any, model: Vqa) -> None:
    assert vqa.error(question_states(vqa, model), "question_states_unrepeated") < TOLERANCE


@torch.no_grad()
def test_answer_logits(vqa: Any, model: Vqa) -> None:
    logits = model.decode(
        vqa["answer_input_ids"], vqa.mask("answer_attention_mask"), answer_memory(vqa, model)
    )
    assert vqa.error(logits, "answer_logits") < TOLERANCE


def test_the_gradient_of_the_training_loss(vqa: Any) -> None:
    model = vqa.model().train()
    ids, mask = vqa["answer_input_ids"], vqa.mask("answer_attention_mask")
    logits = model.decode(ids, mask, answer_memory(vqa, model))[:, :-1]
    per_token = F.cross_entropy(
        logits.transpose(1, 2),
        vqa["answer_targets"][:, 1:],
        ignore_index=-100,
        label_smoothing=0.1,
        reduction="none",
    )
    assert vqa.error(per_token.sum(1), "per_answer_loss") < TOLERANCE
    loss = (vqa["weights"] * per_token.sum(1)).sum() / len(vqa["image"])
    assert loss.item() == pytest.approx(vqa.json["loss"], rel=TOLERANCE)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert vqa.worst_gradient_norm_error(gradients, vqa.json["grad_norm"]) < 1e-4
    assert vqa.worst_gradient_error(gradients) < 1e-4
