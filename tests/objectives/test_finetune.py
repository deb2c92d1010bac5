"""Fine-tuning a captioner."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import SpecialTokens
from openblip.model import Med
from openblip.objectives.finetune import CaptionerTask
from openblip.objectives.settings import CaptionerObjectives
from openblip.objectives.task import StepPosition
from openblip.runtime.errors import MissingHead, RecipeError

START = StepPosition(step=0, epoch=0.0)
MakeStudent = Callable[..., Med]
MakeBatch = Callable[..., Batch]


@pytest.mark.parametrize("prompt_tokens", [0, 1, 3])
def test_loss_is_that_of_all_labels_behind_the_prompt(
    prompt_tokens: int, make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    student, batch = make_student(heads=("lm",)), make_batch()
    task = CaptionerTask(student, special, prompt_tokens, label_smoothing=0.2)
    tokens = batch.tokens.clone()
    tokens[:, 0] = special.dec
    memory = student.memories(student.encode_images(batch.images)).decoder
    logits = student.decode(tokens, batch.mask, memory)
    labels = tokens.masked_fill(~batch.mask, -100)
    labels[:, :prompt_tokens] = -100
    expected = F.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, label_smoothing=0.2
    )
    output = task(batch, START)
    torch.testing.assert_close(output.loss, expected)
    assert torch.equal(output.terms["lm"], output.loss.detach())
    assert output.update is None


def test_a_given_text_is_no_label(
    make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    student, batch = make_student(heads=("lm",)), make_batch()
    given = torch.tensor([0, 2, 1, 0, 3, 0])
    task = CaptionerTask(student, special, prompt_tokens=2, label_smoothing=0.2)
    tokens = batch.tokens.clone()
    tokens[:, 0] = special.dec
    memory = student.memories(student.encode_images(batch.images)).decoder
    logits = student.decode(tokens, batch.mask, memory)
    labels = tokens.masked_fill(~batch.mask, -100)
    for row, number in enumerate(given.tolist()):
        labels[row, : 2 + number] = -100
    expected = F.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, label_smoothing=0.2
    )
    output = task(replace(batch, given_tokens=given), START)
    torch.testing.assert_close(output.loss, expected)


def test_only_labelled_positions_reach_the_vocabulary(
    make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    student, batch = make_student(heads=("lm",)), make_batch()
    shapes: list[torch.Size] = []

    def note(module: object, inputs: object, output: Tensor) -> None:
        shapes.append(output.shape)

    student.text.lm_head.register_forward_hook(note)
    CaptionerTask(student, special, prompt_tokens=2)(batch, START)
    assert shapes == [(1, int(batch.mask.sum()) - 2 * len(batch.ids), 40)]


@pytest.mark.parametrize("sharing", ["all", "none"])
def test_a_decoder_alone_can_be_trained(
    sharing: str, make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    student = make_student(heads=("lm",), sharing=sharing)
    CaptionerTask(student, special)(make_batch(), START).loss.backward()
    assert all(p.grad is not None for p in student.parameters())


def test_a_student_that_cannot_generate_is_refused(
    make_student: MakeStudent, special: SpecialTokens
) -> None:
    with pytest.raises(MissingHead, match="lm"):
        CaptionerTask(make_student(heads=("itc", "itm")), special)


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range_is_refused(label_smoothing: float) -> None:
    with pytest.raises(RecipeError, match="label_smoothing"):
        CaptionerObjectives(label_smoothing=label_smoothing)


def test_a_captioner_learns_the_text_for_the_decoder(
    make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    task = CaptionerTask(make_student(heads=("lm",)), special)
    seen, other = make_batch(), make_batch(seed=1)
    both = replace(seen, decoder_tokens=other.tokens, decoder_mask=other.mask)
    written = replace(seen, tokens=other.tokens, mask=other.mask)
    assert torch.equal(task(both, START).loss, task(written, START).loss)
