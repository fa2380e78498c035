"""What the end of a run brings about: mail, the count of failures, children.

Called by lifecycle within the transaction of the end and under the lock of the job:
of several runs that end at once one is the last.
"""

from __future__ import annotations

import logging

from django.utils import timezone

from job_runner_worker.server import job_lock, notifications, planning
from job_runner_worker.server.models import Job, Run
from job_runner_worker.server.notices import RunDue, tell
from job_runner_worker.server.refusals import NotAllowed

_LONG = ("job__script_content_partial", "job__description")
_log = logging.getLogger(__name__)


def follow(
    run_id: int, is_success: bool, sequel: job_lock.Sequel | None = None
) -> None:
    """Do what follows the end of a run, whose job is locked.

    ``sequel``: what comes after it, where that has been read since.

    Runs that were scheduled together count as one, when the last of them has ended:
    as a failure where any has failed.
    """
    sequel = sequel or job_lock.sequel(run_id, timezone.now())
    if sequel.has_more or not is_success:
        _follow(Run.objects.select_related("job").defer(*_LONG).get(pk=run_id))
    # Another run of the job may have waited for this end.
    if sequel.next_run_id is not None:
        tell(RunDue(sequel.next_run_id))


def _follow(run: Run) -> None:
    job = run.job
    together = Run.objects.filter(job=job, schedule_id=run.schedule_id)
    ends = list(together.order_by().values_list("return_success", flat=True))
    is_last, has_failed = None not in ends, False in ends
    is_disabled = is_last and _count(job, has_failed)
    if not run.return_success:
        notifications.run_failed(run, is_disabled)
    if (
        is_last
        and run.schedule_children
        and (job.schedule_children_on_error or not has_failed)
    ):
        _schedule_children(job)
    if is_disabled or run.schedule_id == job.planned_schedule_id:
        planning.plan(job.pk)


def _count(job: Job, has_failed: bool) -> bool:
    """Count failures in a row; return whether they have disabled the job just now."""
    fail_times = job.fail_times + 1 if has_failed else 0
    limit = job.disable_enqueue_after_fails or 0
    disables = 0 < limit <= fail_times and job.enqueue_is_enabled
    if disables:
        _log.warning("job %d: disabled: failed %d times in a row", job.pk, fail_times)
        job.enqueue_is_enabled = False
        # Who enables it again gives it as many tries.
        fail_times = 0
    if disables or fail_times != job.fail_times:
        job.fail_times = fail_times
        job.save(update_fields=["fail_times", "enqueue_is_enabled"])
    return disables


def _schedule_children(job: Job) -> None:
    children = job.children.select_related("template__project", "worker_pool")
    for child in children:
        waiting = Run.objects.filter(
            job=child,
            enqueue_dts=None,
            is_manual=False,
            schedule_dts__lte=timezone.now(),
        )
        if waiting.exists():
            continue
        try:
            planning.schedule(child)
        except NotAllowed as error:
            _log.info("job %d: not run after its parent: %s", child.pk, error)
