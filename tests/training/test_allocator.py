"""Memory that is freed is kept where the system's allocator can be told so."""

import subprocess
import sys

import pytest

from openblip.training.loop import keep_freed_memory

FAULTS = """
import resource, torch
from openblip.training.loop import keep_freed_memory, return_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(1 << 24)  # 64 MiB, 16384 pages of 4 KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if {keeps}:
    assert keep_freed_memory()
torch.zeros(1 << 25)  # the first one larger: glibc < 2.38 puts no aligned block where its like was
again = faults()
return_freed_memory()
print(again, faults(), faults())
"""


def pages_touched_anew(keeps: bool) -> list[int]:
    """In an allocation after others, and in two after everything was given back."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(keeps=keeps)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="told to glibc")
def test_what_is_freed_is_used_again_until_it_shall_be_given_back() -> None:
    if not keep_freed_memory():
        pytest.skip("the allocator is not glibc's")
    later, *after_return = pages_touched_anew(keeps=True)
    plain, *_ = pages_touched_anew(keeps=False)
    # Transparent huge pages would make the numbers small, not equal.
    assert later < plain / 10
    # The second one finds nothing that the first has kept.
    assert later < min(after_return) / 10
