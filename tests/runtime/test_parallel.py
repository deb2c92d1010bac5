import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from openblip.runtime.threads import default_threads, ordered_map


def _num_threads() -> int:
    return sum(thread.name.startswith("openblip-data") for thread in threading.enumerate())


@pytest.mark.parametrize("num_threads", [1, 4])
def test_results_come_in_the_order_of_the_items(num_threads: int) -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.002 * max(5 - item, 0))
        return item * item

    results = ordered_map(slow_at_first, range(20), num_threads, num_ahead=6)
    assert list(results) == [item * item for item in range(20)]


def test_items_are_taken_only_a_little_ahead_of_the_consumer() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in itertools.count():
            taken.append(item)
            yield item

    results = ordered_map(lambda item: item, items(), num_threads=2, num_ahead=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(taken) == 7
    results.close()


def test_the_work_is_done_by_several_threads_at_once() -> None:
    barrier = threading.Barrier(3, timeout=10)
    assert len(list(ordered_map(lambda _: barrier.wait(), range(3), 3, 3))) == 3


def test_threads_end_when_the_iterator_is_closed_or_forgotten() -> None:
    results = ordered_map(lambda item: item, itertools.count(), 3, 3)
    next(results)
    assert _num_threads() > 0
    results.close()
    assert _num_threads() == 0
    results = ordered_map(lambda item: item, itertools.count(), 3, 3)
    next(results)
    del results
    assert _num_threads() == 0


def test_an_error_reaches_the_consumer_in_its_place_and_ends_the_threads() -> None:
    results = ordered_map(lambda item: 1 // (item - 2), itertools.count(), 3, 3)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert _num_threads() == 0


def test_nothing_starts_before_the_first_result_is_wanted() -> None:
    results = ordered_map(lambda item: item, range(3), 2, 2)
    assert _num_threads() == 0
    results.close()


def test_the_default_number_of_threads_is_sane() -> None:
    assert 2 <= default_threads() <= 16
