"""What the shim writes into a run's folder: lines of numbers, and what they name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

_NUMBER = re.compile(rb"[0-9]{1,18}")


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


def numbers(content: bytes, count: int) -> list[int] | None:
    """Return the numbers in a line of the shim's, None while it is not written."""
    words = content.split()
    if len(words) != count or not all(_NUMBER.fullmatch(word) for word in words):
        return None
    return [int(word) for word in words]
