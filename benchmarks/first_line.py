"""A script's first line, seen from outside with next to no disturbance.

The script's first line is ``: >FIFO``, and the benchmark holds the reading end: the
shell opens and closes the FIFO (two system calls, no process, no file system block),
and the kernel wakes the benchmark at once.
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from central import BenchmarkError

LIMIT_SECONDS = 30.0


class FirstLine:
    """Opened before the script is ordered; for one script each."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "first_line"

    def __enter__(self) -> Self:
        """Hold the reading end."""
        if not self.path.exists():
            os.mkfifo(self.path)
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    def script(self, rest: str = "") -> str:
        """Return a script whose first line is seen."""
        return f"#!/bin/sh\n: >{self.path}\n{rest}"

    def wait(self) -> int:
        """Return when it was executed, in nanoseconds of CLOCK_MONOTONIC."""
        poller = select.poll()
        poller.register(self._descriptor, select.POLLHUP)
        found = poller.poll(LIMIT_SECONDS * 1000)
        now_ns = time.monotonic_ns()
        if not found:
            raise BenchmarkError("the script did not begin")
        return now_ns
