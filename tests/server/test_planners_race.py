"""Several planners at one database: each schedule has one next run."""

import threading

from job_runner_worker.server import planning
from job_runner_worker.server.models import Run

PLANNERS = 8
LIMIT_SECONDS = 60


def test_of_planners_that_plan_at_once_one_makes_the_next_run(site, database):
    jobs = [
        site.job(title=f"job {number}", cron_expression="0 4 * * *")
        for number in range(10)
    ]
    barrier = threading.Barrier(PLANNERS)
    failures = []

    def plan():
        from django.db import OperationalError, connection

        try:
            for job in jobs:
                barrier.wait(LIMIT_SECONDS)
                try:
                    planning.plan(job.pk)
                except OperationalError as error:
                    # SQLite is busy: the planner tries again later.
                    assert "locked" in str(error)
        except Exception as error:
            failures.append(error)
            barrier.abort()
        finally:
            connection.close()

    planners = [threading.Thread(target=plan) for _ in range(PLANNERS)]
    for planner in planners:
        planner.start()
    for planner in planners:
        planner.join(LIMIT_SECONDS)

    assert failures == []
    waiting = Run.objects.filter(enqueue_dts=None).order_by("job")
    assert list(waiting.values_list("job", flat=True)) == [job.pk for job in jobs]
