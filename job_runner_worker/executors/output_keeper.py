"""Gives the middle of growing outputs back to the file system."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import gevent
from gevent.event import Event

from job_runner_worker.executors.write_watch import WriteWatch
from job_runner_worker.output_file import OutputFile

_PUNCH_EVERY_BYTES = 2 * 1024 * 1024
_SHORTEST_PAUSE_SECONDS = 0.002
_LEAST_PAUSE_SECONDS = 0.002
"""Added to every pause: many outputs together are not looked at more often."""
_LONGEST_PAUSE_SECONDS = 0.016
"""While an output grows: a script that prints little may print a lot at once."""
_BUSY_PAUSE_SECONDS = 0.004
_BUSY_BYTES_PER_SECOND = 4 * 1024 * 1024
"""Who prints so much may print hundreds of times that in the next moment."""
_BLIND_PAUSE_SECONDS = 1.0
"""Where nobody tells of the next write."""
_SILENCE_SECONDS = 0.1
"""A write after so long a silence mostly is alone: it is looked at once."""
_LITTLE_BYTES = 64 * 1024
"""What such a write may add. Less than this is not worth a punch, either."""
_log = logging.getLogger(__name__)


class OutputKeeper:
    """Looks at outputs while they grow; is told of the first write after a silence."""

    def __init__(self) -> None:
        self._outputs: dict[OutputFile, _Growth] = {}
        # Those that nobody is going to tell about: the quiet ones cost nothing.
        self._awake: set[_Growth] = set()
        self._has_new = Event()
        self._watch = WriteWatch()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def watch(self, output: OutputFile, is_growing: Callable[[], bool]) -> None:
        """Keep an output small while ``is_growing``: what ends it is not punched."""
        if self._greenlet is None:
            self._watch.open()
            self._greenlet = gevent.spawn(self._run)
        growth = _Growth(output, is_growing, self._watch, self._wake)
        self._outputs[output] = growth
        self._wake(growth)

    def forget(self, output: OutputFile) -> None:
        """Leave an output as it is from now on."""
        growth = self._outputs.pop(output, None)
        if growth is not None:
            self._awake.discard(growth)
            growth.forget()

    def close(self) -> None:
        """Look no more."""
        if self._greenlet is not None:
            self._greenlet.kill()
        self._watch.close()

    def _run(self) -> None:
        """Look as often as the fastest output needs it; not at all at quiet ones."""
        while True:
            self._has_new.clear()
            try:
                pauses = {growth: growth.look() for growth in list(self._awake)}
            except OSError as error:
                _log.warning(
                    "outputs cannot be kept small on the file system of the spool: %s; "
                    "they use as much disk as the scripts print",
                    error.strerror,
                )
                return
            awaited = [pause for pause in pauses.values() if pause is not None]
            self._awake -= {each for each, pause in pauses.items() if pause is None}
            self._has_new.wait(min(awaited, default=None))
            gevent.sleep(_LEAST_PAUSE_SECONDS)

    def _wake(self, growth: _Growth) -> None:
        self._awake.add(growth)
        self._has_new.set()


class _Growth:
    """How fast an output grows, and so how soon it is looked at again."""

    def __init__(
        self,
        output: OutputFile,
        is_growing: Callable[[], bool],
        watch: WriteWatch,
        wake: Callable[[_Growth], None],
    ) -> None:
        self._output = output
        self._is_growing = is_growing
        self._watch = watch
        self._wake = wake
        self._armed: int | None = None
        self._is_seldom = False
        self._size = self._punched_size = 0
        self._looked_at = time.monotonic()

    def look(self) -> float | None:
        """Punch if there is more; return the pause until the next look, in seconds.

        None where nothing is to be done before somebody writes. Raises OSError where
        the file system cannot do that.
        """
        if self._armed is not None:
            return None
        # What was written before the watch was set is told by nobody: look after that.
        if self._is_seldom:
            self._arm()
        size = self._output.size()
        if size == self._size and self._armed is None:
            if not self._arm():
                return _BLIND_PAUSE_SECONDS
            size = self._output.size()
        self._punch(size)
        grown, now = size - self._size, time.monotonic()
        rate = grown / max(now - self._looked_at, 1e-6)
        self._size, self._looked_at = size, now
        is_little = grown < (_LITTLE_BYTES if self._is_seldom else 1)
        if self._armed is not None and is_little:
            return None
        self.forget()
        self._is_seldom = False
        if rate < _BUSY_BYTES_PER_SECOND:
            return _LONGEST_PAUSE_SECONDS
        wanted = _PUNCH_EVERY_BYTES / rate
        return max(_SHORTEST_PAUSE_SECONDS, min(wanted, _BUSY_PAUSE_SECONDS))

    def forget(self) -> None:
        """Wait for no write."""
        if self._armed is not None:
            self._watch.disarm(self._armed)
            self._armed = None

    def _arm(self) -> bool:
        self._armed = self._watch.arm(self._output.path, self._written)
        return self._armed is not None

    def _punch(self, size: int) -> None:
        is_worth_it = size - self._punched_size >= _LITTLE_BYTES
        if is_worth_it and self._output.is_long(size) and self._is_growing():
            self._output.punch(size)
            self._punched_size = size

    def _written(self) -> None:
        self._armed = None
        now = time.monotonic()
        self._is_seldom = now - self._looked_at >= _SILENCE_SECONDS
        self._looked_at = now
        self._wake(self)
