"""Makes the next run of a schedule when the one before is offered.

Asleep until an offer is made. It looks for what is missing from time to time as well,
as notices may be lost.
"""

from __future__ import annotations

import logging

import gevent
import gevent.event
from django.db import Error as DatabaseError
from django.db import close_old_connections
from django.db.models import F

from job_runner_worker.server import notices, planning
from job_runner_worker.server.models import Run
from job_runner_worker.server.turns import Turns

SWEEP_SECONDS = 30.0
RETRY_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Planner:
    """Plans from `start` to `close`."""

    def __init__(self) -> None:
        self._offered: set[int] = set()
        self._wake = gevent.event.Event()
        self._also_failed = True
        """Whether the next sweep also tries what could not be planned before."""
        self._turns = Turns()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Plan what is missing, and go on as runs are offered."""
        notices.subscribe(self._hear_notice)
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """Plan no more."""
        if self._greenlet is not None:
            notices.unsubscribe(self._hear_notice)
            self._turns.end(self._greenlet)

    def _hear_notice(self, notice: notices.Notice) -> None:
        """Called in the middle of an offer: note it, wake the planner."""
        if isinstance(notice, notices.RunOffered):
            self._offered.add(notice.run_id)
            self._wake.set()

    def _run(self) -> None:
        wait_seconds = 0.0
        while True:
            was_woken = self._wake.wait(wait_seconds)
            self._wake.clear()
            with self._turns:
                wait_seconds = self._turn(is_sweep=not was_woken)

    def _turn(self, *, is_sweep: bool) -> float:
        """Plan what is missing; return when to look again, in seconds."""
        try:
            self._follow_offers()
            if is_sweep:
                planning.sweep(also_failed=self._also_failed)
                self._also_failed = False
            return SWEEP_SECONDS
        except DatabaseError as error:
            _log.error("planner: the database does not answer: %s", error)
        except Exception:
            _log.exception("planner: trying again")
        finally:
            close_old_connections()
        return RETRY_SECONDS

    def _follow_offers(self) -> None:
        offered, self._offered = self._offered, set()
        if not offered:
            return
        planned = Run.objects.filter(
            pk__in=offered, schedule_id=F("job__planned_schedule_id")
        )
        for job_id in set(planned.order_by().values_list("job", flat=True)):
            planning.plan(job_id)
