"""How a run is, in a word and a sign; and how long something took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

KILLED = "killed"
"""Every reason for the end of a run that was killed begins so."""


@dataclass(frozen=True, slots=True)
class Look:
    """A state: ``name`` is also the name of its sign and its colour."""

    name: str
    words: str

    def __str__(self) -> str:
        return self.words


SCHEDULED = Look("scheduled", "scheduled")
WAITING = Look("waiting", "waiting")
QUEUED = Look("queued", "queued")
RUNNING = Look("running", "running")
SUCCEEDED = Look("succeeded", "succeeded")
FAILED = Look("failed", "failed")
KILLED_LOOK = Look("killed", "killed")


def look_of(run: Any, now: datetime) -> Look:
    """Return how a run is.

    ``scheduled`` is for later, ``waiting`` for a worker, ``queued`` at a worker.
    """
    if run.return_dts is not None:
        if run.return_success:
            return SUCCEEDED
        return KILLED_LOOK if run.reason.startswith(KILLED) else FAILED
    if run.start_dts is not None:
        return RUNNING
    if run.enqueue_dts is not None:
        return QUEUED
    return SCHEDULED if run.schedule_dts > now else WAITING


def duration_of(run: Any, now: datetime) -> timedelta | None:
    """Return how long a run took, or has been running; None before its start."""
    if run.start_dts is None:
        return None
    return max((run.return_dts or now) - run.start_dts, timedelta())


def in_words(seconds: float) -> str:
    """Return a duration in its two largest units.

    >>> [in_words(each) for each in (0.04, 3.21, 75, 3600, 90061)]
    ['40 ms', '3.2 s', '1 min 15 s', '1 h', '1 d 1 h']
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    parts: list[tuple[int, str]] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, whole = divmod(whole, size)
        if number or parts:
            parts.append((number, unit))
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)


def used(usage: Mapping[str, Any]) -> str:
    """Return what a run has used, as far as it is known.

    >>> used({"cpu_seconds": 0.021, "peak_memory_bytes": 12582912, "peak_processes": 3})
    '0.02 s CPU, 12 MiB at most, 3 processes at most'
    >>> used({"cpu_seconds": None, "peak_processes": 1, "output_bytes": 2500})
    '1 process at most, 2.4 KiB of output'
    """
    cpu, memory, processes, output = (
        usage.get(name)
        for name in (
            *("cpu_seconds", "peak_memory_bytes"),
            *("peak_processes", "output_bytes"),
        )
    )
    parts = []
    if cpu is not None:
        parts.append(f"{cpu:.2f} s CPU")
    if memory is not None:
        parts.append(f"{_size(memory)} at most")
    if processes is not None:
        parts.append(f"{processes:.0f} process{'es' * (processes != 1)} at most")
    if output is not None:
        parts.append(f"{_size(output)} of output")
    return ", ".join(parts)


def _size(count: float) -> str:
    if count < 1024:
        return f"{count:.0f} byte{'s' * (count != 1)}"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024 or unit == "GiB":
            break
    return f"{count:.1f} {unit}" if count < 10 else f"{count:.0f} {unit}"
