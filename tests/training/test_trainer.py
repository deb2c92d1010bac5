"""One optimiser step, on a task small enough to be computed by hand.

The task has one weight w and the loss mean((w * x - y)^2), with dropout on x where asked; x and y
travel in the place of images and image ids.
"""

from collections.abc import Sequence
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openblip.batches.loader import Batch
from openblip.model import Med
from openblip.objectives.task import QueueUpdate, StepOutput, StepPosition, Task
from openblip.training.loop import NonFiniteLoss, Trainer
from openblip.training.parallelism import Processes

START = StepPosition(0, 0.0)


class Line(Task):
    kind = "pretrain"

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.student = cast("Med", None)
        self.dropout = dropout
        self.calls: list[str] = []

    def begin_step(self, position: StepPosition) -> None:
        self.calls.append(f"begin {position.step}")

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        self.calls.append(f"forward {position.micro_step}")
        x = F.dropout(batch.images, self.dropout, self.training)
        self.dtype = F.linear(x[:, None], self.weight.reshape(1, 1)).dtype
        loss = (self.weight * x - batch.image_ids).square().mean()
        update = QueueUpdate(batch.images, batch.images, batch.image_ids, batch.image_ids)
        return StepOutput(loss, {"square": loss.detach()}, update)

    def finish_step(self, update: QueueUpdate | None) -> None:
        assert update is not None
        self.calls.append(f"finish {update.image_ids.tolist()}")


def batch(xs: Sequence[float], ys: Sequence[int]) -> Batch:
    ids, texts = torch.tensor(ys), torch.zeros(len(ys), 1, dtype=torch.int64)
    names = tuple(f"pair-{y}" for y in ys)
    return Batch(names, torch.tensor(xs), texts, texts.bool(), ids, ids, step=0)


def trainer(
    task: Line, clip_norm: float | None = None, seed: int = 3, precision: str = "float32"
) -> Trainer:
    optimiser = torch.optim.SGD(task.parameters(), lr=1.0)
    return Trainer(
        task, optimiser, Processes(), seed=seed, precision=precision, clip_norm=clip_norm
    )


def test_a_step_follows_the_gradient() -> None:
    task = Line()
    report = trainer(task).step(START, [batch([1.0, 2.0], [3, 4])], lr=0.1)
    # d/dw mean((w - 3)^2, (2w - 4)^2) at w = 1 is -2 + -4 = -6.
    assert task.weight.item() == pytest.approx(1.0 + 0.1 * 6.0)
    assert report.terms == pytest.approx({"loss": 4.0, "square": 4.0, "grad_norm": 6.0})
    assert not report.stop


def test_the_task_is_told_in_order() -> None:
    task = Line()
    parts = [batch([1.0], [1]), batch([1.0], [2])]
    trainer(task).step(StepPosition(7, 0.0), parts, lr=0.1)
    assert task.calls == ["begin 7", "forward 0", "forward 1", "finish [1]", "finish [2]"]


def test_accumulated_parts_give_the_gradient_of_the_whole() -> None:
    whole, parts = Line(), Line()
    one = trainer(whole).step(START, [batch([1.0, 2.0, 3.0, 4.0], [3, 4, 5, 6])], lr=0.1)
    two = trainer(parts).step(START, [batch([1.0, 2.0], [3, 4]), batch([3.0, 4.0], [5, 6])], lr=0.1)
    assert parts.weight.item() == pytest.approx(whole.weight.item())
    assert two.terms == pytest.approx(one.terms)


def test_a_long_gradient_is_clipped() -> None:
    task = Line()
    report = trainer(task, clip_norm=2.0).step(START, [batch([1.0, 2.0], [3, 4])], lr=0.1)
    assert report.terms["grad_norm"] == pytest.approx(6.0)
    assert task.weight.item() == pytest.approx(1.0 + 0.1 * 2.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_teaches_nothing(bad: float) -> None:
    task = Line()
    parts = [batch([1.0], [1]), batch([bad, 1.0], [2, 3])]
    with pytest.raises(NonFiniteLoss) as failure:
        trainer(task).step(StepPosition(5, 0.0), parts, lr=0.1)
    assert task.weight.item() == 1.0
    assert not any(call.startswith("finish") for call in task.calls)
    assert failure.value.step == 5
    assert failure.value.ids == ["pair-2", "pair-3"]


def test_a_gradient_that_is_not_finite_teaches_nothing() -> None:
    task = Line()
    task.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLoss) as failure:
        trainer(task).step(START, [batch([1.0], [2])], lr=0.1)
    assert task.weight.item() == 1.0
    assert failure.value.ids == ["pair-2"]


def losses(task: Line, steps: Sequence[int], seed: int = 3) -> list[float]:
    run = trainer(task, seed=seed)
    pairs = batch([float(number) for number in range(1, 9)], [1] * 8)
    return [run.step(StepPosition(s, 0.0), [pairs], lr=0.0).terms["loss"] for s in steps]


def test_dropout_depends_on_seed_and_step_alone() -> None:
    every = losses(Line(dropout=0.5), range(4))
    assert len(set(every)) == 4
    assert losses(Line(dropout=0.5), [2, 3]) == every[2:]
    assert losses(Line(dropout=0.5), range(4), seed=4) != every


def test_the_global_generator_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    losses(Line(dropout=0.5), range(2))
    assert torch.equal(torch.rand(1), expected)


def test_bfloat16_is_for_products_only() -> None:
    task = Line()
    report = trainer(task, precision="bfloat16").step(START, [batch([1.0], [2])], lr=0.1)
    assert task.dtype == torch.bfloat16
    assert task.weight.dtype == torch.float32
    assert report.terms["loss"] == 1.0


def test_a_wish_to_stop_is_passed_on() -> None:
    assert trainer(Line()).step(START, [batch([1.0], [2])], lr=0.1, stop=True).stop


def test_evaluation_is_without_dropout_and_changes_nothing() -> None:
    task = Line(dropout=0.5)
    task.train()
    means = trainer(task).evaluate([batch([1.0], [2]), batch([1.0], [4])])
    assert means == pytest.approx({"loss": 5.0, "square": 5.0})
    assert task.training
    assert task.weight.item() == 1.0
    assert task.calls == ["forward 0", "forward 0"]
