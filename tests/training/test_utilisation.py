"""The machine's peak, and the rates of a run."""

import time

import pytest
import torch

from openblip.model.linear import has_onednn
from openblip.training.utilisation import Meter, measure_peak, product_rates


def test_the_peak_is_measured_once_and_soon() -> None:
    first = measure_peak(torch.device("cpu"), torch.float32)
    began = time.perf_counter()
    assert measure_peak(torch.device("cpu"), torch.float32) == first
    assert time.perf_counter() - began < 0.1
    # Any machine that runs this does more than a product of 100 x 100 matrices in a second.
    assert first > 2e6


def test_the_peak_is_that_of_the_fastest_library() -> None:
    """A rate of one library alone would flatter what another does."""
    device = torch.device("cpu")
    rates = product_rates(device, torch.float32, size=64, seconds=0.01)
    assert set(rates) == ({"torch", "oneDNN"} if has_onednn() else {"torch"})
    assert set(product_rates(device, torch.float64, size=64, seconds=0.01)) == {"torch"}
    # A busy machine may slow either down between the two measurements.
    assert measure_peak(device, torch.float32) > 0.2 * max(
        product_rates(device, torch.float32, size=1024, seconds=0.05).values()
    )


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
