"""What becomes of the runs of a worker that has fallen silent: they fail.

And who is told of a pool in which nobody answers any more. Who is silent is noted in
the database: what people are shown is what was judged here, also by other processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from datetime import datetime

import gevent
from django.db import Error as DatabaseError
from django.db import close_old_connections, transaction
from django.db.models import Q
from django.utils import timezone

from job_runner_worker.server import lifecycle, notifications
from job_runner_worker.server.models import Run, Worker, WorkerPool
from job_runner_worker.server.pulse import Pulse
from job_runner_worker.server.turns import Turns

CHECK_SECONDS = 15.0
_log = logging.getLogger(__name__)


class HealthCheck:
    """Fails the runs of silent workers, as long as it runs."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._pulse = Pulse(monotonic)
        self._turns = Turns()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Check from now on, from time to time."""
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """Check no more."""
        if self._greenlet is not None:
            self._turns.end(self._greenlet)

    def check(self) -> list[int]:
        """Fail the runs of workers that are silent now; return these runs' ids.

        Whoever listens to notices is told of each. While this server was away no
        worker could answer: silence counts from the first check.
        """
        now = timezone.now()
        workers = list(Worker.objects.all())
        silent = [each for each in workers if self._pulse.is_silent(each)]
        self._note(workers, silent, now)
        failed = []
        held = Run.objects.filter(enqueue_dts__isnull=False, return_dts=None)
        # Of a job that is run on all workers, one run is this worker's alone.
        bound = Run.objects.filter(
            enqueue_dts=None,
            worker__isnull=False,
            schedule_dts__lte=now,
            job__run_on_all_workers=True,
        )
        held_or_bound = Q(pk__in=held.values("worker")) | Q(
            pk__in=bound.values("worker")
        )
        hit = set(Worker.objects.filter(held_or_bound)) if silent else set()
        for worker in (each for each in silent if each in hit):
            heard = worker.ping_response_dts
            last = f"{heard:%Y-%m-%d %H:%M:%S} UTC" if heard else "never"
            why = f"worker {worker.api_key} does not answer pings (last answer: {last})"
            for rows, fail in (
                (held, lifecycle.fail_unresponsive),
                (bound, lifecycle.fail_unclaimed),
            ):
                for run_id in rows.filter(worker=worker).values_list("pk", flat=True):
                    if fail(run_id, why):
                        _log.warning("run %d: failed: %s", run_id, why)
                        failed.append(run_id)
        return failed

    def _note(
        self, workers: Iterable[Worker], silent: Iterable[Worker], now: datetime
    ) -> None:
        """Let everybody see who is silent, until that worker has answered again."""
        fallen = [each.pk for each in silent if each.unresponsive_dts is None]
        back = [
            each.pk
            for each in workers
            if each.unresponsive_dts is not None and self._pulse.has_answered(each)
        ]
        for keys, at in ((fallen, now), (back, None)):
            if keys:
                Worker.objects.filter(pk__in=keys).update(unresponsive_dts=at)

    def check_pools(self) -> list[WorkerPool]:
        """Tell people of pools in which nobody answers, once; return these pools.

        A pool has recovered when one of its workers has answered since.
        """
        fallen = []
        pools = WorkerPool.objects.filter(enqueue_is_enabled=True)
        for pool in pools.prefetch_related("workers"):
            workers = [each for each in pool.workers.all() if each.enqueue_is_enabled]
            is_silent = [self._pulse.is_silent(each) for each in workers]
            if pool.unresponsive_dts is not None:
                if any(self._pulse.has_answered(each) for each in workers):
                    _log.info("pool %s: a worker answers again", pool)
                    _set_unresponsive(pool, None)
            elif workers and all(is_silent):
                with transaction.atomic():
                    if _set_unresponsive(pool, timezone.now()):
                        _log.warning("pool %s: no worker answers", pool)
                        notifications.pool_unresponsive(pool)
                        fallen.append(pool)
        return fallen

    def _run(self) -> None:
        while True:
            gevent.sleep(CHECK_SECONDS)
            with self._turns:
                self._turn()

    def _turn(self) -> None:
        try:
            self.check()
            self.check_pools()
        except DatabaseError as error:
            _log.error("health check: the database does not answer: %s", error)
        except Exception:
            _log.exception("health check: trying again")
        finally:
            close_old_connections()


def _set_unresponsive(pool: WorkerPool, at: datetime | None) -> bool:
    """Return whether it was this process that noted it."""
    rows = WorkerPool.objects.filter(pk=pool.pk, unresponsive_dts__isnull=bool(at))
    return bool(rows.update(unresponsive_dts=at))
