"""How long jobs usually take: the median of their latest ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from statistics import median

from django.db import connection
from django.db.models import DurationField, ExpressionWrapper, F

from job_runner_worker.server.models import Run

LATEST = 5
"""So many runs say what is usual."""
_LATEST_RUN = """(
    SELECT run.id FROM server_run AS run
    WHERE run.job_id = job.id AND run.return_dts IS NOT NULL
    ORDER BY run.return_dts DESC LIMIT 1 OFFSET {number}
)"""
_LATEST_RUNS = (
    "SELECT "
    + ", ".join(_LATEST_RUN.format(number=number) for number in range(LATEST))
    + " FROM server_job AS job"
)


def usual_seconds(job_ids: Collection[int]) -> dict[int, float]:
    """Return the usual duration of each job that has ended before.

    Successes count, and failures only where there is no success. Two queries, however
    many jobs and runs there are: one looks into an index, ``LATEST`` times a job.
    """
    if not job_ids:
        return {}
    places = ", ".join(["%s"] * len(job_ids))
    with connection.cursor() as cursor:
        # Django takes longer to write it than a database to answer it.
        cursor.execute(f"{_LATEST_RUNS} WHERE job.id IN ({places})", [*job_ids])
        found = cursor.fetchall()
    run_ids = [run_id for row in found for run_id in row if run_id is not None]
    seconds: dict[bool, dict[int, list[float]]] = {
        True: defaultdict(list),
        False: defaultdict(list),
    }
    took = ExpressionWrapper(F("return_dts") - F("start_dts"), DurationField())
    for job_id, success, duration in (
        Run.objects.filter(pk__in=run_ids)
        .order_by()
        .values_list("job_id", "return_success", took)
    ):
        seconds[success][job_id].append(max(duration.total_seconds(), 0.0))
    return {
        job_id: median(numbers)
        for job_id, numbers in {**seconds[False], **seconds[True]}.items()
    }
