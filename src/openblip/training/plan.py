"""How long a run is, what happens when, and at which learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from openblip.tasks.protocol import StepPosition
from openblip.training.config import Recipe, ScheduleConfig, TrainConfig
from openblip.training.schedule import finetuning_lr, pretraining_lr, warmup_cosine_lr

# Of a quotient that is whole but for rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a run."""

    total_steps: int
    """Optimiser steps of the whole run."""
    batches_per_epoch: float
    """Batches of the loader, that is accumulated parts, in one pass over the data; a batch may
    span two epochs."""
    accumulate: int = 1
    """Parts of one optimiser step."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between log lines."""

    @staticmethod
    def of(config: TrainConfig, batches_per_epoch: float) -> "Plan":
        """The plan of a run over data of that many batches."""
        steps = config.steps
        if steps is None:
            assert config.epochs is not None, "a recipe gives steps or epochs"
            steps = math.floor(config.epochs * batches_per_epoch / config.accumulate + _ROUNDING)
            steps = max(steps, config.epochs)
        return Plan(
            total_steps=steps,
            batches_per_epoch=batches_per_epoch,
            accumulate=config.accumulate,
            checkpoint_every=config.checkpoint_every,
            log_every=config.log_every,
        )

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps in one pass over the data, with the fraction; at least 1."""
        return max(1.0, self.batches_per_epoch / self.accumulate)

    def position(self, step: int) -> StepPosition:
        """Where the run stands before the step."""
        return StepPosition(step, step * self.accumulate / self.batches_per_epoch)

    def is_due(self, every: int, step: int) -> bool:
        """Whether something regular happens after `step` steps; always after the last one."""
        return step % every == 0 or step == self.total_steps


def learning_rates(recipe: Recipe, plan: Plan) -> Callable[[int], float]:
    """The learning rate of a step, given the number of steps before it."""
    schedule, peak_lr = recipe.schedule, recipe.optimiser.lr
    start_lr = min(schedule.warmup_lr, peak_lr)
    match schedule.kind:
        case "step_decay":
            return lambda step: pretraining_lr(
                step,
                plan.steps_per_epoch,
                peak_lr=peak_lr,
                min_lr=schedule.min_lr,
                decay_rate=schedule.decay_rate,
                warmup_steps=schedule.warmup_steps,
                start_lr=start_lr,
            )
        case "epoch_cosine":
            num_epochs = math.ceil(plan.total_steps / plan.steps_per_epoch - _ROUNDING)
            return lambda step: finetuning_lr(
                step, plan.steps_per_epoch, num_epochs, peak_lr=peak_lr, min_lr=schedule.min_lr
            )
        case "warmup_cosine":
            return lambda step: warmup_cosine_lr(
                step,
                plan.total_steps,
                peak_lr=peak_lr,
                min_lr=schedule.min_lr,
                warmup_steps=_warmup(schedule, plan),
                start_lr=start_lr,
            )


def _warmup(schedule: ScheduleConfig, plan: Plan) -> int:
    # A run shorter than the rise would never reach the cosine.
    return min(schedule.warmup_steps, plan.total_steps - 1)
