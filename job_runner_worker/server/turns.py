"""Work in turns, which ends between two of them.

A greenlet that is killed within a query leaves a connection that nobody can use any
more; on PostgreSQL the pool of connections says so in two warnings.
"""

from __future__ import annotations

from typing import Any

import gevent
import gevent.lock

STOP_SECONDS = 5.0
"""A turn that takes longer is ended in its midst: the database goes back."""


class Turns(gevent.lock.BoundedSemaphore):
    """The turns of one greenlet, each of which is a ``with`` block of it."""

    def end(self, greenlet: gevent.Greenlet[..., Any]) -> None:
        """Stop the greenlet for good, after its turn if it has one."""
        self.acquire(timeout=STOP_SECONDS)
        greenlet.kill()
