"""How the threads that share a matrix product wait for each other."""

import os

# Read once, when the library is loaded: GNU's, which PyTorch has on Linux, and LLVM's and Intel's.
_WITHOUT_SPINNING = {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
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
