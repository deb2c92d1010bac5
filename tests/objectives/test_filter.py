"""Fine-tuning a filter."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import SpecialTokens
from openblip.model import Med
from openblip.objectives.itc import similarities
from openblip.objectives.itm import hard_negatives
from openblip.objectives.pretrain import FilterTask
from openblip.objectives.settings import FilterObjectives
from openblip.objectives.task import StepPosition

MakeStudent = Callable[..., Med]
MakeBatch = Callable[..., Batch]


def test_negatives_are_weighted_by_the_students_own_similarities(
    make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    weights: dict[str, Tensor] = {}

    def sampler(given: Tensor, position: StepPosition, wanted: str) -> Tensor:
        weights[wanted] = given
        return hard_negatives(given, torch.zeros(len(given)))

    student = make_student(heads=("itc", "itm"))
    task = FilterTask(
        student, special, FilterObjectives(queue_size=8), seed=0, negative_sampler=sampler
    )
    with torch.no_grad():
        for parameter in task.teacher.parameters():
            parameter.mul_(1.2)
    batch = replace(make_batch(size=5), image_ids=torch.tensor([1, 2, 1, 3, 4]))
    task(batch, StepPosition(0, 0.0))
    image_embed = student.embed_images(student.encode_images(batch.images))
    text_embed = student.embed_texts(batch.tokens, batch.mask)
    same = batch.image_ids[:, None] == batch.image_ids
    sims = similarities(text_embed, image_embed, student.temperature)
    expected = sims.softmax(dim=1).masked_fill(same, 0)
    torch.testing.assert_close(weights["image"], expected.detach())
    sims = similarities(image_embed, text_embed, student.temperature)
    expected = sims.softmax(dim=1).masked_fill(same, 0)
    torch.testing.assert_close(weights["text"], expected.detach())


def test_alpha_rises_over_one_epoch(
    make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    objectives = FilterObjectives(queue_size=8)
    task, batch = FilterTask(make_student(), special, objectives, seed=0), make_batch()
    hidden = task.student.encode_images(batch.images)
    at = [
        task.contrast(batch, hidden, StepPosition(0, e)).image_targets for e in (0.0, 0.5, 1.0, 2.0)
    ]
    torch.testing.assert_close(at[1], (at[0] + at[2]) / 2)
    assert torch.equal(at[2], at[3])
    assert not torch.equal(at[0], at[2])


def test_one_run_can_train_captioner_and_filter(
    make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    objectives = FilterObjectives(queue_size=8, losses=("itc", "itm", "lm"))
    task = FilterTask(make_student(), special, objectives, seed=0)
    terms = task(make_batch(), StepPosition(0, 0.0)).terms
    assert {"itc", "itm", "lm"} < set(terms)
    assert task.kind == "filter"
