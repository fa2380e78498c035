"""What becomes of the runs of a worker that has fallen silent: they fail."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import gevent
from django.db import Error as DatabaseError
from django.db import close_old_connections
from django.utils import timezone

from job_runner_worker.server import lifecycle
from job_runner_worker.server.models import Run, Worker

PING_SECONDS = 300.0
SILENCE_SECONDS = 3 * PING_SECONDS + 15.0
"""Who has not answered a ping for so long does not live. Source: protocol.md, 3."""
CHECK_SECONDS = 15.0
_SILENCE = timedelta(seconds=SILENCE_SECONDS)
_log = logging.getLogger(__name__)


def is_silent(worker: Worker, since: datetime, now: datetime) -> bool:
    """Return whether a worker should have been heard by ``now``.

    ``since``: from when on it could answer. Before that its silence says nothing.
    """
    return now - max(worker.ping_response_dts or since, since) > _SILENCE


class HealthCheck:
    """Fails the runs of silent workers, as long as it runs."""

    def __init__(self, now: Callable[[], datetime] = timezone.now) -> None:
        self._now = now
        self._since = now()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Check from now on, from time to time."""
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """Check no more."""
        if self._greenlet is not None:
            self._greenlet.kill()

    def check(self) -> list[int]:
        """Fail the runs of workers that are silent now; return these runs' ids.

        Whoever listens to notices is told of each. While this server was away no
        worker could answer: silence counts from its start.
        """
        now = self._now()
        failed = []
        held = Run.objects.filter(enqueue_dts__isnull=False, return_dts=None)
        for worker in Worker.objects.filter(pk__in=held.values("worker")):
            if not is_silent(worker, self._since, now):
                continue
            heard = worker.ping_response_dts
            last = f"{heard:%Y-%m-%d %H:%M:%S} UTC" if heard else "never"
            why = f"worker {worker.api_key} does not answer pings (last answer: {last})"
            for run_id in held.filter(worker=worker).values_list("pk", flat=True):
                if lifecycle.fail_unresponsive(run_id, why):
                    _log.warning("run %d: failed: %s", run_id, why)
                    failed.append(run_id)
        return failed

    def _run(self) -> None:
        while True:
            gevent.sleep(CHECK_SECONDS)
            try:
                self.check()
            except DatabaseError as error:
                _log.error("health check: the database does not answer: %s", error)
            except Exception:
                _log.exception("health check: trying again")
            finally:
                close_old_connections()
