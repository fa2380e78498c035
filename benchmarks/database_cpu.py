"""What PostgreSQL takes for the server that is measured: its backends' CPU time.

What its own processes do for all databases (WAL, checkpoints) is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from processes import cpu_seconds

Read = Callable[[], dict[int, float] | None]
"""CPU seconds of each backend by its pid; None where that is not to be known."""


@contextmanager
def backends(database_url: str) -> Iterator[Read]:
    """Yield what reads the CPU time of a database's backends, but for our own.

    It is unknown where the URL is empty, or PostgreSQL is on another machine.
    """
    if not database_url:
        yield lambda: None
        return
    import psycopg

    with psycopg.connect(database_url, autocommit=True) as connection:

        def read() -> dict[int, float] | None:
            pids = [pid for (pid,) in connection.execute(_PIDS).fetchall()]
            try:
                return {pid: cpu_seconds(pid) for pid in pids}
            except OSError:
                return None

        yield read


def seconds_between(
    before: dict[int, float] | None, after: dict[int, float] | None
) -> float | None:
    """Return what backends took that were there at the end."""
    if before is None or after is None:
        return None
    return sum(now - before.get(pid, 0.0) for pid, now in after.items())


_PIDS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
AND backend_type = 'client backend'
"""
