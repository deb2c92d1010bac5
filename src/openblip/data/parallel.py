"""Work done ahead of its consumer by threads, in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_usable_cores() -> int:
    """Number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """Threads for reading and decoding when nobody says: one for each core, from 2 to 16."""
    return min(max(num_usable_cores(), 2), 16)


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
