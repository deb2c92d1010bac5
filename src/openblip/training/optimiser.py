"""AdamW, how many steps a run has, and the learning rate of each, as functions of the step."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from openblip.objectives.task import StepPosition
from openblip.training.recipe import OptimiserConfig, Recipe, ScheduleConfig, TrainConfig

# Devices that have a kernel which updates all parameters at once.
_FUSED_ON = ("cpu", "cuda", "mps")
# A quotient that falls short of a whole number by rounding alone counts as whole.
_ROUNDING = 1e-6


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that receive gradients, each once, in a fixed order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def build_optimiser(
    parameters: Iterable[nn.Parameter], config: OptimiserConfig
) -> torch.optim.AdamW:
    """AdamW of the parameters (Loshchilov and Hutter, 2019; BLIP, section 4.1).

    Args:
        parameters: in the same order whenever a run is resumed; all on one device.
        config: with `decay_norms_and_biases=False` one-dimensional parameters (norms and biases)
            do not decay; the temperature, which has no dimension, does.
    """
    every = list(parameters)

    def decay_of(parameter: nn.Parameter) -> float:
        exempt = parameter.ndim == 1 and not config.decay_norms_and_biases
        return 0.0 if exempt else config.weight_decay

    # The kernel takes parameters that are divided among processes and whole ones, but not at once.
    keys = [(type(parameter), decay_of(parameter)) for parameter in every]
    groups = [
        {
            "params": [p for p, own in zip(every, keys, strict=True) if own == key],
            "weight_decay": key[1],
        }
        for key in dict.fromkeys(keys)
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=all(p.device.type in _FUSED_ON for p in every),
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of the optimiser the learning rate `lr`."""
    for group in optimiser.param_groups:
        group["lr"] = lr


def step_decay_lr(epoch: int, peak_lr: float, min_lr: float, decay_rate: float) -> float:
    """Returns `peak_lr * decay_rate ** epoch`, but at least `min_lr` (BLIP's pre-training)."""
    return max(min_lr, peak_lr * decay_rate**epoch)


def warmup_lr(step: int, warmup_steps: int, start_lr: float, peak_lr: float) -> float:
    """Returns the rate on the line from `start_lr` to `peak_lr`, which it keeps afterwards.

    Args:
        step: counted from 0, where the rate is `start_lr`.
        warmup_steps: step at which `peak_lr` is reached; 0 for no rise.
        start_lr: at most `peak_lr`.
        peak_lr: the rate after the rise.
    """
    if warmup_steps == 0:
        return peak_lr
    return min(peak_lr, start_lr + (peak_lr - start_lr) * step / warmup_steps)


def cosine_lr(position: float, length: float, peak_lr: float, min_lr: float) -> float:
    """Returns the rate on half a cosine, `peak_lr` at position 0 and `min_lr` at `length`.

    Position and length are epochs in BLIP's fine-tuning; any unit will do.
    """
    return (peak_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * position / length)) + min_lr


def pretraining_lr(
    step: int,
    steps_per_epoch: float,
    *,
    peak_lr: float,
    min_lr: float,
    decay_rate: float,
    warmup_steps: int,
    start_lr: float,
) -> float:
    """Returns the rate of BLIP's pre-training: a rise in the first epoch, then decay by epoch.

    As in the original, the rise ends with the first epoch even if `warmup_steps` is longer, and
    the second epoch starts at `peak_lr * decay_rate`.

    Args:
        step: optimiser steps done, over all epochs.
        steps_per_epoch: optimiser steps in an epoch; a step may span two.
        peak_lr: highest rate.
        min_lr: lowest rate after the rise.
        decay_rate: factor per epoch.
        warmup_steps: length of the rise.
        start_lr: rate at step 0.
    """
    epoch = _epoch(step, steps_per_epoch)
    if epoch == 0:
        return warmup_lr(step, warmup_steps, start_lr, peak_lr)
    return step_decay_lr(epoch, peak_lr, min_lr, decay_rate)


def finetuning_lr(
    step: int, steps_per_epoch: float, num_epochs: int, *, peak_lr: float, min_lr: float
) -> float:
    """Returns the rate of BLIP's fine-tuning: a cosine over the epochs, constant within each.

    `min_lr` would be reached in the epoch after the last one.
    """
    return cosine_lr(_epoch(step, steps_per_epoch), num_epochs, peak_lr, min_lr)


def warmup_cosine_lr(
    step: int,
    num_steps: int,
    *,
    peak_lr: float,
    min_lr: float,
    warmup_steps: int,
    start_lr: float,
) -> float:
    """Returns the rate of a rise over `warmup_steps`, then a cosine that changes at every step.

    Not in BLIP: for short runs, where an epoch is too coarse a unit. `min_lr` is reached at
    `num_steps`, one step after the last.
    """
    if step < warmup_steps:
        return warmup_lr(step, warmup_steps, start_lr, peak_lr)
    return cosine_lr(step - warmup_steps, max(1, num_steps - warmup_steps), peak_lr, min_lr)


def _epoch(step: int, steps_per_epoch: float) -> int:
    return math.floor(step / steps_per_epoch + _ROUNDING)


@dataclass(frozen=True, kw_only=True)
class RunSteps:
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
    def of(config: TrainConfig, batches_per_epoch: float) -> "RunSteps":
        """The steps of a run over data of that many batches."""
        steps = config.steps
        if steps is None:
            assert config.epochs is not None, "a recipe gives steps or epochs"
            steps = math.floor(config.epochs * batches_per_epoch / config.accumulate + _ROUNDING)
            # An epoch has a step at least, also where one step takes several epochs' data.
            steps = max(steps, config.epochs)
        return RunSteps(
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


def learning_rates(recipe: Recipe, steps: RunSteps) -> Callable[[int], float]:
    """The learning rate of a step, given the number of steps before it."""
    schedule, peak_lr = recipe.schedule, recipe.optimiser.lr
    # From above the peak a rise would be a fall.
    start_lr = min(schedule.warmup_lr, peak_lr)
    match schedule.kind:
        case "step_decay":
            return lambda step: pretraining_lr(
                step,
                steps.steps_per_epoch,
                peak_lr=peak_lr,
                min_lr=schedule.min_lr,
                decay_rate=schedule.decay_rate,
                warmup_steps=schedule.warmup_steps,
                start_lr=start_lr,
            )
        case "epoch_cosine":
            num_epochs = math.ceil(steps.total_steps / steps.steps_per_epoch - _ROUNDING)
            return lambda step: finetuning_lr(
                step, steps.steps_per_epoch, num_epochs, peak_lr=peak_lr, min_lr=schedule.min_lr
            )
        case "warmup_cosine":
            return lambda step: warmup_cosine_lr(
                step,
                steps.total_steps,
                peak_lr=peak_lr,
                min_lr=schedule.min_lr,
                warmup_steps=_warmup(schedule, steps),
                start_lr=start_lr,
            )


def _warmup(schedule: ScheduleConfig, steps: RunSteps) -> int:
    # A run shorter than the rise would never reach the cosine.
    return min(schedule.warmup_steps, steps.total_steps - 1)
