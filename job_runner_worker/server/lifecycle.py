"""The way of a run from state to state; nothing else moves one.

    scheduled --claim--> in_queue --start--> started --finish--> completed
        ^                   |                   |
        +------reset--------+-------------------+
    any of the three ----fail_unresponsive, request_kill----> completed

Each step is one conditional UPDATE, claims and ends under the lock of the job's row,
so that of several who try only one succeeds: on PostgreSQL, and on SQLite, where
every transaction is IMMEDIATE. Conditions are on the run's own columns; only a claim,
which has waited for the lock before, also looks at other runs (see job_lock).

A run that ends has all of its dates: those it never got are set to its end. What
follows is in chains, what comes before in planning. Notices are sent when the
transaction is through.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import DateTimeField, F, Q, Value
from django.db.models.functions import Coalesce
from django.utils import timezone

from job_runner_worker.server import chains, job_lock
from job_runner_worker.server.job_lock import End, Work
from job_runner_worker.server.models import KillRequest, Run, RunLog, Worker
from job_runner_worker.server.notices import (
    KillRequested,
    LogChanged,
    RunChanged,
    RunDue,
    RunOffered,
    tell,
)
from job_runner_worker.server.planning import schedule as schedule
from job_runner_worker.server.refusals import Conflict as Conflict
from job_runner_worker.server.refusals import LifecycleError as LifecycleError
from job_runner_worker.server.refusals import NotAllowed as NotAllowed
from job_runner_worker.server.refusals import Unknown as Unknown
from job_runner_worker.server.refusals import has_ended, is_held

KILLED_UNCLAIMED = "killed before it was claimed"


def offer(workers: Mapping[int, int], at: datetime) -> set[int]:
    """Note to whom each run is offered; return those that wait yet, by their ids."""
    for run_id in (offered := job_lock.offer(workers, at)):
        tell(RunOffered(run_id))
    return offered


def claim(
    run_id: int, worker: Worker, at: datetime, *, is_first: bool = False
) -> Work | None:
    """Give a run to a worker, unless another has it: Conflict.

    The same worker may repeat its claim until the run has ended; with ``is_first``
    only that very claim, of that time: another host may have the same key; what it
    is to do is returned, unless it is known. A job is not run twice at once: while
    another run of it goes on, this one waits (Conflict).
    """
    is_claimed, work = job_lock.claim(run_id, worker.pk, at, with_work=is_first)
    if is_claimed:
        tell(RunChanged(run_id, "enqueued", by_worker=True))
        return work
    run = _run(run_id)
    if run.return_dts is not None:
        raise Conflict(has_ended(run))
    if run.enqueue_dts is None:
        is_possible = run.worker_id in (None, worker.pk)
        why = (
            "waits for another run of its job"
            if is_possible
            else "is for another worker"
        )
        raise Conflict(f"run {run_id} {why}")
    if run.worker_id != worker.pk:
        raise Conflict(is_held(run))
    if is_first and run.enqueue_dts != at:
        raise Conflict(f"run {run_id} has been claimed with this key before")
    return None


def reset(run_id: int, worker: Worker) -> None:
    """Let a run wait again that its worker hands back; worker and host stay noted.

    A run that is to be killed does not wait again: it ends. Raises Conflict where
    the run has ended or another worker holds it.
    """
    with transaction.atomic():
        job_lock.take(run_id)
        nothing: dict[str, Any] = dict.fromkeys(
            ("enqueue_dts", "start_dts", "pid", "offered_to", "offered_dts")
        )
        if not _update(_held(run_id, worker), **nothing):
            run = _run(run_id)
            if run.return_dts is not None:
                raise Conflict(has_ended(run))
            if run.enqueue_dts is not None:
                raise Conflict(is_held(run))
            return
        kills = KillRequest.objects.filter(run_id=run_id, execute_dts=None)
        if kills.exists():
            now = timezone.now()
            _end_unclaimed(run_id, now)
            kills.update(enqueue_dts=_keep_or("enqueue_dts", now), execute_dts=now)
            return
        tell(RunChanged(run_id, "reset", True, worker.pk))
        tell(RunDue(run_id))


def start(
    run_id: int,
    worker: Worker,
    at: datetime | None = None,
    pid: int | None = None,
    host: str = "",
) -> None:
    """Note that a run's script has begun, and what is known of its process.

    What is not given stays as it was; so does the date once it is set. Raises
    Conflict where the worker does not hold the run or it has ended.
    """
    if at is None and pid is None and not host:
        return
    if not job_lock.start(run_id, worker.pk, at, pid, host):
        run = _run(run_id)
        raise Conflict(has_ended(run) if run.return_dts else is_held(run))
    if at is not None:
        tell(RunChanged(run_id, "started", by_worker=True))


def finish(
    run_id: int,
    worker: Worker,
    at: datetime,
    success: bool,
    exit_status: int | None = None,
    reason: str = "",
) -> None:
    """End a run with its result; it stays so.

    The same worker may repeat the same end. Of a run that the server has failed in
    the meantime, the result is kept beside the server's. Raises Conflict otherwise.
    """
    end(run_id, worker, End(at, success, exit_status, reason))


def end(run_id: int, worker: Worker, end: End) -> None:
    """End a run as `finish` does; what comes with its end is stored, or nothing is."""
    with transaction.atomic():
        finished = job_lock.finish(run_id, worker.pk, end, timezone.now())
        if end.log is not None:
            _check_log(run_id, end.log, finished.has_log)
        if not finished.has_ended:
            _finish_again(run_id, worker, end)
            return
        tell(RunChanged(run_id, "returned", True, worker.pk))
        chains.follow(run_id, end.success, finished.sequel)


def _finish_again(run_id: int, worker: Worker, end: End) -> None:
    """Take an end that is known, or comes late; raise Conflict for any other."""
    run = _run(run_id)
    if run.return_dts is None:
        raise Conflict(is_held(run))
    if run.worker_id != worker.pk:
        raise Conflict(has_ended(run))
    if run.ended_by_server and _update(
        Q(pk=run_id, late_return_dts=None),
        late_return_dts=end.at,
        late_return_success=end.success,
        late_exit_status=end.exit_status,
        usage=end.usage,
    ):
        tell(RunChanged(run_id, "returned", True, worker.pk))
        return
    run = _run(run_id)
    known = (
        (run.late_return_success, run.late_exit_status)
        if run.ended_by_server
        else (run.return_success, run.exit_status)
    )
    if known != (end.success, end.exit_status):
        raise Conflict(has_ended(run))


def fail_unresponsive(run_id: int, why: str) -> bool:
    """End a run whose worker is silent; return False where it needs no end any more."""
    claimed = Q(pk=run_id, enqueue_dts__isnull=False, return_dts=None)
    with transaction.atomic():
        job_lock.take(run_id)
        is_failed = _update(claimed, **_failed(timezone.now(), why))
        if is_failed:
            tell(RunChanged(run_id, "returned"))
            chains.follow(run_id, False)
    return is_failed


def fail_unclaimed(run_id: int, why: str) -> bool:
    """End a run that nobody can claim; return False where somebody has."""
    with transaction.atomic():
        job_lock.take(run_id)
        return _end_unclaimed(run_id, timezone.now(), why)


def request_kill(run_id: int, requested_by: str = "") -> KillRequest:
    """Ask the worker that holds a run to kill it; ``requested_by`` is for people.

    A run that nobody holds ends at once, as failed (KILLED_UNCLAIMED), and the
    request is done. While a request has not reached the worker, it is the one that
    is returned again. Raises Conflict where the run has ended.
    """
    with transaction.atomic():
        job_lock.take(run_id)
        run = _run(run_id)
        if run.return_dts is not None:
            raise Conflict(has_ended(run))
        if run.enqueue_dts is None:
            now = timezone.now()
            _end_unclaimed(run_id, now)
            return KillRequest.objects.create(
                run=run,
                requested_by=requested_by,
                schedule_dts=now,
                enqueue_dts=now,
                execute_dts=now,
            )
        pending = run.kill_requests.filter(enqueue_dts=None).first()
        kill_request: KillRequest = pending or run.kill_requests.create(
            requested_by=requested_by
        )
        tell(KillRequested(kill_request.pk))
        return kill_request


def kill_enqueued(kill_request_id: int, at: datetime) -> None:
    """Note that a worker has heard of a kill request; the first time counts."""
    requests = KillRequest.objects.filter(pk=kill_request_id)
    if not requests.update(enqueue_dts=_keep_or("enqueue_dts", at)):
        raise Unknown(f"there is no kill request {kill_request_id}")


def kill_executed(kill_request_id: int, at: datetime) -> None:
    """Note that what was to be killed is gone; the first time counts."""
    requests = KillRequest.objects.filter(pk=kill_request_id)
    if not requests.update(
        enqueue_dts=_keep_or("enqueue_dts", at),
        execute_dts=_keep_or("execute_dts", at),
    ):
        raise Unknown(f"there is no kill request {kill_request_id}")


def add_log(run_id: int, content: str) -> RunLog:
    """Return the new log of a run. Raises Conflict where it has one, or has ended."""
    _check_may_be_logged(run_id)
    try:
        with transaction.atomic():
            log: RunLog = RunLog.objects.create(run_id=run_id, content=content)
            tell(LogChanged(run_id))
            return log
    except IntegrityError as error:
        raise Conflict(f"run {run_id} has a log: change that one") from error


def store_log(run_id: int, content: str) -> RunLog:
    """Return the log of a run with new content, made where there was none.

    Raises Conflict where the run has ended, unless it was the server that ended it:
    its worker may come back and tell what it did. What is there may be repeated.
    """
    put_log(run_id, content)
    return RunLog.objects.get(run_id=run_id)


def put_log(run_id: int, content: str) -> None:
    """Store a log as `store_log` does."""
    _check_log(run_id, content, job_lock.put_log(run_id, content))


def _check_log(run_id: int, content: str, is_stored: bool) -> None:
    """Tell of a log that is stored; raise Conflict for one that should have been."""
    if is_stored:
        tell(LogChanged(run_id))
        return
    log = RunLog.objects.filter(run_id=run_id).first()
    if log is None or log.content != content:
        _check_may_be_logged(run_id)


def _check_may_be_logged(run_id: int) -> None:
    run = _run(run_id, "return_dts", "ended_by_server")
    if run.return_dts is not None and not run.ended_by_server:
        raise Conflict(has_ended(run))


def _unclaimed(run_id: int) -> Q:
    return Q(pk=run_id, enqueue_dts=None, return_dts=None)


def _held(run_id: int, worker: Worker) -> Q:
    return Q(pk=run_id, worker=worker, enqueue_dts__isnull=False, return_dts=None)


def _update(condition: Q, **values: Any) -> bool:
    return bool(Run.objects.filter(condition).update(**values))


def _end_unclaimed(run_id: int, now: datetime, why: str = KILLED_UNCLAIMED) -> bool:
    if not _update(_unclaimed(run_id), **_failed(now, why)):
        return False
    tell(RunChanged(run_id, "returned"))
    chains.follow(run_id, False)
    return True


def _failed(now: datetime, why: str) -> dict[str, Any]:
    return {
        "enqueue_dts": _keep_or("enqueue_dts", now),
        "start_dts": _keep_or("start_dts", now),
        "return_dts": now,
        "return_success": False,
        "reason": why,
        "ended_by_server": True,
    }


def _keep_or(name: str, at: datetime) -> Coalesce:
    return Coalesce(F(name), Value(at, output_field=DateTimeField()))


def _run(run_id: int, *fields: str) -> Run:
    """Return a run, with only some of its fields where these are named."""
    run: Run | None = Run.objects.filter(pk=run_id).only(*fields).first()
    if run is None:
        raise Unknown(f"there is no run {run_id}")
    return run
