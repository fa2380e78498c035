"""Connections to PostgreSQL that wait for it as gevent does.

psycopg waits with ``poll``. gevent has one, which makes an object, a watcher and a
timer for each wait, and wakes ten times a second: that costs more than what most of
our statements do. Here a wait is one watcher of gevent's loop.
"""

from __future__ import annotations

import select
from typing import Any

import gevent
from psycopg import Connection
from psycopg.abc import RV, PQGen


class GreenConnection(Connection[Any]):
    """See psycopg.Connection. Only the greenlet that asks waits for the answer."""

    def wait(self, gen: PQGen[RV], *limits: Any, **named_limits: Any) -> RV:
        """See psycopg.Connection; a wait with a limit is psycopg's own."""
        if any(each is not None for each in (*limits, *named_limits.values())):
            return super().wait(gen, *limits, **named_limits)
        hub = gevent.get_hub()
        try:
            # 1 to read, 2 to write, 3 for either: with psycopg as with gevent.
            wanted = int(next(gen))
            while True:
                watcher = hub.loop.io(self.pgconn.socket, wanted)
                try:
                    hub.wait(watcher)
                finally:
                    watcher.close()
                wanted = int(gen.send(wanted))
        except StopIteration as end:
            found: RV = end.value
            return found


def connection_class() -> type[Connection[Any]]:
    """Return what connects: psycopg's own class where gevent is not at work."""
    is_green = select.poll.__module__ == "gevent.select"
    return GreenConnection if is_green else Connection
