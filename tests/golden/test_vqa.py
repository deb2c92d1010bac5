"""Question states, answer logits, their loss, and every way of answering are the original's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.batches.tokenizer import TextTokenizer, TokenBatch
from openblip.inference.answers import answer_questions, rank_answers, read_questions, write_answers
from openblip.model.memory import ImageMemory
from openblip.model.vqa import Vqa
from openblip.objectives.finetune import QuestionBatch, VqaObjectives, VqaTask
from openblip.objectives.task import StepPosition

pytestmark = pytest.mark.golden

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def vqa(golden: Callable[[str], Any]) -> Any:
    return golden("vqa")


@pytest.fixture(scope="module")
def model(vqa: Any) -> Vqa:
    return vqa.model().eval()


@pytest.fixture(scope="module")
def tokenizer(golden_dir: Path) -> TextTokenizer:
    return TextTokenizer.from_file(golden_dir / "vocab.txt")


def tokens(vqa: Any, name: str) -> TokenBatch:
    return TokenBatch(vqa[f"{name}_input_ids"], vqa.mask(f"{name}_attention_mask"))


def rankings(vqa: Any) -> dict[str, Any]:
    return {tag: run for tag, run in vqa.json["results"].items() if tag.startswith("rank_k")}


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


@torch.no_grad()
def test_ranking(vqa: Any, model: Vqa) -> None:
    questions = read_questions(model, model.encode_images(vqa["image"]), tokens(vqa, "question"))
    assert rankings(vqa)
    for tag in rankings(vqa):
        expected = vqa[f"{tag}.topk_ids"]
        ranking = rank_answers(model, questions, tokens(vqa, "candidate"), k=expected.shape[1])
        assert torch.equal(ranking.candidates, expected)
        assert vqa.error(ranking.first_probabilities, f"{tag}.topk_probs") < TOLERANCE
        assert vqa.error(ranking.logprobs, f"{tag}.log_probs_sum") < TOLERANCE
        assert torch.equal(ranking.best, vqa[f"{tag}.max_ids"])


@torch.no_grad()
def test_free_answers_attending_to_padding(vqa: Any, model: Vqa, tokenizer: TextTokenizer) -> None:
    # The original attends to the padding that a batch gives to its shorter questions.
    run = vqa.json["results"]["generate"]
    questions = model.question_memory(question_states(vqa, model), mask=None)
    texts = write_answers(model, questions, tokenizer.special)
    for text, row in zip(texts, vqa["generate.sequences"].tolist(), strict=True):
        padding = [tokenizer.special.pad] * (len(row) - len(text.token_ids))
        assert [*text.token_ids, *padding] == row
    assert [text.score for text in texts] == pytest.approx(run["sequences_scores"], abs=1e-5)
    assert [tokenizer.decode(text.token_ids) for text in texts] == run["answers"]


@torch.no_grad()
def test_answers_from_texts(vqa: Any, model: Vqa, tokenizer: TextTokenizer) -> None:
    hidden = model.encode_images(vqa["image"])
    questions, candidates = vqa.json["questions"], vqa.json["candidates"]
    for tag, run in rankings(vqa).items():
        k = vqa[f"{tag}.topk_ids"].shape[1]
        answers = answer_questions(model, tokenizer, hidden, questions, candidates, k)
        assert [answer.text for answer in answers] == run["answers"]
    # The longest question has no padding: the original's answer to it is the one to it alone.
    written = answer_questions(model, tokenizer, hidden, questions)
    longest = int(vqa["question_attention_mask"].sum(dim=1).argmax())
    expected = vqa.json["results"]["generate"]
    assert written[longest].text == expected["answers"][longest]


def test_the_step_of_the_task(vqa: Any) -> None:
    task = VqaTask(vqa.model().train(), VqaObjectives())
    batch = QuestionBatch(
        ids=("",) * len(vqa["image"]),
        images=vqa["image"],
        tokens=vqa["question_input_ids"],
        mask=vqa.mask("question_attention_mask"),
        answers=vqa["answer_input_ids"],
        answers_mask=vqa.mask("answer_attention_mask"),
        question_of_answer=torch.arange(len(vqa["image"])).repeat_interleave(
            torch.tensor(vqa.json["n"])
        ),
        weights=vqa["weights"],
        step=0,
    )
    output = task(batch, StepPosition(0, 0.0))
    assert output.loss.item() == pytest.approx(vqa.json["loss"], rel=TOLERANCE)
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in task.student.named_parameters()}
    assert vqa.worst_gradient_norm_error(gradients, vqa.json["grad_norm"]) < 1e-4
    assert vqa.worst_gradient_error(gradients) < 1e-4
