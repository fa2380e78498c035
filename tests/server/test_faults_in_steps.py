"""A process that dies within a step of a run: either nothing has changed or all.

Started as a program, this file forks a child for each statement of each step: the
child is killed (-9) when the database has executed that statement.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest

LIMIT_SECONDS = 100
AT = datetime(2026, 11, 22, 2, 25, 59, 46521, tzinfo=UTC)
KEY = "testworker"
STEPS = (
    "schedule",
    "offer",
    "claim",
    "start",
    "add_log",
    "store_log",
    "finish",
    "finish_before_children",
    "finish_late",
    "plan",
    "replan",
    "fail_unresponsive",
    "reset",
    "reset_while_to_be_killed",
    "request_kill_of_an_unclaimed_run",
    "request_kill_of_a_claimed_run",
    "kill_enqueued",
    "kill_executed",
)


@pytest.fixture(scope="module")
def observed(database):
    """What the program saw of each step, made once for each database."""

    @cache
    def observe():
        where = [str(database.data_path), database.url or ""]
        program = [sys.executable, __file__, *where]
        return json.loads(subprocess.check_output(program, timeout=LIMIT_SECONDS))

    return observe


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_is_cut_short_has_happened_as_a_whole_or_not_at_all(observed, step):
    found = observed()[step]

    assert found["before"] != found["after"]
    assert len(found["cut_short"]) > 0
    for state in found["cut_short"]:
        assert state in (found["before"], found["after"])


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_step_that_was_cut_short_may_be_tried_again(observed, step):
    found = observed()[step]

    assert found["again"] == [found["after"]] * len(found["cut_short"])


def observe_all(data_path, url):
    from job_runner_worker.server import django_settings

    django_settings.configure(Path(data_path), url or None)
    print(json.dumps({step: observe(step) for step in STEPS}))


def observe(step):
    """Cut a step short after its first statement, its second, until none is left."""
    found = {"before": None, "after": None, "cut_short": [], "again": []}
    while found["after"] is None:
        act = prepared(step)
        found["before"] = state()
        is_whole = is_done_whole(act, len(found["cut_short"]) + 1)
        if is_whole:
            found["after"] = state()
        else:
            found["cut_short"].append(state())
            try_again(act)
            found["again"].append(state())
    return found


def is_done_whole(act, statements):
    """Return whether a child did it; it is killed after so many statements."""
    close_connection()
    pid = os.fork()
    if not pid:
        act_and_die(act, statements)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status == 0


def act_and_die(act, statements):
    from django.db import connection

    executed = 0

    def count(execute, *arguments):
        nonlocal executed
        result = execute(*arguments)
        executed += 1
        if executed == statements:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    status = 1
    try:
        with connection.execute_wrapper(count):
            act()
        status = 0
    finally:
        os._exit(status)


def try_again(act):
    from job_runner_worker.server.lifecycle import LifecycleError

    with suppress(LifecycleError):  # It had happened.
        act()


def close_connection():
    """Leave a child nothing to share."""
    from django.db import connection

    connection.close()
    if connection.vendor == "postgresql":
        connection.close_pool()


def prepared(step):
    """Make what a step needs; return the step."""
    from job_runner_worker.server import lifecycle
    from job_runner_worker.server.offers import OfferBook

    job, worker = made()
    if step in ("plan", "replan"):
        return planned(step, job)
    if step == "finish_before_children":
        add_child(job)
    if step == "schedule":
        return lambda: lifecycle.schedule(job)
    run = lifecycle.schedule(job).pk
    if step == "offer":
        lifecycle.schedule(job)
        return lambda: OfferBook().make(datetime.now(UTC), {KEY: datetime.now(UTC)})
    if step == "request_kill_of_an_unclaimed_run":
        return lambda: lifecycle.request_kill(run)
    if step == "claim":
        return lambda: lifecycle.claim(run, worker, AT)
    lifecycle.claim(run, worker, AT)
    if step == "finish_late":
        lifecycle.fail_unresponsive(run, "silent")
    if step == "store_log":
        lifecycle.add_log(run, "first")
    kill = None
    if step in ("reset_while_to_be_killed", "kill_enqueued", "kill_executed"):
        kill = lifecycle.request_kill(run).pk
    return {
        "start": lambda: lifecycle.start(run, worker, AT, 4711, "node7"),
        "add_log": lambda: lifecycle.add_log(run, "first"),
        "store_log": lambda: lifecycle.store_log(run, "second"),
        "finish": lambda: lifecycle.finish(run, worker, AT, False, 3, "why"),
        "finish_before_children": lambda: lifecycle.finish(run, worker, AT, True, 0),
        "finish_late": lambda: lifecycle.finish(run, worker, AT, True, 0),
        "fail_unresponsive": lambda: lifecycle.fail_unresponsive(run, "silent"),
        "reset": lambda: lifecycle.reset(run, worker),
        "reset_while_to_be_killed": lambda: lifecycle.reset(run, worker),
        "request_kill_of_a_claimed_run": lambda: lifecycle.request_kill(run),
        "kill_enqueued": lambda: lifecycle.kill_enqueued(kill, AT),
        "kill_executed": lambda: lifecycle.kill_executed(kill, AT),
    }[step]


def planned(step, job):
    from job_runner_worker.server import planning

    job.cron_expression = "30 4 * * *"
    job.save()
    if step == "plan":
        return lambda: planning.plan(job.pk)
    planning.plan(job.pk)
    job.cron_expression = "15 5 * * *"
    job.save()
    return lambda: planning.replan(job)


def add_child(job):
    job.children.create(
        title="child",
        script_content_partial="#!/bin/sh\n",
        template=job.template,
        worker_pool=job.worker_pool,
    )


def made():
    """Return the only job, which has no runs, and the only worker."""
    from job_runner_worker.server import models

    models.Run.objects.all().delete()
    models.Job.objects.exclude(parent=None).delete()
    models.Job.objects.update(
        cron_expression="", planned_schedule_id=None, fail_times=0
    )
    job = models.Job.objects.first()
    if job is None:
        worker = models.Worker.objects.create(title="w", api_key=KEY, concurrent_jobs=4)
        project = models.Project.objects.create(title="p")
        pool = models.WorkerPool.objects.create(title="p")
        pool.workers.add(worker)
        project.worker_pools.add(pool)
        template = models.JobTemplate.objects.create(title="t", project=project)
        job = models.Job.objects.create(
            title="j",
            script_content_partial="#!/bin/sh\n",
            template=template,
            worker_pool=pool,
        )
    return job, models.Worker.objects.get(api_key=KEY)


def state():
    """Return all runs, kill requests and logs, without numbers that differ."""
    from job_runner_worker.server.models import Job, KillRequest, Run, RunLog

    found = [
        sorted(RunLog.objects.values_list("content", flat=True)),
        list(Job.objects.order_by("pk").values_list("fail_times", flat=True)),
    ]
    for model in (Run, KillRequest):
        for row in model.objects.order_by("pk").values():
            if "job_id" in row:
                row["job"] = Job.objects.get(pk=row.pop("job_id")).title
                row["time"] = f"{row['schedule_dts']:%H:%M}" if is_planned(row) else ""
            own_schedule = row.get("schedule_id") == row["id"]
            row.pop("id"), row.pop("run_id", None), row.pop("schedule_id", None)
            dates = {name: row[name] is None for name in row if name.endswith("_dts")}
            found.append({**row, **dates, "has_own_schedule_id": own_schedule})
    return found


def is_planned(row):
    from job_runner_worker.server.models import Job

    plans = Job.objects.values_list("planned_schedule_id", flat=True)
    return row.get("schedule_id") in set(plans) - {None}


if __name__ == "__main__":
    observe_all(*sys.argv[1:])
