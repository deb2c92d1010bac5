"""Learning rates by closed form."""

import math

import pytest

from openblip.training.optimiser import (
    cosine_lr,
    finetuning_lr,
    pretraining_lr,
    step_decay_lr,
    warmup_cosine_lr,
    warmup_lr,
)


def test_step_decay_multiplies_per_epoch_and_has_a_floor():
    rates = [step_decay_lr(epoch, 1.0, 0.3, 0.5) for epoch in range(4)]
    assert rates == [1.0, 0.5, 0.3, 0.3]


def test_warmup_is_a_line_and_then_constant():
    rates = [warmup_lr(step, 4, 1.0, 5.0) for step in range(7)]
    assert rates == [1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0]


def test_no_warmup_starts_at_the_peak():
    assert warmup_lr(0, 0, 1.0, 5.0) == 5.0


def test_cosine_falls_from_peak_to_minimum():
    assert cosine_lr(0, 8, 3.0, 1.0) == 3.0
    assert cosine_lr(4, 8, 3.0, 1.0) == pytest.approx(2.0)
    assert cosine_lr(2, 8, 3.0, 1.0) == pytest.approx(2.0 + math.sqrt(0.5))
    assert cosine_lr(8, 8, 3.0, 1.0) == pytest.approx(1.0)


class TestPretraining:
    def rate(self, step, warmup_steps):
        return pretraining_lr(
            step,
            10,
            peak_lr=1.0,
            min_lr=0.6,
            decay_rate=0.8,
            warmup_steps=warmup_steps,
            start_lr=0.0,
        )

    def test_rise_plateau_then_steps_by_epoch(self):
        assert [self.rate(step, 4) for step in (0, 2, 4, 9)] == [0.0, 0.5, 1.0, 1.0]
        assert [self.rate(step, 4) for step in (10, 19, 20, 99)] == pytest.approx(
            [0.8, 0.8, 0.64, 0.6]
        )

    def test_the_rise_ends_with_the_first_epoch(self):
        assert self.rate(9, 100) == pytest.approx(0.09)
        assert self.rate(10, 100) == pytest.approx(0.8)


def test_finetuning_is_a_cosine_over_epochs():
    rates = [finetuning_lr(step, 2, 4, peak_lr=2.0, min_lr=0.0) for step in range(8)]
    assert rates[::2] == rates[1::2]
    assert rates[::2] == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)])


class TestWarmupCosine:
    def rate(self, step, num_steps=12, warmup_steps=4):
        return warmup_cosine_lr(
            step, num_steps, peak_lr=1.0, min_lr=0.2, warmup_steps=warmup_steps, start_lr=0.0
        )

    def test_rise_then_fall_at_every_step(self):
        rates = [self.rate(step) for step in range(13)]
        assert rates[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert rates[4:] == sorted(set(rates[4:]), reverse=True)
        assert rates[8] == pytest.approx(0.6)
        assert rates[12] == pytest.approx(0.2)

    def test_a_run_shorter_than_the_rise_only_rises(self):
        assert [self.rate(step, 2, 4) for step in range(3)] == [0.0, 0.25, 0.5]
