"""How much of the machine a run uses: its arithmetic rate over what the machine can do."""

import time
from collections.abc import Callable
from functools import cache

import torch

from openblip.model.kernels import has_onednn, onednn_linear


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large matrix products, on this machine now.

    Of the library that is fastest. Measured once per process, device, dtype and number of threads,
    for 0.15 s per library.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    return _measured_peak(str(device), dtype, threads)


@cache
def _measured_peak(device: str, dtype: torch.dtype, threads: int) -> float:
    size = 1024 if torch.device(device).type == "cpu" else 8192
    return max(product_rates(torch.device(device), dtype, size, seconds=0.15).values())


def product_rates(
    device: torch.device, dtype: torch.dtype, size: int, seconds: float
) -> dict[str, float]:
    """Floating-point operations per second of square matrix products, on this machine now.

    Args:
        device: on which.
        dtype: of the matrices.
        size: rows, and columns, of each.
        seconds: for which each library is measured; its best product counts.

    Returns:
        Of each library that `model.linear` chooses from: "torch", and "oneDNN" where it is.
    """
    left, right = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    products: dict[str, Callable[[], torch.Tensor]] = {"torch": lambda: left @ right}
    if device.type == "cpu" and dtype == torch.float32 and has_onednn():
        products["oneDNN"] = lambda: onednn_linear(left, right)
    return {name: 2.0 * size**3 / _least(product, seconds) for name, product in products.items()}


def _least(product: Callable[[], torch.Tensor], seconds: float) -> float:
    """Seconds of the fastest of the products that fit into so many seconds."""
    # The first product pays for allocation and the choice of a kernel.
    _timed(product)
    end = time.perf_counter() + seconds
    least = _timed(product)
    while time.perf_counter() < end:
        least = min(least, _timed(product))
    return least


def _timed(product: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    # Reading one element waits for the device.
    product()[0, 0].item()
    return time.perf_counter() - start


def added(total: float | None, more: float | None) -> float | None:
    """The sum of operations; None once a part of them is not known."""
    return None if total is None or more is None else total + more


class Meter:
    """Adds up what some steps did, and tells rates since it was last asked."""

    def __init__(self, peak_flops: float | None) -> None:
        self._peak = peak_flops
        self._waited = 0.0
        self.restart()

    def restart(self, waited_seconds: float = 0.0) -> None:
        """Begin to measure now; `waited_seconds` is the loader's count so far."""
        self._pairs = 0
        self._flops: float | None = 0.0
        self._waited = waited_seconds
        self._began = time.perf_counter()

    def add(self, num_pairs: int, flops: float | None) -> None:
        """Count pairs of the run, and operations of this process; None where nobody knows them."""
        self._pairs += num_pairs
        self._flops = added(self._flops, flops)

    def read(self, waited_seconds: float) -> dict[str, float]:
        """Rates since the last reading, which starts the next.

        Args:
            waited_seconds: how long the loader has let its consumer wait so far.

        Returns:
            `pairs_per_second` of the run; `utilisation`, arithmetic of this process over that of
            the peak, if both are known; and `loader_share`, the part of the time that it waited for
            data.
        """
        seconds = max(time.perf_counter() - self._began, 1e-9)
        values = {"pairs_per_second": self._pairs / seconds}
        if self._flops is not None and self._peak is not None:
            values["utilisation"] = self._flops / seconds / self._peak
        values["loader_share"] = (waited_seconds - self._waited) / seconds
        self.restart(waited_seconds)
        return values
