"""What the kernel counts of a process: CPU time, memory, context switches."""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

_KIB_PER_MIB = 1024
_CPU_CLOCK = 2


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process with all its threads, dead ones too.

    The process's CPU clock, as clock_getcpuclockid(3) names it: the sum of utime and
    stime in /proc/PID/stat, in nanoseconds instead of ticks of 10 ms.
    """
    return time.clock_gettime_ns((~pid << 3) | _CPU_CLOCK) / 1e9


def resident_mib(pid: int) -> float:
    """Return the resident memory."""
    return _status_number(Path(f"/proc/{pid}/status"), "VmRSS") / _KIB_PER_MIB


def peak_resident_mib(pid: int) -> float:
    """Return the most resident memory there was since `forget_peak`."""
    return _status_number(Path(f"/proc/{pid}/status"), "VmHWM") / _KIB_PER_MIB


def forget_peak(pid: int) -> None:
    """Let the peak of the resident memory begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def voluntary_switches(pid: int) -> Counter[int]:
    """Return how often each thread of a process has gone to sleep, by its id.

    A thread takes its number with it when it ends.
    """
    found: Counter[int] = Counter()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):
            number = _status_number(task / "status", "voluntary_ctxt_switches")
            found[int(task.name)] = number
    return found


def command_name(pid: int) -> str:
    """Return the name of what a process executes, empty where it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _status_number(path: Path, name: str) -> int:
    match = re.search(rf"^{name}:\s*(\d+)", path.read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"no {name} in {path}")
    return int(match[1])
