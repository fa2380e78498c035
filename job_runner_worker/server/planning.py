"""New runs: by hand, after a parent, and by a job's schedule.

A schedule has one next run, or one for each worker where the job is run on all: the
plan, noted in the job's ``planned_schedule_id``. When it is offered the next one is
made, later than now: whatever was missed is skipped. What a plan should be follows
from the database alone, so that it may be made again at any time, by anybody.

Who changes a job, or something above it, calls `replan` in the same transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, Model, OuterRef, Q, QuerySet
from django.utils import timezone

from job_runner_worker.server import notifications, scheduling
from job_runner_worker.server.models import (
    Job,
    JobTemplate,
    Project,
    Run,
    Worker,
    WorkerPool,
)
from job_runner_worker.server.notices import RunChanged, RunDue, tell
from job_runner_worker.server.refusals import Conflict, NotAllowed
from job_runner_worker.server.scheduling import Cron, Every, Excluded, ScheduleError

_ABOVE = ("template", "template__project", "worker_pool")
_UNTOUCHED = Q(enqueue_dts=None, offered_dts=None)
_ENABLED = Q(
    enqueue_is_enabled=True,
    template__enqueue_is_enabled=True,
    template__project__enqueue_is_enabled=True,
    worker_pool__enqueue_is_enabled=True,
)
_SCHEDULED = ~Q(cron_expression="") | Q(reschedule_interval__gt=0)
_BELOW = {
    JobTemplate: "template",
    Project: "template__project",
    WorkerPool: "worker_pool",
}
_log = logging.getLogger(__name__)


def schedule_of(job: Job) -> scheduling.Schedule | None:
    """Return when a job is due, None where it has no schedule.

    Raises ScheduleError where that cannot be read.
    """
    rule: Cron | Every
    if job.cron_expression:
        rule = Cron(job.cron_expression)
    elif job.reschedule_interval and job.reschedule_interval_type:
        unit = scheduling.Unit(job.reschedule_interval_type)
        rule = Every(job.reschedule_interval, unit, job.schedule_start_dts)
    else:
        return None
    name = job.time_zone or settings.TIME_ZONE
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ScheduleError(f"there is no time zone {name!r}") from error
    excluded = (Excluded(each.start_time, each.end_time) for each in job.excluded.all())
    return scheduling.Schedule(rule, zone, tuple(excluded))


def next_times(job: Job, number: int) -> list[datetime]:
    """Return the next times of a job, in UTC, whether it is enabled or not.

    Raises ScheduleError where the schedule cannot be read.
    """
    found = schedule_of(job)
    return scheduling.next_times(found, timezone.now(), number) if found else []


def schedule(
    job: Job,
    at: datetime | None = None,
    *,
    is_manual: bool = False,
    schedule_children: bool = True,
    worker: Worker | None = None,
    schedule_id: int | None = None,
) -> Run:
    """Return a new run of a job, due ``at`` a time or now.

    ``worker`` is the only one it is for. A job that is run on all workers has one run
    for each enabled one; the first is returned. Runs that are scheduled together have
    the ``schedule_id`` of the first. Raises NotAllowed where the job is disabled,
    which a manual run does not mind, or is for all workers and there is none.
    """
    if not is_manual:
        check_enabled(job)
    workers = [worker] if worker else workers_of(job)
    values = {"is_manual": is_manual, "schedule_children": schedule_children}
    at = at or timezone.now()
    runs = _make(job, workers, schedule_dts=at, schedule_id=schedule_id, **values)
    return runs[0]


def run_now(job: Job, *, with_children: bool = True) -> Run:
    """Return a run that somebody starts by hand, whether the job is enabled or not.

    Where another run of the job is going on, it waits for that one's end.
    """
    return schedule(job, is_manual=True, schedule_children=with_children)


def change_waiting(run_id: int, **values: Any) -> None:
    """Change when a run is due, or whether children follow. Raises Conflict.

    A worker that has just been offered it may still take it.
    """
    waiting = Run.objects.filter(pk=run_id, enqueue_dts=None, return_dts=None)
    if not values:
        return
    if not waiting.update(**values):
        raise Conflict(f"run {run_id} does not wait any more")
    tell(RunChanged(run_id, "scheduled"))
    if values.get("schedule_dts", timezone.now()) <= timezone.now():
        tell(RunDue(run_id))


def check_enabled(job: Job) -> None:
    """Raise NotAllowed where a job, or what is above it, is disabled."""
    template = job.template
    for owner in (job, template, template.project, job.worker_pool):
        if not owner.enqueue_is_enabled:
            kind = owner._meta.verbose_name
            raise NotAllowed(f"{kind} {owner} is disabled: start a manual run")


def workers_of(job: Job) -> list[Worker | None]:
    """Return whom a job's runs are for, one each; None is anybody of the pool.

    Raises NotAllowed where they are for all workers and none is enabled.
    """
    if not job.run_on_all_workers:
        return [None]
    workers = list(job.worker_pool.workers.filter(enqueue_is_enabled=True))
    if not workers:
        raise NotAllowed(f"worker pool {job.worker_pool} has no enabled worker")
    return workers


def locked_job(job_id: int) -> Job | None:
    """Return a job that nobody else changes until the transaction ends."""
    rows = Job.objects.select_related(*_ABOVE).order_by()
    locked = rows.select_for_update(of=("self",), no_key=True)
    found: Job | None = locked.filter(pk=job_id).first()
    return found


def plan(job_id: int) -> list[Run]:
    """Return the next runs of a job by its schedule, if they are made just now.

    What is planned for a job that is disabled, or has no schedule any more, is
    withdrawn. Where a schedule has no time, people are told, once.
    """
    with transaction.atomic():
        job = locked_job(job_id)
        if job is None:
            return []
        try:
            found = schedule_of(job) if _is_enabled(job) else None
            if found is None:
                _withdraw(job, Q())
                _note(job, None)
                return []
            if _is_planned(job):
                return []
            workers = _without_waiting(job, workers_of(job))
            at = scheduling.next_time(found, timezone.now())
        except (ScheduleError, NotAllowed) as error:
            _withdraw(job, Q())
            _note(job, error)
            return []
        _note(job, None)
        if not workers:
            return []
        runs = _make(job, workers, schedule_dts=at, schedule_id=None)
        job.planned_schedule_id = runs[0].schedule_id
        job.save(update_fields=["planned_schedule_id"])
        return runs


def replan(row: Model) -> None:
    """Plan anew what a change of a job, or of something above it, may have moved.

    A run whose time has come stays, unless its job is disabled.
    """
    with transaction.atomic():
        for job_id in _jobs_below(row).order_by("pk").values_list("pk", flat=True):
            job = locked_job(job_id)
            if job is not None:
                _withdraw(job, Q(schedule_dts__gt=timezone.now()))
                plan(job_id)


def set_enabled(row: Model, is_enabled: bool) -> None:
    """Enable or disable a job, template, project, worker pool or worker."""
    with transaction.atomic():
        rows = type(row)._default_manager.filter(pk=row.pk)
        rows.update(enqueue_is_enabled=is_enabled)
        row.enqueue_is_enabled = is_enabled
        replan(row)


def sweep(*, also_failed: bool = False) -> None:
    """Plan what has to be planned and is not: a notice may have been lost.

    ``also_failed``: also where a schedule had no time when it was last looked at.
    """
    planned = Run.objects.filter(
        job=OuterRef("pk"), schedule_id=OuterRef("planned_schedule_id")
    )
    touched = planned.exclude(_UNTOUCHED)
    wanted = _ENABLED & _SCHEDULED
    missing = wanted & (Exists(touched) | ~Exists(planned))
    if not also_failed:
        missing &= Q(schedule_error="")
    jobs = Job.objects.order_by()
    for job_id in jobs.filter(missing).values_list("pk", flat=True):
        plan(job_id)
    waiting = Run.objects.filter(
        _UNTOUCHED, return_dts=None, schedule_id=F("job__planned_schedule_id")
    )
    unwanted = waiting.exclude(job__in=jobs.filter(wanted).values("pk"))
    for job_id in set(unwanted.order_by().values_list("job", flat=True)):
        plan(job_id)


def _is_enabled(job: Job) -> bool:
    try:
        check_enabled(job)
    except NotAllowed:
        return False
    return True


def _is_planned(job: Job) -> bool:
    """Return whether the plan waits, and nobody has been offered any of it."""
    planned = Run.objects.filter(job=job, schedule_id=job.planned_schedule_id)
    untouched = [
        each == (None, None)
        for each in planned.values_list("enqueue_dts", "offered_dts")
    ]
    return job.planned_schedule_id is not None and bool(untouched) and all(untouched)


def _without_waiting(job: Job, workers: Iterable[Worker | None]) -> list[Worker | None]:
    """Leave out who has one to do yet: runs for one worker do not pile up."""
    if not job.run_on_all_workers:
        return list(workers)
    waiting = Run.objects.filter(job=job, enqueue_dts=None, is_manual=False)
    busy = set(waiting.values_list("worker", flat=True))
    return [each for each in workers if each is not None and each.pk not in busy]


def _withdraw(job: Job, which: Q) -> None:
    """Take back what is planned and nobody has been offered."""
    if job.planned_schedule_id is None:
        return
    runs = Run.objects.filter(
        _UNTOUCHED, which, job=job, schedule_id=job.planned_schedule_id
    )
    found = list(runs.values_list("pk", flat=True))
    # One statement with its condition: between two an offer might be made.
    if found:
        runs.filter(pk__in=found)._raw_delete(runs.db)
        left = Run.objects.filter(pk__in=found).values_list("pk", flat=True)
        for run_id in set(found) - set(left):
            tell(RunChanged(run_id, "withdrawn"))


def _note(job: Job, error: Exception | None) -> None:
    text = str(error or "")
    if job.schedule_error == text:
        return
    job.schedule_error = text
    job.save(update_fields=["schedule_error"])
    if text:
        _log.warning("job %d: no next run: %s", job.pk, text)
        notifications.reschedule_failed(job)


def _jobs_below(row: Model) -> QuerySet[Job]:
    if isinstance(row, Job):
        return Job.objects.filter(pk=row.pk)
    if isinstance(row, Worker):
        return Job.objects.filter(
            run_on_all_workers=True, worker_pool__in=row.worker_pools.all()
        )
    return Job.objects.filter(**{_BELOW[type(row)]: row})


def _make(job: Job, workers: Iterable[Worker | None], **values: Any) -> list[Run]:
    runs: list[Run] = []
    values["host"] = job.host
    with transaction.atomic():
        for worker in workers:
            if runs:
                values["schedule_id"] = runs[0].schedule_id
            run = Run.objects.create(job=job, worker=worker, **values)
            if run.schedule_id is None:
                run.schedule_id = run.pk
                run.save(update_fields=["schedule_id"])
            runs.append(run)
            tell(RunChanged(run.pk, "scheduled"))
            if run.schedule_dts <= timezone.now():
                tell(RunDue(run.pk))
    return runs
