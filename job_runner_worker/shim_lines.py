"""What the shim writes into a run's folder: lines of numbers, and what they name."""

from __future__ import annotations

import os
import posix
import re
from dataclasses import dataclass
from datetime import datetime

_NUMBER = re.compile(rb"[0-9]{1,18}")
_MAX_STAT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for good: its pid, and when it started, in ticks since boot."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class ScriptProcess:
    """The script's main process, and the relay that takes its output."""

    script: ProcessId
    relay_pid: int
    started_at: datetime


def child(pid: int, parent: ProcessId | None) -> ProcessId:
    """Return a child of a process for good.

    One that is gone, or is not that one's child (any more), started at 0: it never
    exists.
    """
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ProcessId(pid, 0)
    try:
        content = os.read(descriptor, _MAX_STAT_BYTES)
    except OSError:
        return ProcessId(pid, 0)
    finally:
        posix.close(descriptor)
    # The name in field 2 may hold anything, also spaces and parentheses.
    fields = content.rpartition(b")")[2].split()
    is_child = parent is not None and int(fields[1]) == parent.pid
    return ProcessId(pid, int(fields[19]) if is_child else 0)


def numbers(content: bytes, count: int) -> list[int] | None:
    """Return the numbers in a line of the shim's, None while it is not written."""
    words = content.split()
    if len(words) != count or not all(_NUMBER.fullmatch(word) for word in words):
        return None
    return [int(word) for word in words]
