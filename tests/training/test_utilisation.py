"""The machine's peak, and the rates of a run."""

import time

import pytest
import torch

from openblip.training.utilisation import Meter, measure_peak


def test_the_peak_is_measured_once_and_soon() -> None:
    first = measure_peak(torch.device("cpu"), torch.float32)
    began = time.perf_counter()
    assert measure_peak(torch.device("cpu"), torch.float32) == first
    assert time.perf_counter() - began < 0.1
    # Any machine that runs this does more than a product of 100 x 100 matrices in a second.
    assert first > 2e6


def test_rates_are_those_since_the_last_reading() -> None:
    meter = Meter(peak_flops=1000.0)
    meter.restart(waited_seconds=5.0)
    began = time.perf_counter()
    meter.add(num_pairs=8, flops=10.0)
    meter.add(num_pairs=8, flops=10.0)
    time.sleep(0.05)
    rates = meter.read(waited_seconds=5.01)
    seconds = time.perf_counter() - began
    assert rates == pytest.approx(
        {
            "pairs_per_second": 16 / seconds,
            "utilisation": 20 / seconds / 1000,
            "loader_share": 0.01 / seconds,
        },
        rel=0.05,
    )
    assert meter.read(waited_seconds=5.01)["pairs_per_second"] == 0.0
