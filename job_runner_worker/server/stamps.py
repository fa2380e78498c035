"""Which signed requests have been heard already."""

from __future__ import annotations

from collections import deque

from job_runner_worker.auth import MAX_AGE_SECONDS, Stamp


class Stamps:
    """The stamps of the last minutes, of genuine requests only.

    They are in memory: a server that has just been started takes a request of the
    last five minutes a second time.
    """

    def __init__(self) -> None:
        self._seen: set[Stamp] = set()
        self._expiries: deque[tuple[float, Stamp]] = deque()

    def take(self, stamp: Stamp, now: float) -> bool:
        """Return whether a stamp is fresh and has not been seen; it has from now on."""
        while self._expiries and self._expiries[0][0] < now:
            self._seen.discard(self._expiries.popleft()[1])
        if abs(now - stamp.at) > MAX_AGE_SECONDS or stamp in self._seen:
            return False
        self._seen.add(stamp)
        # A stamp from a clock that is ahead stays fresh for twice as long.
        self._expiries.append((now + 2 * MAX_AGE_SECONDS, stamp))
        return True
