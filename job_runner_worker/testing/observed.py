"""Something that greenlets can wait for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from gevent.event import Event

_T = TypeVar("_T")


class Observed:
    """Something that greenlets can wait for."""

    def __init__(self) -> None:
        self._changed = Event()

    def wait_for(
        self,
        predicate: Callable[[], _T | None],
        what: str,
        timeout_seconds: float = 5.0,
    ) -> _T:
        """Return what ``predicate`` returns, once that is true.

        Asked again after everything that happens here. Raises AssertionError that
        names ``what`` when the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._changed.clear()
            found = predicate()
            if found:
                return found
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise AssertionError(f"waited {timeout_seconds:g} s for {what}")
            self._changed.wait(remaining)

    def _note_change(self) -> None:
        self._changed.set()
