"""Deletes old runs every night, while a server runs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import gevent
from django.db import Error as DatabaseError
from django.db import close_old_connections
from django.utils import timezone

from job_runner_worker.server import upkeep
from job_runner_worker.server.turns import Turns

AT_HOUR = 3
"""In the server's time zone."""
PAUSE_SECONDS = 0.2
"""Between two transactions that delete: others want the database, too."""
_log = logging.getLogger(__name__)


class Retention:
    """Deletes from `start` to `close` what is old enough, each night."""

    def __init__(
        self,
        older_than: timedelta,
        keep_runs: int,
        *,
        is_on: bool = True,
        now: Callable[[], datetime] = timezone.localtime,
    ) -> None:
        self._older_than = older_than
        self._keep_runs = keep_runs
        self._is_on = is_on
        self._now = now
        self._turns = Turns()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Delete from the next night on, unless that is switched off."""
        if self._is_on:
            self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """Delete no more."""
        if self._greenlet is not None:
            self._turns.end(self._greenlet)

    def prune(self) -> int:
        """Delete what is old now; return how many runs."""
        count = upkeep.prune(
            self._keep_runs, self._older_than, lambda: gevent.sleep(PAUSE_SECONDS)
        )
        if count:
            _log.info("%d old runs are deleted", count)
        return count

    def _run(self) -> None:
        while True:
            gevent.sleep(seconds_until_night(self._now()))
            with self._turns:
                self._turn()

    def _turn(self) -> None:
        try:
            self.prune()
        except DatabaseError as error:
            _log.error("old runs stay: the database does not answer: %s", error)
        except Exception:
            _log.exception("old runs stay until the next night")
        finally:
            close_old_connections()


def seconds_until_night(now: datetime) -> float:
    """Return how long it takes until the next AT_HOUR, by the clock on the wall."""
    night = now.replace(hour=AT_HOUR, minute=0, second=0, microsecond=0)
    if night <= now:
        night += timedelta(days=1)
    # Through UTC: a night in which clocks change is longer or shorter.
    return night.timestamp() - now.timestamp()


def of(arguments: argparse.Namespace) -> Retention:
    """Return what the options of a server ask for."""
    days, keep_runs = arguments.older_than, arguments.keep_runs
    return Retention(
        timedelta(days=upkeep.NIGHTLY_DAYS if days is None else days),
        upkeep.NIGHTLY_KEEP_RUNS if keep_runs is None else keep_runs,
        is_on=not arguments.no_prune,
    )
