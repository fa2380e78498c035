"""A cgroup for what is measured: its processes, its CPU time, its end."""

from __future__ import annotations

import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path

STOP_SECONDS = 15.0
POLL_SECONDS = 0.005


def make() -> Path | None:
    """Make a cgroup v2 below the own one. Its CPU time needs no controller."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        memberships = Path("/proc/self/cgroup").read_text().splitlines()
        mount = next(line for line in mounts if " - cgroup2 " in line).split()[4]
        own = next(line[3:] for line in memberships if line.startswith("0::"))
        return Path(tempfile.mkdtemp(prefix="bench-", dir=mount + own))
    except (OSError, StopIteration):
        return None


def cpu_seconds(cgroup: Path) -> float:
    """Return the CPU time of all that is or was in it."""
    match = re.match(r"usage_usec (\d+)", (cgroup / "cpu.stat").read_text())
    return int(match[1]) / 1e6 if match else 0.0


def pids(cgroup: Path) -> list[int]:
    """Return the processes in it and below it."""
    found = []
    for path in cgroup.rglob("cgroup.procs"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def remove(cgroup: Path) -> None:
    """Kill everything in it and remove it."""
    with suppress(OSError):
        (cgroup / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + STOP_SECONDS
    while cgroup.exists() and time.monotonic() < deadline:
        for folder in sorted(cgroup.rglob("*/"), reverse=True):
            with suppress(OSError):
                folder.rmdir()
        with suppress(OSError):
            cgroup.rmdir()
        time.sleep(POLL_SECONDS)
