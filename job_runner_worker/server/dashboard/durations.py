"""How long jobs usually take: the median of their latest ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from statistics import median

from django.db.models import OuterRef, QuerySet, Subquery

from job_runner_worker.server.models import Job, Run

LATEST = 5
"""So many runs say what is usual."""


def usual_seconds(job_ids: Collection[int]) -> dict[int, float]:
    """Return the usual duration of each job that has ended before.

    Successes count, and failures only where there is no success. Two queries, however
    many jobs and runs there are: one looks into an index, ``LATEST`` times a job.
    """
    if not job_ids:
        return {}
    ended = Run.objects.filter(job=OuterRef("pk"), return_dts__isnull=False)
    ended = ended.order_by("-return_dts").values("pk")
    names = [f"run_{number}" for number in range(LATEST)]
    latest = {
        name: Subquery(ended[number : number + 1]) for number, name in enumerate(names)
    }
    jobs: QuerySet[Job] = Job.objects.filter(pk__in=job_ids).order_by()
    found = jobs.annotate(**latest).values_list(*names)
    run_ids = [run_id for row in found for run_id in row if run_id is not None]
    seconds: dict[bool, dict[int, list[float]]] = {
        True: defaultdict(list),
        False: defaultdict(list),
    }
    for job_id, success, began, end in (
        Run.objects.filter(pk__in=run_ids)
        .order_by()
        .values_list("job_id", "return_success", "start_dts", "return_dts")
    ):
        seconds[success][job_id].append(max((end - began).total_seconds(), 0.0))
    return {
        job_id: median(numbers)
        for job_id, numbers in {**seconds[False], **seconds[True]}.items()
    }
