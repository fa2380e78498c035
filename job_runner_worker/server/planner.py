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

SWEEP_SECONDS = 30.0
RETRY_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Planner:
    """Plans from `start` to `close`."""

    def __init__(self) -> None:
        self._offered: set[int] = set()
        self._wake = gevent.event.Event()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Plan what is missing, and go on as runs are offered."""
        notices.subscribe(self._hear_notice)
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """Plan no more."""
        if self._greenlet is not None:
            notices.unsubscribe(self._hear_notice)
            self._greenlet.kill()

    def _hear_notice(self, notice: notices.Notice) -> None:
        """Called in the middle of an offer: note it, wake the planner."""
        if isinstance(notice, notices.RunOffered):
            self._offered.add(notice.run_id)
            self._wake.set()

    def _run(self) -> None:
        also_failed, wait_seconds = True, 0.0
        while True:
            was_woken = self._wake.wait(wait_seconds)
            self._wake.clear()
            try:
                self._follow_offers()
                if not was_woken:
                    planning.sweep(also_failed=also_failed)
                    also_failed = False
                wait_seconds = SWEEP_SECONDS
            except DatabaseError as error:
                _log.error("planner: the database does not answer: %s", error)
                wait_seconds = RETRY_SECONDS
            except Exception:
                _log.exception("planner: trying again")
                wait_seconds = RETRY_SECONDS
            finally:
                close_old_connections()

    def _follow_offers(self) -> None:
        offered, self._offered = self._offered, set()
        if not offered:
            return
        planned = Run.objects.filter(
            pk__in=offered, schedule_id=F("job__planned_schedule_id")
        )
        for job_id in set(planned.order_by().values_list("job", flat=True)):
            planning.plan(job_id)
