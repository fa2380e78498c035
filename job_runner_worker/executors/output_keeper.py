"""Gives the middle of growing outputs back to the file system."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import gevent
from gevent.event import Event

from job_runner_worker.output_file import OutputFile

_PUNCH_EVERY_BYTES = 2 * 1024 * 1024
_SHORTEST_PAUSE_SECONDS = 0.004
_LONGEST_PAUSE_SECONDS = 1.0
_log = logging.getLogger(__name__)


class OutputKeeper:
    """One adaptive timer for all outputs; none while there are none."""

    def __init__(self) -> None:
        self._outputs: dict[OutputFile, _Growth] = {}
        self._has_new = Event()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def watch(self, output: OutputFile, is_growing: Callable[[], bool]) -> None:
        """Keep an output small while ``is_growing``: what ends it is not punched."""
        self._outputs[output] = _Growth(output, is_growing)
        self._has_new.set()
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def forget(self, output: OutputFile) -> None:
        """Leave an output as it is from now on."""
        self._outputs.pop(output, None)

    def close(self) -> None:
        """Stop the timer."""
        if self._greenlet is not None:
            self._greenlet.kill()

    def _run(self) -> None:
        """Look as often as the fastest output needs it."""
        while True:
            self._has_new.clear()
            try:
                pauses = [growth.look() for growth in self._outputs.values()]
            except OSError as error:
                _log.warning(
                    "outputs cannot be kept small on the file system of the spool: %s; "
                    "they use as much disk as the scripts print",
                    error.strerror,
                )
                return
            self._has_new.wait(min(pauses, default=None))


class _Growth:
    """How fast an output grows, and so how soon it is looked at again."""

    def __init__(self, output: OutputFile, is_growing: Callable[[], bool]) -> None:
        self._output = output
        self._is_growing = is_growing
        self._size = 0
        self._looked_at = time.monotonic()
        self._pause = _SHORTEST_PAUSE_SECONDS / 2

    def look(self) -> float:
        """Punch if there is more; return the pause until the next look, in seconds.

        Raises OSError where the file system cannot do that.
        """
        size = self._output.size()
        if size > self._size and self._is_growing():
            self._output.punch(size)
        now = time.monotonic()
        rate = (size - self._size) / max(now - self._looked_at, 1e-6)
        longest = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)
        wanted = _PUNCH_EVERY_BYTES / rate if rate > 0 else longest
        self._pause = max(_SHORTEST_PAUSE_SECONDS, min(wanted, longest))
        self._size, self._looked_at = size, now
        return self._pause
