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
CALM_SECONDS = 2.0
CALM_WITHIN_SECONDS = 60.0


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


def wait_until_calm() -> float:
    """Wait a while for others to be done; return how busy they leave the machine.

    In percent of all processors.
    """
    deadline = time.monotonic() + CALM_WITHIN_SECONDS
    while True:
        busy_percent: float = psutil.cpu_percent(interval=CALM_SECONDS)
        if busy_percent < CALM_PERCENT or time.monotonic() > deadline:
            return busy_percent


def _cpu_model() -> str:
    text = Path("/proc/cpuinfo").read_text()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()


def _file_system(path: Path) -> str:
    mounts = psutil.disk_partitions(all=True)
    holding = [mount for mount in mounts if path.is_relative_to(mount.mountpoint)]
    longest = max(holding, key=lambda mount: len(mount.mountpoint), default=None)
    return longest.fstype if longest else "unknown"
