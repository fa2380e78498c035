"""The rows that an original server had when its answers were recorded."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

from job_runner_worker.server.models import Job, Run, RunLog, Worker

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
OURS_ON_RUN = {
    "exit_status",
    "reason",
    "usage",
    "host",
    "late_return_dts",
    "late_return_success",
    "late_exit_status",
}
"""Fields of a run that an original server does not have."""
OURS_ON_JOB = {"host"}
OURS = {"run": OURS_ON_RUN, "job": OURS_ON_JOB, "worker": {"batch_uri"}}
_AMSTERDAM = timezone(timedelta(hours=1))
_RESOURCE = re.compile(r"/api/v1/(\w+)/(\d+)/")


def load(name):
    return json.loads((VECTORS / name).read_text("utf-8"))


def id_in(uri):
    return None if uri is None else int(_RESOURCE.fullmatch(uri)[2])


def answered_objects(exchanges):
    """The first that was answered of each object, by resource and id."""
    found = {}
    for exchange in exchanges:
        response = exchange["response"]
        if response["status"] != 200 or not response["body"].startswith("{"):
            continue
        try:
            body = json.loads(response["body"])
        except ValueError:  # cut by who recorded it
            continue
        for row in body.get("objects", [body]):
            match = _RESOURCE.fullmatch(row.get("resource_uri", ""))
            if match:
                found.setdefault((match[1], int(match[2])), row)
    return found


def date(text):
    if text is None:
        return None
    return datetime.fromisoformat(text).replace(tzinfo=_AMSTERDAM)


def make_worker(site, row):
    Worker.objects.filter(pk=site.worker.pk).update(
        title=row["title"],
        ping_response_dts=date(row["ping_response_dts"]),
        worker_version=row["worker_version"],
        concurrent_jobs=row["concurrent_jobs"],
    )


def make_job(site, job_id, row=None, *, other=False):
    row = row or {"title": f"job {job_id}", "script_content": "#!/bin/sh\ntrue\n"}
    return site.job(row["script_content"], title=row["title"], pk=job_id, other=other)


def make_run(site, row, *, job=None):
    dates = ("schedule_dts", "enqueue_dts", "start_dts", "return_dts")
    job_id = id_in(row["job"])
    if job is None and not Job.objects.filter(pk=job_id).exists():
        make_job(site, job_id)
    run = Run.objects.create(
        pk=row["id"],
        job_id=job_id,
        worker_id=site.worker.pk if row["worker"] else None,
        return_success=row["return_success"],
        pid=row["pid"],
        schedule_id=row["schedule_id"],
        **{name: date(row[name]) for name in dates},
    )
    if row["run_log"]:
        RunLog.objects.create(pk=id_in(row["run_log"]), run=run, content="")
    return run


def rename_rows(site):
    """Give the workers and pools the ids that were recorded."""
    for worker in (site.worker, site.other_worker):
        worker.delete()
    for worker, row_id in ((site.worker, 1), (site.other_worker, 2)):
        worker.pk = row_id
        worker.save(force_insert=True)
    for row in (site.other_template, site.other_pool, site.template, site.pool):
        row.delete()
    for pool, row_id in ((site.pool, 1), (site.other_pool, 2)):
        pool.pk = row_id
        pool.save(force_insert=True)
    for template, row_id in ((site.template, 1), (site.other_template, 2)):
        template.pk = row_id
        template.save(force_insert=True)
    site.pool.workers.add(site.worker)
    site.other_pool.workers.add(site.other_worker)
    site.project.worker_pools.add(site.pool)
    site.other_project.worker_pools.add(site.other_pool)
