"""CLIP's step: the symmetric contrast of a batch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from openblip.batches.loader import Batch
from openblip.model import Med
from openblip.objectives.clip import ClipTask
from openblip.objectives.settings import ClipObjectives, PretrainObjectives
from openblip.objectives.task import StepPosition
from openblip.runtime.errors import MissingHead, RecipeError

START = StepPosition(0, 0.0)
MakeStudent = Callable[..., Med]
MakeBatch = Callable[..., Batch]


def test_the_loss_is_the_cross_entropy_of_both_directions(
    make_student: MakeStudent, make_batch: MakeBatch
) -> None:
    student, batch = make_student(heads=("itc",)), make_batch()
    images = student.embed_images(student.encode_images(batch.images))
    texts = student.embed_texts(batch.tokens, batch.mask)
    logits, own = images @ texts.T / student.temperature, torch.arange(len(images))
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    output = ClipTask(student, ClipObjectives())(batch, START)
    torch.testing.assert_close(output.loss, expected)
    assert output.update is None


def test_a_step_learns_every_weight(make_student: MakeStudent, make_batch: MakeBatch) -> None:
    task = ClipTask(make_student(heads=("itc",)), ClipObjectives())
    task(make_batch(), START).loss.backward()
    assert task.trains_all_weights
    assert all(parameter.grad is not None for parameter in task.student.parameters())


def test_the_temperature_stays_above_its_bound(make_student: MakeStudent) -> None:
    task = ClipTask(make_student(heads=("itc",)), ClipObjectives(min_temperature=0.02))
    with torch.no_grad():
        task.student.temperature.fill_(0.001)
    task.begin_step(START)
    assert task.student.temperature.item() == pytest.approx(0.02)


def test_other_heads_are_refused(make_student: MakeStudent) -> None:
    with pytest.raises(RecipeError, match=r"model\.heads"):
        ClipTask(make_student(), ClipObjectives())
    with pytest.raises(MissingHead):
        ClipTask(make_student(heads=("lm",)), ClipObjectives())
    with pytest.raises(RecipeError, match="min_temperature"):
        ClipObjectives(min_temperature=0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize(
    ("objectives", "field"),
    [
        (ClipObjectives, "min_temperature"),
        (PretrainObjectives, "min_temperature"),
        (PretrainObjectives, "alpha_ramp_epochs"),
        (PretrainObjectives, "negative_floor"),
        (PretrainObjectives, "momentum"),
        (PretrainObjectives, "label_smoothing"),
    ],
)
def test_settings_are_numbers_of_a_range(
    objectives: type[ClipObjectives | PretrainObjectives], field: str, value: float
) -> None:
    with pytest.raises(RecipeError, match=field):
        objectives(**{field: value})


def test_the_upper_bound_of_the_temperature_may_be_none() -> None:
    """As in the original ALBEF."""
    assert PretrainObjectives(max_temperature=float("inf")).max_temperature == float("inf")
    for value in (float("nan"), 0.0):
        with pytest.raises(RecipeError, match="max_temperature"):
            PretrainObjectives(max_temperature=value)
