"""Large blocks are the kernel's again as soon as they are free."""

import ctypes
import subprocess
import sys

import pytest

# Every second of 40 blocks is freed, after one has been before: 10 MB of holes.
PROGRAM = """
from job_runner_worker import memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

memory.give_back_at_once()
bytearray(b"x" * 1_000_000).clear()
blocks = [bytearray(b"x" * 500_000) for _ in range(40)]
before = resident()
del blocks[::2]
print(before - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_what_is_freed_between_what_is_kept_is_given_back():
    given_back = int(subprocess.check_output([sys.executable, "-c", PROGRAM]))

    assert given_back >= 9_000_000
