"""Facts of the machine that a figure depends on; none that names it."""

from __future__ import annotations

import os
import platform
import re
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import zmq

CALM_PERCENT = 5.0
SAMPLE_SECONDS = 0.5
LOOPS = 500_000


def facts(spool_parent: Path) -> dict[str, Any]:
    """Return what results.json says of the machine."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_model": _cpu_model(),
        "memory_mib": psutil.virtual_memory().total // 2**20,
        "kernel": f"{platform.system()} {platform.release()}",
        "sh": Path("/bin/sh").resolve().name,
        "spool_file_system": _file_system(spool_parent),
        "python": platform.python_version(),
        "gevent": metadata.version("gevent"),
        "pyzmq": metadata.version("pyzmq"),
        "libzmq": zmq.zmq_version(),
    }


def conditions(patience_seconds: float) -> dict[str, float]:
    """Wait a while for others to be done; return how it is then.

    ``busy_percent`` is what they take of all processors, ``loop_ms`` what a fixed
    piece of Python takes: a machine that shares its hardware has better days.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        busy_percent = psutil.cpu_percent(interval=SAMPLE_SECONDS)
        if busy_percent < CALM_PERCENT or time.monotonic() > deadline:
            break
    return {"busy_percent": busy_percent, "loop_ms": round(_loop_ms(), 1)}


def _loop_ms() -> float:
    began = time.perf_counter()
    total = 0
    for number in range(LOOPS):
        total += number & 3
    return (time.perf_counter() - began) * 1000


def _cpu_model() -> str:
    text = Path("/proc/cpuinfo").read_text()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()


def _file_system(path: Path) -> str:
    mounts = psutil.disk_partitions(all=True)
    holding = [mount for mount in mounts if path.is_relative_to(mount.mountpoint)]
    longest = max(holding, key=lambda mount: len(mount.mountpoint), default=None)
    if longest is None:
        return "unknown"
    if longest.fstype == "ext4" and not _has_journal(longest.device):
        return "ext4 without a journal"
    return longest.fstype


def _has_journal(device: str) -> bool:
    """Return whether the kernel keeps a journal for it.

    Without one, ext4 takes no inode that was freed in the last minutes: for each new
    file it looks through all of them, which is much where runs come and go.
    """
    name = Path(device).resolve().name
    return any(Path("/proc/fs/jbd2").glob(f"{name}-*"))
