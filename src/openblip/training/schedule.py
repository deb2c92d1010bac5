"""Learning rates as functions of the step; nothing here holds state."""

import math


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
    # A quotient that falls short of a whole number by rounding alone counts as whole.
    return math.floor(step / steps_per_epoch + 1e-6)
