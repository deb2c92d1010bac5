"""One optimiser step of a task, and its loss on batches that it does not learn from."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from openblip.data.examples import Examples
from openblip.data.shuffle import keyed_hash
from openblip.tasks.protocol import AnyTask, StepOutput, StepPosition
from openblip.training.config import Precision
from openblip.training.distributed import Processes
from openblip.training.optimiser import set_learning_rate, trained_parameters
from openblip.training.sharding import clip, total_norm

# Keeps the random numbers of training and of validation apart.
_TRAINING, _VALIDATION = 1, 2


class NonFiniteLoss(Exception):  # noqa: N818 - a condition between trainer and run, never shown
    """The loss or the gradient of a step is not finite; nothing has been learnt from it.

    Or what it has made of the weights is not finite or has exploded.
    """

    def __init__(
        self, step: int, terms: dict[str, float], ids: list[str], is_learnt: bool = False
    ) -> None:
        super().__init__(f"step {step}")
        self.step = step
        """Optimiser steps done before this one."""
        self.terms = terms
        """Losses and gradient norm by name."""
        self.ids = ids
        """Ids of the batch, or of the parts of it whose own loss is not finite."""
        self.is_learnt = is_learnt
        """The step has changed the weights; `terms` are losses with these, if any were taken."""


@dataclass(frozen=True)
class StepReport:
    """What a step measured; the same on every process."""

    terms: dict[str, float]
    """Losses by name, means over the batch, and `grad_norm` before clipping."""
    stop: bool
    """Whether a process was asked to stop."""


class Trainer:
    """Takes a task through optimiser steps; the random numbers of each depend on it alone."""

    def __init__(
        self,
        task: AnyTask,
        optimiser: torch.optim.Optimizer,
        processes: Processes,
        *,
        seed: int,
        precision: Precision = "float32",
        clip_norm: float | None = None,
        find_unused: bool = False,
    ) -> None:
        self.task = task
        self.optimiser = optimiser
        self.processes = processes
        self.seed = seed
        self.precision = precision
        self.clip_norm = clip_norm
        self._parameters = trained_parameters(task)
        self._module = processes.replicate(task, find_unused=find_unused)

    def step(
        self, position: StepPosition, parts: Sequence[Examples], lr: float, *, stop: bool = False
    ) -> StepReport:
        """Learn from one batch.

        Args:
            position: of the step.
            parts: what this process has of the batch, in accumulated parts.
            lr: learning rate of the step.
            stop: whether this process was asked to stop after the step.

        Raises:
            NonFiniteLoss: on every process, before the optimiser changes a weight.
        """
        set_learning_rate(self.optimiser, lr)
        self.optimiser.zero_grad(set_to_none=True)
        with self._keyed_random(_TRAINING, position.step):
            self.task.begin_step(position)
            outputs = [
                self._accumulate(part, replace(position, micro_step=number), len(parts))
                for number, part in enumerate(parts)
            ]
        report = self._clip_and_report(outputs, stop)
        if not (isfinite(report.terms["loss"]) and isfinite(report.terms["grad_norm"])):
            raise self._failure(position.step, report.terms, parts, outputs)
        self.optimiser.step()
        for output in outputs:
            self.task.finish_step(output.update)
        return report

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Examples]) -> dict[str, float]:
        """Mean losses by name over batches, without dropout; changes nothing.

        The position is always epoch 0, where no soft targets count, so that values of different
        steps can be compared.
        """
        self.task.eval()
        sums: list[Tensor] = []
        names: list[str] = []
        with self._keyed_random(_VALIDATION, 0):
            for number, batch in enumerate(batches):
                with self._autocast():
                    output: StepOutput = self.task(
                        batch.to(self.processes.device), StepPosition(number, 0.0)
                    )
                names = ["loss", *output.terms]
                sums.append(_values(output))
        self.task.train()
        means = self.processes.mean(torch.stack(sums).mean(dim=0)).tolist()
        return dict(zip(names, means, strict=True))

    def _accumulate(self, part: Examples, position: StepPosition, num_parts: int) -> StepOutput:
        is_last = position.micro_step == num_parts - 1
        sync = _always() if is_last else self.processes.without_sync(self._module)
        with sync:
            with self._autocast():
                output: StepOutput = self._module(part.to(self.processes.device), position)
            (output.loss / num_parts).backward()  # type: ignore[no-untyped-call]  # torch
        return replace(output, loss=output.loss.detach())

    def _clip_and_report(self, outputs: Sequence[StepOutput], stop: bool) -> StepReport:
        values = torch.stack([_values(output) for output in outputs]).mean(dim=0)
        asked = torch.tensor([float(stop)], device=values.device)
        values = self.processes.mean(torch.cat([values, asked]))
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = total_norm(gradients, self.processes)
        if self.clip_norm is not None:
            clip(gradients, norm, self.clip_norm)
        # The only place of a step where the host waits for the device.
        *means, asked_by, grad_norm = torch.cat([values, norm[None]]).tolist()
        terms = dict(zip(["loss", *outputs[0].terms], means, strict=True))
        return StepReport({**terms, "grad_norm": grad_norm}, asked_by > 0)

    def _failure(
        self,
        step: int,
        terms: dict[str, float],
        parts: Sequence[Examples],
        outputs: Sequence[StepOutput],
    ) -> NonFiniteLoss:
        pairs = list(zip(parts, outputs, strict=True))
        ids = [i for part, out in pairs if not torch.isfinite(out.loss) for i in part.ids]
        bad = [i for rank_ids in self.processes.gather_objects(ids) for i in rank_ids]
        if not bad:
            own = [i for part in parts for i in part.ids]
            bad = [i for rank_ids in self.processes.gather_objects(own) for i in rank_ids]
        return NonFiniteLoss(step, terms, bad)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.processes.device.type,
            dtype=torch.bfloat16,
            enabled=self.precision == "bfloat16",
        )

    @contextmanager
    def _keyed_random(self, purpose: int, step: int) -> Iterator[None]:
        """The global generator, which dropout draws from, as (seed, step, rank) decide."""
        device = self.processes.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(keyed_hash(self.seed, purpose, step, self.processes.rank))
            yield


def _values(output: StepOutput) -> Tensor:
    values = [output.loss.detach(), *output.terms.values()]
    return torch.stack([value.float() for value in values])


@contextmanager
def _always() -> Iterator[None]:
    yield
