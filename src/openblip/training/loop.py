"""The loop: steps, log lines, checkpoints, and an orderly end when someone asks for it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

from openblip.data.examples import Examples
from openblip.data.step_loader import AnyLoader
from openblip.interruption import Interruption
from openblip.progress import Progress
from openblip.tasks.protocol import StepPosition
from openblip.training.checkpoint import RunState
from openblip.training.config import StabilityConfig
from openblip.training.guard import is_skipped, loss_is_sane, note_loss, weights_are_sane
from openblip.training.metrics_log import MetricsLog
from openblip.training.plan import Plan
from openblip.training.rank_log import RankLog
from openblip.training.trainer import NonFiniteLoss, Trainer
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


class Loop:
    """Takes a run from its state to its end.

    Args:
        trainer: makes the steps.
        loader: gives the batches.
        plan: says how many, and what happens when.
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
        plan: Plan,
        learning_rate: Callable[[int], float],
        stability: StabilityConfig,
        validate: Callable[[], Mapping[str, float]] | None,
        save: Callable[[RunState], None],
        reporting: Reporting,
    ) -> None:
        self._trainer = trainer
        self._loader = loader
        self._plan = plan
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
        plan = self._plan
        batches = self._loader.iterate(state.step * plan.accumulate)
        self._reporting.meter.restart(self._loader.waited_seconds)
        with Interruption() as interruption:
            while state.step < plan.total_steps:
                if is_skipped(state.skipped, state.step):
                    stop = self._pass_over(state, batches)
                else:
                    stop = self._step(state, batches, interruption)
                is_due = plan.is_due(plan.checkpoint_every, state.step)
                if is_due or state.step == plan.total_steps:
                    self._judge(state)
                if is_due:
                    self._checkpoint(state)
                if stop:
                    if not is_due:
                        self._save(state)
                    return state.step == plan.total_steps
        return True

    def _step(
        self, state: RunState, batches: Iterator[Examples], interruption: Interruption
    ) -> bool:
        began = perf_counter()
        position = self._plan.position(state.step)
        parts = list(islice(batches, self._plan.accumulate))
        lr = self._learning_rate(state.step)
        report = self._trainer.step(position, parts, lr, stop=interruption.requested)
        self._learnt = parts[-1]
        state.step += 1
        state.window_loss += report.terms["loss"]
        state.window_steps += 1
        self._count(state, report.terms, parts)
        self._watch(state, report.terms["loss"])
        if self._plan.is_due(self._plan.log_every, state.step):
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
        if is_good and state.step == self._plan.total_steps:
            losses = trainer.evaluate([self._learnt])
            is_good = loss_is_sane(losses["loss"])
        if not is_good:
            raise NonFiniteLoss(state.step - 1, losses, list(self._learnt.ids), is_learnt=True)

    def _pass_over(self, state: RunState, batches: Iterator[Examples]) -> bool:
        """Leave out a step; what is due after it happens all the same."""
        position = self._plan.position(state.step)
        for _ in islice(batches, self._plan.accumulate):
            pass
        state.step += 1
        if self._num_summed and self._plan.is_due(self._plan.log_every, state.step):
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
            world_size, flops = self._trainer.processes.world_size, self._reporting.flops_of(part)
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
        if judged < state.best_loss:
            state.best_loss, state.best_step = judged, state.step
        state.window_loss, state.window_steps = 0.0, 0
        state.seconds += perf_counter() - began
        self._save(state)
        # What validation and saving took shall not look like slow steps.
        self._reporting.meter.restart(self._loader.waited_seconds)
