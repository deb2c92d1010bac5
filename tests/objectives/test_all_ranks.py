"""Two ranks with negatives from all ranks compute what one process does on their joint batch."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import SpecialTokens
from openblip.model import Med
from openblip.objectives.pretrain import PretrainObjectives, PretrainTask
from openblip.objectives.settings import FilterObjectives
from openblip.objectives.task import StepOutput, StepPosition

WORLD_SIZE = 2
POSITION = StepPosition(step=4, epoch=1.0)

MakeStudent = Callable[..., Med]
MakeBatch = Callable[..., Batch]


@dataclass
class Meeting:
    """Where threads, each in the place of a rank, exchange tensors."""

    barrier: threading.Barrier = field(
        default_factory=lambda: threading.Barrier(WORLD_SIZE, timeout=30)
    )
    brought: list[Tensor] = field(default_factory=lambda: [torch.empty(0)] * WORLD_SIZE)


@dataclass
class ThreadRank:
    """Collectives of one rank; backward passes meet as well, as with real processes."""

    rank: int
    meeting: Meeting
    world_size: int = WORLD_SIZE

    def exchange(self, tensor: Tensor) -> list[Tensor]:
        self.meeting.brought[self.rank] = tensor.detach().clone()
        self.meeting.barrier.wait()
        brought = list(self.meeting.brought)
        self.meeting.barrier.wait()
        assert len({t.shape for t in brought}) == 1, "ranks bring equal shapes"
        return brought

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat(self.exchange(tensor))

    def gather_with_gradient(self, tensor: Tensor) -> Tensor:
        return _Gather.apply(tensor, self)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rank: ThreadRank) -> Tensor:
        ctx.collectives = rank
        return rank.gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = torch.stack(ctx.collectives.exchange(gradient)).sum(dim=0)
        return total.chunk(WORLD_SIZE)[ctx.collectives.rank], None


@dataclass
class Stepped:
    output: StepOutput
    gradients: dict[str, Tensor]
    queue: dict[str, Tensor]


def step(task: PretrainTask, batch: Batch) -> Stepped:
    task.begin_step(POSITION)
    output = task(batch, POSITION)
    output.loss.backward()
    task.finish_step(output.update)
    gradients = {n: p.grad for n, p in task.student.named_parameters() if p.grad is not None}
    return Stepped(output, gradients, task.queue.state_dict())


def parts_of(batch: Batch) -> list[Batch]:
    """Each rank's rows, padded to its own longest text only."""
    rows = len(batch.tokens) // WORLD_SIZE
    parts = []
    for rank in range(WORLD_SIZE):
        own = slice(rank * rows, (rank + 1) * rows)
        tokens = int(batch.mask[own].sum(dim=1).max())
        parts.append(
            replace(
                batch,
                images=batch.images[own],
                tokens=batch.tokens[own, :tokens],
                mask=batch.mask[own, :tokens],
                image_ids=batch.image_ids[own],
                text_ids=batch.text_ids[own],
            )
        )
    return parts


def step_on_ranks(
    student: Med, special: SpecialTokens, objectives: Any, batch: Batch
) -> list[Stepped]:
    meeting = Meeting()
    tasks = [
        PretrainTask(deepcopy(student), special, objectives, 3, ThreadRank(rank, meeting))
        for rank in range(WORLD_SIZE)
    ]
    with ThreadPoolExecutor(WORLD_SIZE) as pool:
        return list(pool.map(step, tasks, parts_of(batch)))


@pytest.fixture
def batch(make_batch: MakeBatch) -> Batch:
    """Unequal numbers of labels and of permitted negatives on the two ranks."""
    batch = make_batch(size=8, seed=6)
    lengths = batch.mask.sum(dim=1)
    assert lengths[:4].max() != lengths[4:].max()
    assert lengths[:4].sum() != lengths[4:].sum()
    # Pair 0 shares its image with pairs 1 to 3, its text with all others: it has no negative.
    return replace(
        batch,
        image_ids=torch.tensor([1, 1, 1, 1, 2, 3, 4, 5]),
        text_ids=torch.tensor([1, 2, 3, 4, 1, 1, 1, 1]),
    )


@pytest.mark.parametrize("kind", [PretrainObjectives, FilterObjectives])
def test_all_ranks_equal_one_process(
    kind: type[PretrainObjectives], make_student: MakeStudent, batch: Batch, special: SpecialTokens
) -> None:
    objectives = kind(negatives="all_ranks", queue_size=10, losses=("itc", "itm", "lm"))
    student = make_student()
    one = step(PretrainTask(deepcopy(student), special, objectives, 3), batch)
    ranks = step_on_ranks(student, special, objectives, batch)
    for name, expected in one.output.terms.items():
        mean = torch.stack([rank.output.terms[name] for rank in ranks]).mean()
        torch.testing.assert_close(mean, expected, atol=1e-5, rtol=0)
    for name, expected in one.gradients.items():
        mean = torch.stack([rank.gradients[name] for rank in ranks]).mean(dim=0)
        torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)
    for rank in ranks:
        assert rank.gradients.keys() == one.gradients.keys()
        for name, tensor in one.queue.items():
            torch.testing.assert_close(rank.queue[name], tensor)


def test_negatives_from_the_rank_send_features_only_to_the_queue(
    make_student: MakeStudent, batch: Batch, special: SpecialTokens
) -> None:
    objectives = PretrainObjectives(negatives="rank", queue_size=10)
    student = make_student()
    ranks = step_on_ranks(student, special, objectives, batch)
    alone = [
        step(PretrainTask(deepcopy(student), special, objectives, 3), part)
        for part in parts_of(batch)
    ]
    # The first rank draws as a single process does; the second with its own numbers.
    for name, term in alone[0].output.terms.items():
        torch.testing.assert_close(ranks[0].output.terms[name], term)
    for name in ("itc", "lm"):
        torch.testing.assert_close(ranks[1].output.terms[name], alone[1].output.terms[name])
    for rank in ranks:
        assert torch.equal(rank.queue["image_ids"][:8], batch.image_ids)
