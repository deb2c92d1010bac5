"""The loop: steps, log lines, checkpoints, and an orderly end when someone asks for it.

`Trainer` makes one optimiser step of a task, `Loop` all of a run, and reports them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from math import isfinite
from time import perf_counter

import torch
from torch import Tensor

from openblip.batches.shuffle import keyed_hash
from openblip.batches.step_loader import AnyLoader, Examples, copied_ahead
from openblip.objectives.task import AnyTask, StepOutput, StepPosition
from openblip.runtime.interruption import Interruption
from openblip.runtime.progress import Progress
from openblip.training.checkpoint import RunState
from openblip.training.guard import is_skipped, loss_is_sane, note_loss, weights_are_sane
from openblip.training.metrics_log import MetricsLog
from openblip.training.optimiser import RunSteps, set_learning_rate, trained_parameters
from openblip.training.parallelism import Processes, clip, total_norm
from openblip.training.rank_log import RankLog
from openblip.training.recipe import Precision, StabilityConfig
from openblip.training.utilisation import Meter, added


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """Where numbers go; on processes other than the first, only into the rank's log."""

    progress: Progress
    """What a person sees."""
    log: MetricsLog | None
    """What is kept."""
    rank_log: RankLog
    """What this process leaves behind."""
    meter: Meter
    """What this process does per second."""
    flops_of: Callable[[Examples], float | None]
    """Arithmetic of a step on a batch; None where it is not counted."""


@dataclass(frozen=True)
class StepReport:
    """What a step measured; the same on every process."""

    terms: dict[str, float]
    """Losses by name, means over the batch, and `grad_norm` before clipping."""
    stop: bool
    """Whether a process was asked to stop."""


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
        # Keyed by the step, not drawn on from the step before: a resumed run draws the same.
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
        # Gradients of a step are sent once, with its last part.
        is_last = position.micro_step == num_parts - 1
        sync = _always() if is_last else self.processes.without_sync(self._module)
        with sync:
            with self._autocast():
                output: StepOutput = self._module(part.to(self.processes.device), position)
            # Gradients of parts add up: of parts of means, to the gradient of the batch's mean.
            (output.loss / num_parts).backward()  # type: ignore[no-untyped-call]  # torch
        return replace(output, loss=output.loss.detach())

    def _clip_and_report(self, outputs: Sequence[StepOutput], stop: bool) -> StepReport:
        # Losses, and whether to stop, go in one message: all processes stop after the same step.
        values = torch.stack([_values(output) for output in outputs]).mean(dim=0)
        # Filled on the device: a number from the host would be waited for.
        asked = torch.full((1,), float(stop), device=values.device)
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
        # Every loss was finite and a gradient was not: any pair may have made it. All ranks come
        # here or none, as they have gathered the same.
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


