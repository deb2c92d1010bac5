"""How the threads that share a matrix product wait for each other."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

# Read once, when the library is loaded: GNU's, which PyTorch has on Linux, and LLVM's and Intel's.
_WITHOUT_SPINNING = {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
# To hand over a part of a product takes a tenth of a millisecond where threads sleep, as long as
# the part of a smaller product itself: measured at 64 to 768 channels and 1 to 1,024 rows.
_WORTH_DIVIDING = 32_000_000
_NAMES = ("OMP_WAIT_POLICY", *_WITHOUT_SPINNING)


def wait_without_spinning() -> dict[str, str]:
    """Let OpenMP's threads sleep while they wait, in this process and those that it starts.

    By default a thread that is done with its part of a product spins until the others are done. On
    a core that another program wants, it takes the time of the one that it waits for
    (`benchmarks/busy.py`). For this process it comes too late once PyTorch is loaded, and where
    the user has set one of the variables nothing is changed.

    Returns:
        The variables as they stand now, for processes that do not take over the environment.
    """
    if not any(name in os.environ for name in _NAMES):
        os.environ.update(_WITHOUT_SPINNING)
    return {name: os.environ[name] for name in _NAMES if name in os.environ}


def threads_for(multiply_adds: int) -> AbstractContextManager[None]:
    """One thread while the largest products of a work are so small, else as many as before.

    Args:
        multiply_adds: of the largest product, (rows, inputs) with (inputs, outputs).
    """
    return one_thread() if multiply_adds < _WORTH_DIVIDING else nullcontext()


@contextmanager
def one_thread() -> Iterator[None]:
    """Divide no product of PyTorch on a CPU."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
