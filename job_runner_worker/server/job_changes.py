"""Jobs as people make and change them, whether by the API or in the dashboard."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from job_runner_worker.server import planning
from job_runner_worker.server.api_auth import administered, visible
from job_runner_worker.server.models import Job, JobTemplate, WorkerPool
from job_runner_worker.server.refusals import NotAllowed
from job_runner_worker.server.validators import check_job


def store(job: Job, values: dict[str, Any], person: Any) -> Job:
    """Store a job, new or not, with other values; what is due follows.

    ``excluded`` in ``values`` are rows in place of those there were. Raises
    NotAllowed where a value is not the person's to give, ValidationError where two do
    not go together.
    """
    check_theirs(values, person)
    excluded = values.pop("excluded", None)
    for name, value in values.items():
        setattr(job, name, value)
    check_job(job)
    with transaction.atomic():
        # Of a job that is there, nothing else: a run may end at this moment.
        job.save(update_fields=list(values) if job.pk else None)
        if excluded is not None:
            job.excluded.all().delete()
            for each in excluded:
                job.excluded.create(**each)
        planning.replan(job)
    return job


def check_theirs(values: dict[str, Any], person: Any) -> None:
    """Raise NotAllowed for a template, parent or pool that a person may not use."""
    for name, rows in (
        ("template", administered(JobTemplate, person)),
        ("parent", administered(Job, person)),
        ("worker_pool", visible(WorkerPool, person)),
    ):
        row = values.get(name)
        if row is not None and not rows.filter(pk=row.pk).exists():
            kind = row._meta.verbose_name if name != "parent" else name
            raise NotAllowed(f"this {kind} is not yours to use")
