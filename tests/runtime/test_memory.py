"""Memory that is freed is kept where the system's allocator can be told so."""

import subprocess
import sys

import pytest

from openblip.runtime.memory import keep_freed_memory

# In two processes with one import.
FAULTS = """
import os, resource, torch
from openblip.runtime.memory import keep_freed_memory, return_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(1 << 24)  # 64 MiB, 16384 pages of 4 KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keeps = os.fork() == 0
if keeps:
    assert keep_freed_memory()
else:
    assert os.wait()[1] == 0
torch.zeros(1 << 25)  # the first one larger: glibc < 2.38 puts no aligned block where its like was
again = faults()
return_freed_memory()
print(again, faults(), faults(), flush=True)
"""


def pages_touched_anew() -> list[list[int]]:
    """In an allocation after others, and in two after everything was given back.

    First where freed memory is kept, then where it is not.
    """
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True
    )
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="told to glibc")
def test_what_is_freed_is_used_again_until_it_shall_be_given_back() -> None:
    if not keep_freed_memory():
        pytest.skip("the allocator is not glibc's")
    (later, *after_return), (plain, *_) = pages_touched_anew()
    # Transparent huge pages would make the numbers small, not equal.
    assert later < plain / 10
    # The second one finds nothing that the first has kept.
    assert later < min(after_return) / 10


# Pieces that are too small to be mapped one by one, with one behind them that stays.
TRIMMED = """
import re
from openblip.runtime.memory import trim_memory

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000

pieces = [bytearray(50_000) for _ in range(2000)]
last = bytearray(50_000)
full = held()
pieces.clear()
before = held()
trim_memory()
print(full - before, full - held())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="told to glibc")
def test_what_is_free_goes_back_when_it_is_asked_for() -> None:
    if not keep_freed_memory():
        pytest.skip("the allocator is not glibc's")
    done = subprocess.run(
        [sys.executable, "-c", TRIMMED], check=True, capture_output=True, text=True
    )
    by_itself, trimmed = (float(word) for word in done.stdout.split())
    # 100 MB were free, below a block that is not.
    assert by_itself < 50 < 80 < trimmed


# Blocks of 8 MB with small ones between them that stay, where glibc keeps the former on its heap.
BETWEEN = """
import ctypes, re
from openblip.runtime.memory import keep_freed_memory, large_blocks_returned

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000

def read():
    large = []
    for _ in range(25):
        large.append(libc.malloc(8_000_000))
        ctypes.memset(large[-1], 1, 8_000_000)
        ctypes.memset(libc.malloc(1_000), 1, 1_000)
    before = held()
    for block in large:
        libc.free(block)
    return before - held()

libc.free(libc.malloc(30_000_000))  # from here on blocks of up to 30 MB come from the heap
with large_blocks_returned():
    with large_blocks_returned():
        pass
    inside = read()
outside = read()

# A training that began before, or meanwhile, keeps its tensors of 60 MB.
with large_blocks_returned():
    keep_freed_memory()
tensor = libc.malloc(60_000_000)
ctypes.memset(tensor, 1, 60_000_000)
full = held()
libc.free(tensor)
print(inside, outside, full - held())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="told to glibc")
def test_large_blocks_go_back_although_small_ones_lie_between_them() -> None:
    if not keep_freed_memory():
        pytest.skip("the allocator is not glibc's")
    done = subprocess.run(
        [sys.executable, "-c", BETWEEN], check=True, capture_output=True, text=True
    )
    inside, outside, of_training = map(float, done.stdout.split())
    # Of 200 MB, in a block that holds another one, and behind it.
    assert inside > 190
    assert outside < 20
    assert of_training < 1
