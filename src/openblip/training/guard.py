"""Losses that jump, and the way back from one that is not finite.

A step that is left out is passed over: it counts, its batch is not learnt from, and nothing else
changes. So (seed, step) stays the whole position of a run: batches, epochs and learning rates of
all other steps are those of a run without gaps, and a resumed run leaves out the same steps.

PaLM (Chowdhery et al. 2022, section 5.1) went back about 100 steps and left out the batches before
and during a spike in the same way, by hand.
"""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from statistics import median

import torch

from openblip.objectives.task import AnyTask
from openblip.runtime.errors import CheckpointError, TrainingError
from openblip.training.checkpoint import CheckpointStore, RunState, read_checkpoint
from openblip.training.parallelism import Processes, local_part
from openblip.training.recipe import StabilityConfig

Range = tuple[int, int]
# Standard deviations of a normal distribution in one median absolute deviation.
_NORMAL = 1.4826
# Losses that differ by less than this share of them are taken for equal.
_LEAST_SPREAD = 0.001
_LEAST_LOSSES = 16

LARGEST_WEIGHT = 1e6
"""Weights of networks that have learnt something are a few hundred at most."""
LARGEST_LOSS = 1e4
"""Nats. Guessing costs some 10 a token; a wrong answer of many costs hundreds."""


def note_loss(recent: list[float], loss: float, config: StabilityConfig) -> float | None:
    """Deviations of a loss that begins a spike; None of one that does not.

    Median and median absolute deviation (Hampel's identifier) are not moved by the spike itself.
    Of several steps in a row that are too high, the first one tells.

    Args:
        recent: losses of the steps before; this one is added, and the oldest leaves.
        loss: of this step, nats.
        config: window and limit.
    """
    before = list(recent)
    recent.append(loss)
    del recent[: -config.spike_window]
    if config.spike_deviations is None or len(before) < _LEAST_LOSSES:
        return None
    middle = median(before)
    spread = _NORMAL * median(abs(value - middle) for value in before)
    spread = max(spread, _LEAST_SPREAD * abs(middle), 1e-12)
    limit = middle + config.spike_deviations * spread
    return (loss - middle) / spread if loss > limit >= before[-1] else None


def is_skipped(skipped: Sequence[Range], step: int) -> bool:
    """Whether a step is in one of the (first, end) ranges."""
    return any(first <= step < end for first, end in skipped)


def failed_window(skipped: Sequence[Range], step: int, num_steps: int) -> Range:
    """The (first, end) range that leaves out a failed step and what led to it.

    Args:
        skipped: ranges that are left out already.
        step: the one that failed.
        num_steps: length of the range. If the run had left out steps shortly before (within as
            many steps), they were too few: then twice as many as it had left out.
    """
    near = [r for r in skipped if step - num_steps <= r[1] <= step]
    if near:
        first, end = near[-1]
        num_steps = max(num_steps, 2 * (end - first))
    return max(0, step + 1 - num_steps), step + 1


def joined(ranges: Sequence[Range]) -> list[Range]:
    """The same steps in sorted ranges that neither overlap nor touch."""
    result: list[Range] = []
    for first, end in sorted((first, end) for first, end in ranges):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((first, end))
    return result


def rewind(
    store: CheckpointStore,
    task: AnyTask,
    optimiser: torch.optim.Optimizer,
    processes: Processes,
    state: RunState,
    failed_step: int,
    config: StabilityConfig,
) -> RunState:
    """Bring a run back to a good checkpoint before the window of a failed step.

    Good is one that can be read and holds finite numbers only. Where none stands before the
    window, the earliest good one within it is taken, and the window begins there.

    Args:
        store: where the checkpoints are.
        task: gets the checkpoint's weights and queues.
        optimiser: gets its moments.
        processes: they judge together.
        state: of the run that failed.
        failed_step: steps that it had done.
        config: length of the window.

    Returns:
        where the run stands again; it has not been saved.

    Raises:
        TrainingError: no checkpoint is good.
    """
    first, end = failed_window(state.skipped, failed_step, config.skip_steps)
    # One process looks, so that all see the same.
    found: dict[int, Path] = processes.gather_objects(store.by_step())[0]
    checkpoints = {step: path for step, path in found.items() if step <= failed_step}
    before = sorted((step for step in checkpoints if step <= first), reverse=True)
    for step in [*before, *(step for step in checkpoints if step > first)]:
        try:
            restored = read_checkpoint(checkpoints[step], task, optimiser)
        except CheckpointError:
            continue
        if not (_all_finite(task, optimiser, processes) and weights_are_sane(task, processes)):
            continue
        restored.skipped = joined([*state.skipped, (max(first, step), end)])
        restored.rewinds = state.rewinds + 1
        if restored.best_step is not None and restored.best_step not in checkpoints:
            # It made room for a better one, which lies in the part that is done again.
            restored.best_loss, restored.best_step = float("inf"), None
        return restored
    raise TrainingError(
        f"step {failed_step} is not finite, and neither is any checkpoint in {store.folder}: start "
        "anew in another run directory, with a lower optimiser.lr"
    )


def weights_are_sane(task: AnyTask, processes: Processes) -> bool:
    """Whether all weights are numbers that a training can come to; the same on every process.

    A network whose outputs are normalised has a small loss also with weights of 1e30.
    """
    parts = [local_part(weights.detach()) for weights in task.student.parameters()]
    # A comparison with NaN is False.
    own = all(bool(part.abs().max() <= LARGEST_WEIGHT) for part in parts if part.numel())
    return _on_all(own, processes)


def loss_is_sane(loss: float) -> bool:
    """Whether a loss is a number that a training can come to."""
    return isfinite(loss) and loss <= LARGEST_LOSS


def _all_finite(task: AnyTask, optimiser: torch.optim.Optimizer, processes: Processes) -> bool:
    moments = [value for values in optimiser.state.values() for value in values.values()]
    values = (*task.state_dict().values(), *moments)
    tensors = [local_part(value) for value in values if torch.is_tensor(value)]
    own = all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())
    return _on_all(own, processes)


def _on_all(own: bool, processes: Processes) -> bool:
    flag = torch.tensor(0.0 if own else float("nan"), device=processes.device)
    return isfinite(processes.mean(flag).item())
