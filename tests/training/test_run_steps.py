"""How long a run is, and its learning rates."""

from collections.abc import Callable
from dataclasses import replace
from math import cos, pi

import pytest

from openblip.objectives.task import StepPosition
from openblip.training.optimiser import RunSteps, learning_rates
from openblip.training.recipe import Recipe, ScheduleConfig, TrainConfig

MakeRecipe = Callable[..., Recipe]


def rates(recipe: Recipe, schedule: ScheduleConfig, batches_per_epoch: float) -> list[float]:
    recipe = replace(recipe, schedule=schedule)
    steps = RunSteps.of(recipe.train, batches_per_epoch)
    rate = learning_rates(recipe, steps)
    return [rate(step) for step in range(steps.total_steps)]


def test_epochs_become_steps() -> None:
    assert RunSteps.of(TrainConfig(epochs=3), batches_per_epoch=10).total_steps == 30
    assert RunSteps.of(TrainConfig(epochs=3, accumulate=4), batches_per_epoch=10).total_steps == 7
    assert RunSteps.of(TrainConfig(epochs=3), batches_per_epoch=20 / 6).total_steps == 10
    assert RunSteps.of(TrainConfig(epochs=3, accumulate=4), batches_per_epoch=2).total_steps == 3
    assert RunSteps.of(TrainConfig(steps=7), batches_per_epoch=10).total_steps == 7


def test_an_epoch_is_a_pass_over_the_data() -> None:
    steps = RunSteps.of(TrainConfig(steps=9, accumulate=2), batches_per_epoch=10)
    assert steps.position(0) == StepPosition(0, 0.0)
    assert steps.position(4) == StepPosition(4, 0.8)
    assert steps.position(5).epoch == 1.0


def test_what_is_regular_also_happens_at_the_end() -> None:
    steps = RunSteps.of(TrainConfig(steps=7), batches_per_epoch=10)
    assert [step for step in range(1, 8) if steps.is_due(3, step)] == [3, 6, 7]


def test_pretraining_rises_and_then_decays_by_epoch(make_recipe: MakeRecipe) -> None:
    schedule = ScheduleConfig(
        kind="step_decay", min_lr=6e-4, warmup_steps=2, warmup_lr=0.0, decay_rate=0.7
    )
    seen = rates(make_recipe(steps=7), schedule, batches_per_epoch=3)
    assert seen == pytest.approx([0.0, 5e-4, 1e-3, 7e-4, 7e-4, 7e-4, 6e-4])


def test_fine_tuning_follows_a_cosine_over_epochs(make_recipe: MakeRecipe) -> None:
    schedule = ScheduleConfig(kind="epoch_cosine", min_lr=0.0)
    seen = rates(make_recipe(steps=None, epochs=2), schedule, batches_per_epoch=2)
    assert seen == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4])


def test_an_epoch_begins_with_the_first_step_that_none_of_the_last_takes_part_in(
    make_recipe: MakeRecipe,
) -> None:
    schedule = ScheduleConfig(kind="epoch_cosine", min_lr=0.0)
    seen = rates(make_recipe(steps=None, epochs=3), schedule, batches_per_epoch=10 / 3)
    by_epoch = [1e-3, 7.5e-4, 2.5e-4]
    assert seen == pytest.approx([by_epoch[epoch] for epoch in (0, 0, 0, 0, 1, 1, 1, 2, 2, 2)])


def test_a_short_run_rises_and_falls_at_every_step(make_recipe: MakeRecipe) -> None:
    schedule = ScheduleConfig(kind="warmup_cosine", min_lr=0.0, warmup_steps=2, warmup_lr=0.0)
    seen = rates(make_recipe(steps=6), schedule, batches_per_epoch=3)
    falling = [1e-3 * (1 + cos(pi * step / 4)) / 2 for step in range(4)]
    assert seen == pytest.approx([0.0, 5e-4, *falling])


def test_a_rise_longer_than_the_run_ends_with_it(make_recipe: MakeRecipe) -> None:
    schedule = ScheduleConfig(kind="warmup_cosine", warmup_steps=100, warmup_lr=0.0, min_lr=0.0)
    seen = rates(make_recipe(steps=3), schedule, batches_per_epoch=3)
    assert seen == pytest.approx([0.0, 5e-4, 1e-3])


def test_a_rate_below_the_start_of_the_rise_does_not_rise(
    make_recipe: MakeRecipe,
) -> None:
    schedule = ScheduleConfig(kind="step_decay", warmup_steps=2, warmup_lr=1.0)
    seen = rates(make_recipe(steps=2), schedule, batches_per_epoch=3)
    assert seen == pytest.approx([1e-3, 1e-3])
