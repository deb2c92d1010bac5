"""The machine's peak, and the rates of a run."""

import time

import pytest
import torch

from openblip.model.kernels import has_onednn
from openblip.training.utilisation import Meter, measure_peak, product_rates


def test_the_peak_is_measured_once() -> None:
    first = measure_peak(torch.device("cpu"), torch.float32)
    # Two measurements would not give the same number.
    assert measure_peak(torch.device("cpu"), torch.float32) == first
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
    meter, before = Meter(peak_flops=1000.0), time.perf_counter()
    meter.restart(waited_seconds=5.0)
    began = time.perf_counter()
    meter.add(num_pairs=8, flops=10.0)
    meter.add(num_pairs=8, flops=10.0)
    time.sleep(0.05)
    least = time.perf_counter() - began
    rates = meter.read(waited_seconds=5.01)
    most = time.perf_counter() - before
    seconds = 16 / rates["pairs_per_second"]
    assert least <= seconds <= most
    assert rates["utilisation"] == pytest.approx(20 / seconds / 1000)
    assert rates["loader_share"] == pytest.approx(0.01 / seconds)
    assert meter.read(waited_seconds=5.01)["pairs_per_second"] == 0.0
