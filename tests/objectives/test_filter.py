"""Fine-tuning a filter."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import SpecialTokens
from openblip.model import Med
from openblip.objectives.itc import similarities
from openblip.objectives.itm import hard_negatives
from openblip.objectives.pretrain import FilterTask
from openblip.objectives.settings import FilterObjectives
from openblip.objectives.task import StepPosition
from openblip.runtime.errors import RecipeError

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


def test_a_typed_negative_takes_the_place_of_a_hard_one(
    make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    student, batch = make_student(heads=("itc", "itm")), make_batch(size=4)
    objectives = FilterObjectives(queue_size=8)
    # As long as no other text, and none in the second and the last row.
    wide = torch.full((4, 16), special.pad)
    wide[:, :10] = torch.arange(7, 17)
    wide[:, 0] = special.cls
    mask = torch.zeros(4, 16, dtype=torch.bool)
    mask[[0, 2], :10] = True
    with_typed = replace(batch, corrupted_tokens=wide, corrupted_mask=mask)
    task = FilterTask(student, special, objectives, seed=0)

    loss = task(with_typed, StepPosition(0, 0.0)).terms["itm"]

    hidden = student.encode_images(batch.images)
    contrast = task.contrast(batch, hidden, StepPosition(0, 0.0))
    negatives = task.draw_negatives(batch, contrast, StepPosition(0, 0.0))
    own, others = batch.tokens.clone(), batch.tokens[negatives.texts]
    others_mask = F.pad(batch.mask[negatives.texts], (0, 8))
    others = F.pad(others, (0, 8), value=special.pad)
    others[[0, 2]], others_mask[[0, 2]] = wide[[0, 2]], mask[[0, 2]]
    memory = student.memories(hidden).encoder

    def logits(tokens: Tensor, attended: Tensor, images: Tensor) -> Tensor:
        ids = tokens.clone()
        ids[:, 0] = special.enc
        return student.match(ids, attended, memory.select(images))

    every = torch.arange(4)
    joined = torch.cat(
        [
            logits(own, batch.mask, every),
            logits(own, batch.mask, negatives.images),
            logits(others, others_mask, every),
        ]
    )
    matched = torch.tensor([1] * 4 + [0] * 8)
    torch.testing.assert_close(loss, F.cross_entropy(joined, matched).detach())


def test_an_image_without_hard_negatives_may_have_a_typed_one(
    make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    batch = replace(make_batch(size=2), image_ids=torch.tensor([1, 1]))
    task = FilterTask(make_student(), special, FilterObjectives(queue_size=8), seed=0)
    plain = task(batch, StepPosition(0, 0.0)).terms["itm"]
    typed = replace(batch, corrupted_tokens=batch.tokens.flip(0), corrupted_mask=batch.mask.flip(0))
    assert task(typed, StepPosition(0, 0.0)).terms["itm"] != plain


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_of_typed_negatives_is_between_none_and_all(share: float) -> None:
    with pytest.raises(RecipeError, match=r"typed_negatives .* is not in \[0, 1\]"):
        FilterObjectives(typed_negatives=share)


def test_typed_negatives_without_matching_are_refused() -> None:
    FilterObjectives(typed_negatives=0.5)
    with pytest.raises(RecipeError, match=r"typed_negatives is 0\.5.* no itm"):
        FilterObjectives(typed_negatives=0.5, losses=("itc", "lm"))