class Loop:
    """Takes a run from its state to its end.

    Args:
        trainer: makes the steps.
        loader: gives the batches.
        steps: says how many, and what happens when.
        learning_rate: of a step, given the number of those before it.
        stability: when a loss raises an alarm.
        validate: mean losses on the validation split, by name; None where there is none.
        save: writes a checkpoint of the state.
        reporting: where numbers go.
    """

    def __init__(
        self,
        trainer: Trainer,
        loader: AnyLoader,
        steps: RunSteps,
        learning_rate: Callable[[int], float],
        stability: StabilityConfig,
        validate: Callable[[], Mapping[str, float]] | None,
        save: Callable[[RunState], None],
        reporting: Reporting,
    ) -> None:
        self._trainer = trainer
        self._loader = loader
        self._steps = steps
        self._learning_rate = learning_rate
        self._stability = stability
        self._validate = validate
        self._save = save
        self._reporting = reporting
        self._sums: dict[str, float] = {}
        self._num_summed = 0
        self._learnt: Examples | None = None

    def run(self, state: RunState) -> bool:
        """Make the steps that are left, and change the state as they are made.

        Returns:
            whether the run came to its end; False where it was asked to stop, and was saved.

        Raises:
            NonFiniteLoss: nothing of the failed step has been learnt or counted; or the weights
                after it are no good, and no checkpoint has them.
        """
        steps = self._steps
        from_host = self._loader.iterate(state.step * steps.accumulate)
        batches = copied_ahead(from_host, self._trainer.processes.device)
        self._reporting.meter.restart(self._loader.waited_seconds)
        with Interruption() as interruption:
            while state.step < steps.total_steps:
                if is_skipped(state.skipped, state.step):
                    stop = self._pass_over(state, batches)
                else:
                    stop = self._step(state, batches, interruption)
                is_due = steps.is_due(steps.checkpoint_every, state.step)
                if is_due or state.step == steps.total_steps:
                    self._judge(state)
                if is_due:
                    self._checkpoint(state)
                if stop:
                    if not is_due:
                        self._save(state)
                    return state.step == steps.total_steps
        return True

    def _step(
        self, state: RunState, batches: Iterator[Examples], interruption: Interruption
    ) -> bool:
        began = perf_counter()
        position = self._steps.position(state.step)
        parts = list(islice(batches, self._steps.accumulate))
        lr = self._learning_rate(state.step)
        report = self._trainer.step(position, parts, lr, stop=interruption.requested)
        self._learnt = parts[-1]
        state.step += 1
        state.window_loss += report.terms["loss"]
        state.window_steps += 1
        self._count(state, report.terms, parts)
        self._watch(state, report.terms["loss"])
        if self._steps.is_due(self._steps.log_every, state.step):
            self._log(state, position, lr)
        self._reporting.progress.update(1)
        state.seconds += perf_counter() - began
        return report.stop

    def _judge(self, state: RunState) -> None:
        """Look at the weights before they are kept; after the last step also at their loss.

        What any other step has made of them shows in the loss of the next one.
        """
        if self._learnt is None:
            return
        trainer = self._trainer
        is_good, losses = weights_are_sane(trainer.task, trainer.processes), dict[str, float]()
        if is_good and state.step == self._steps.total_steps:
            losses = trainer.evaluate([self._learnt])
            is_good = loss_is_sane(losses["loss"])
        if not is_good:
            raise NonFiniteLoss(state.step - 1, losses, list(self._learnt.ids), is_learnt=True)

    def _pass_over(self, state: RunState, batches: Iterator[Examples]) -> bool:
        """Leave out a step; what is due after it happens all the same."""
        position = self._steps.position(state.step)
        # Taken from the loader all the same, which gives batches in their order.
        for _ in islice(batches, self._steps.accumulate):
            pass
        state.step += 1
        if self._num_summed and self._steps.is_due(self._steps.log_every, state.step):
            self._log(state, position, self._learning_rate(position.step))
        self._reporting.progress.update(1)
        return False

    def _watch(self, state: RunState, loss: float) -> None:
        deviations = note_loss(state.recent_losses, loss, self._stability)
        if deviations is None:
            return
        text = (
            f"loss {loss:.4g} of step {state.step - 1} is {deviations:.1f} standard deviations "
            f"above the median of the last {len(state.recent_losses) - 1} steps"
        )
        self._reporting.rank_log.warn(text)
        if self._reporting.log is not None:
            values = {"loss": loss, "deviations": deviations}
            self._reporting.log.event("alarm", state.step, values, text)

    def _count(self, state: RunState, terms: Mapping[str, float], parts: list[Examples]) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._num_summed += 1
        for part in parts:
            world_size = self._trainer.processes.world_size
            flops = self._reporting.flops_of(part.on_host)
            self._reporting.meter.add(len(part.ids) * world_size, flops)
            of_all = None if flops is None else flops * world_size
            state.flops = added(state.flops, of_all)

    def _log(self, state: RunState, position: StepPosition, lr: float) -> None:
        """Report means over the steps since the last line."""
        state.terms = {name: total / self._num_summed for name, total in self._sums.items()}
        self._sums, self._num_summed = {}, 0
        rates = self._reporting.meter.read(self._loader.waited_seconds)
        shown: dict[str, float | str] = {
            **{name: value for name, value in state.terms.items() if name != "grad_norm"},
            "pairs/s": rates["pairs_per_second"],
        }
        if "utilisation" in rates:
            shown["utilisation"] = f"{rates['utilisation']:.0%}"
        shown["waiting for data"] = f"{rates['loader_share']:.0%}"
        self._reporting.progress.update(0, **shown)
        self._reporting.rank_log.note(
            f"step {state.step}: loss {state.terms['loss']:.4g}, {rates['pairs_per_second']:.4g} "
            f"pairs/s, {rates['loader_share']:.0%} waiting for data"
        )
        self._reporting.rank_log.beat(state.step)
        if self._reporting.log is not None:
            values = {"epoch": position.epoch, "lr": lr, **state.terms, **rates}
            self._reporting.log.write("train", state.step, values)

    def _checkpoint(self, state: RunState) -> None:
        began = perf_counter()
        judged = state.window_mean
        if self._validate is not None:
            losses = self._validate()
            judged = losses["loss"]
            if self._reporting.log is not None:
                self._reporting.log.write("validation", state.step, losses)
        # NaN is below nothing: no such checkpoint is ever the best.
        if judged < state.best_loss:
            state.best_loss, state.best_step = judged, state.step
        # Before it is saved: a run that is resumed from here begins a new window, and knows what
        # the validation has taken.
        state.window_loss, state.window_steps = 0.0, 0
        state.seconds += perf_counter() - began
        self._save(state)
        # What validation and saving took shall not look like slow steps.
        self._reporting.meter.restart(self._loader.waited_seconds)


# Keeps the random numbers of training and of validation apart.
_TRAINING, _VALIDATION = 1, 2


def _values(output: StepOutput) -> Tensor:
    values = [output.loss.detach(), *output.terms.values()]
    return torch.stack([value.float() for value in values])


@contextmanager
def _always() -> Iterator[None]:
    yield
