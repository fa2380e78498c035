"""Which workers have fallen silent, by the monotonic clock of this process.

The date in the answer to a ping is the worker's, whose clock is its own business; the
clock of this machine may jump, too. So a date is only compared with the one before: a
new one is a sign of life, now.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from job_runner_worker.server.models import Worker

PING_SECONDS = 300.0
SILENCE_SECONDS = 3 * PING_SECONDS + 15.0
"""Who has not answered a ping for so long does not live. Source: protocol.md, 3."""


@dataclass(slots=True)
class _Sign:
    date: datetime | None
    at: float
    is_first: bool = True


class Pulse:
    """The last sign of life of each worker that was looked at.

    Before the first look a worker could not be heard: its silence counts from there.
    Who is not looked at from time to time is heard the later.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._signs: dict[str, _Sign] = {}

    def is_silent(self, worker: Worker) -> bool:
        """Return whether a worker should have been heard by now; a look at it."""
        return self._monotonic() - self._look(worker).at > SILENCE_SECONDS

    def has_answered(self, worker: Worker) -> bool:
        """Return whether a worker has been heard since the first look, and lately."""
        return not self.is_silent(worker) and not self._look(worker).is_first

    def begin_again(self, api_key: str) -> None:
        """Let the silence of a worker count from now on: it was not asked before."""
        if (sign := self._signs.get(api_key)) is not None:
            sign.at = self._monotonic()

    def _look(self, worker: Worker) -> _Sign:
        sign = self._signs.get(worker.api_key)
        if sign is None:
            sign = _Sign(worker.ping_response_dts, self._monotonic())
            self._signs[worker.api_key] = sign
        elif sign.date != worker.ping_response_dts:
            sign.date, sign.at, sign.is_first = (
                worker.ping_response_dts,
                self._monotonic(),
                False,
            )
        return sign
