"""How much of the machine a run uses: its arithmetic rate over what the machine can do."""

import time
from functools import cache

import torch

_SECONDS = 0.3


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large matrix products, on this machine now.

    Measured once per process, device, dtype and number of threads, for about 0.3 s.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    return _measured_peak(str(device), dtype, threads)


@cache
def _measured_peak(device: str, dtype: torch.dtype, threads: int) -> float:
    size = 1024 if torch.device(device).type == "cpu" else 8192
    left, right = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    flops = 2.0 * size**3
    best = 0.0
    # The first product pays for allocation and the choice of a kernel.
    _timed_product(left, right)
    end = time.perf_counter() + _SECONDS
    while best == 0.0 or time.perf_counter() < end:
        best = max(best, flops / _timed_product(left, right))
    return best


def _timed_product(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    product = left @ right
    # Reading one element waits for the device.
    product[0, 0].item()
    return time.perf_counter() - start


class Meter:
    """Adds up what some steps did, and tells rates since it was last asked."""

    def __init__(self, peak_flops: float) -> None:
        self._peak = peak_flops
        self._waited = 0.0
        self.restart()

    def restart(self, waited_seconds: float = 0.0) -> None:
        """Begin to measure now; `waited_seconds` is the loader's count so far."""
        self._pairs, self._flops = 0, 0.0
        self._waited = waited_seconds
        self._began = time.perf_counter()

    def add(self, num_pairs: int, flops: float) -> None:
        """Count pairs of the run, and operations of this process."""
        self._pairs += num_pairs
        self._flops += flops

    def read(self, waited_seconds: float) -> dict[str, float]:
        """Rates since the last reading, which starts the next.

        Args:
            waited_seconds: how long the loader has let its consumer wait so far.

        Returns:
            `pairs_per_second` of the run; `utilisation`, arithmetic of this process over that of
            the peak; and `loader_share`, the part of the time that it waited for data.
        """
        seconds = max(time.perf_counter() - self._began, 1e-9)
        values = {
            "pairs_per_second": self._pairs / seconds,
            "utilisation": self._flops / seconds / self._peak,
            "loader_share": (waited_seconds - self._waited) / seconds,
        }
        self.restart(waited_seconds)
        return values
