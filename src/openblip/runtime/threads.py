"""Threads: how those that share a product wait for each other, and work that they do ahead.

Work done ahead of its consumer by threads, in order.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

# Read once, when the library is loaded: GNU's, which PyTorch has on Linux, and LLVM's and Intel's.
_WITHOUT_SPINNING = {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
# A quarter of a millisecond where a round takes 50 ns. The shortest at which captions of one image
# are as fast as with threads that spin for long (a step of decoding takes 48 ms with none, 38 with
# 3,000 rounds, 33 with these, 31 with any more). LLVM counts whole milliseconds: not measured.
_BRIEFLY = {"GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "0"}
BRIEF_MICROSECONDS = 250
"""As long as threads spin briefly, for libraries that count time."""
# To hand over a part of a product takes a tenth of a millisecond where threads sleep, as long as
# the part of a smaller product itself: measured at 64 to 768 channels and 1 to 1,024 rows.
_WORTH_DIVIDING = 32_000_000
_NAMES = ("OMP_WAIT_POLICY", *_WITHOUT_SPINNING)


def spin_briefly() -> dict[str, str]:
    """Let OpenMP's threads sleep if they wait for long, in this process and those that it starts.

    By default a thread that is done with its part of a product spins until the others are done. On
    a core that another program wants, it takes the time of the one that it waits for; and one that
    sleeps at once has to be woken up for the next product, which takes longer than the small
    products of a text (`benchmarks/busy.py`). For this process it comes too late once PyTorch is
    loaded, and where the user has set one of the variables nothing is changed.

    Returns:
        The variables as they stand now, for processes that do not take over the environment.
    """
    if not _told():
        os.environ.update(_BRIEFLY)
    return _told()


def wait_without_spinning() -> dict[str, str]:
    """The same, but they sleep at once: for processes that share a machine with others of ours."""
    # What the command has said for itself is not what the user wants.
    if _told() in ({}, _BRIEFLY):
        os.environ.update(_WITHOUT_SPINNING)
    return _told()


def may_spin() -> bool:
    """Whether threads of other libraries may spin briefly, as those of products do.

    Not where somebody has said that threads sleep, as this process's or the user's environment.
    """
    told = _told()
    rounds = told.get("GOMP_SPINCOUNT", told.get("KMP_BLOCKTIME"))
    return rounds != "0" and told.get("OMP_WAIT_POLICY", "").lower() != "passive"


def _told() -> dict[str, str]:
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


Item = TypeVar("Item")
Result = TypeVar("Result")


def num_usable_cores() -> int:
    """Number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """Threads for reading and decoding when nobody says: one for each core, from 2 to 16.

    Of several processes that `torchrun` has started on a machine each takes its share.
    """
    sharing = os.environ.get("LOCAL_WORLD_SIZE", "1")
    processes = int(sharing) if sharing.isdecimal() else 1
    return min(max(num_usable_cores() // max(processes, 1), 2), 16)


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int, num_ahead: int
) -> Generator[Result, None, None]:
    """Yields `function(item)` for each item, in order, computed by threads ahead of the consumer.

    The threads live while the iterator does: they end when it is exhausted, closed or collected,
    or when something raises. What `function` raised reaches the consumer in the item's place.

    Args:
        function: called from `num_threads` threads.
        items: taken from the consumer's thread; may be endless.
        num_threads: at least 1.
        num_ahead: results that are held or under way at most; bounds the memory.
    """
    pending: deque[Future[Result]] = deque()
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="openblip-data")
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) >= num_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
