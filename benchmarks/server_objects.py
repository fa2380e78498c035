"""Makes in a server's database what its REST API does not make; a process of its own.

``server_objects.py DATA workers COUNT`` makes workers in the pool that is there, and
one in a pool of its own; prints a JSON list of their keys and secrets, that one last.
``server_objects.py DATA jobs JOB COUNT`` makes jobs that are like one; prints the list
of their ids. ``server_objects.py DATA runs JOB COUNT`` makes such jobs with a run each
that is not due for a long time, as a job is not run twice at once; prints the list of
the runs' ids. ``server_objects.py DATA crowd COUNT`` makes many workers in one pool;
prints the pool's id and the secret that they share. ``server_objects.py DATA history
JOB COUNT STARTED`` makes many runs that have ended and a few that go on, of 500 such
jobs; for PostgreSQL. PostgreSQL's URL is in
$JOB_RUNNER_DATABASE.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from job_runner_worker.server import django_settings
from job_runner_worker.server.serve import DATABASE_VARIABLE

FAR = timedelta(days=100)


def main(arguments: Sequence[str]) -> None:
    """Do what the command line says."""
    data_path, what, *numbers = arguments
    url = os.environ.get(DATABASE_VARIABLE) or None
    django_settings.configure(Path(data_path), url)
    make = {
        "workers": _make_workers,
        "jobs": _make_jobs,
        "runs": _make_runs,
        "crowd": _make_crowd,
        "history": _make_history,
    }[what]
    print(json.dumps(make(*map(int, numbers))))


def _make_workers(count: int) -> list[dict[str, Any]]:
    from job_runner_worker.server.models import Project, Worker, WorkerPool

    pool = WorkerPool.objects.get()
    other = WorkerPool.objects.create(title="listener")
    Project.objects.get().worker_pools.add(other)
    found = []
    for number in range(count + 1):
        key = f"bench{number}"
        worker = Worker.objects.create(title=key, api_key=key)
        (pool if number < count else other).workers.add(worker)
        found.append({"api_key": key, "secret": worker.secret, "id": worker.pk})
    return found


def _make_jobs(job_id: int, count: int) -> list[int]:
    from job_runner_worker.server.models import Job

    found = []
    for _ in range(count):
        job = Job.objects.get(pk=job_id)
        job.pk = None
        found.append(job)
    return [job.pk for job in Job.objects.bulk_create(found)]


def _make_runs(job_id: int, count: int) -> list[int]:
    from django.db import transaction
    from django.db.models import F
    from django.utils import timezone

    from job_runner_worker.server.models import Run

    due_at = timezone.now() + FAR
    with transaction.atomic():
        made = [
            Run.objects.create(job_id=each, schedule_dts=due_at).pk
            for each in _make_jobs(job_id, count)
        ]
        Run.objects.filter(pk__in=made).update(schedule_id=F("pk"))
    return made


def _make_crowd(count: int) -> dict[str, Any]:
    from django.db import transaction

    from job_runner_worker.server.models import Project, Worker, WorkerPool

    secret = secrets.token_hex(20)
    keys = [f"crowd{number}" for number in range(count)]
    with transaction.atomic():
        pool = WorkerPool.objects.create(title="crowd")
        Project.objects.get().worker_pools.add(pool)
        workers = Worker.objects.bulk_create(
            [Worker(title=key, api_key=key, secret=secret) for key in keys],
            batch_size=200,
        )
        pool.workers.add(*workers)
    return {"pool": pool.pk, "secret": secret}


def _make_history(job_id: int, count: int, started: int) -> int:
    """One run a minute; one of twenty has failed."""
    from django.db import connection

    from job_runner_worker.server.models import Worker

    jobs = _make_jobs(job_id, HISTORY_JOBS)
    worker = Worker.objects.order_by("pk").values_list("pk", flat=True)[0]
    with connection.cursor() as cursor:
        with _bare_table(cursor):
            cursor.execute(_HISTORY, [jobs[0], HISTORY_JOBS, worker, count, started])
        cursor.execute("SELECT setval('server_run_id_seq', max(id)) FROM server_run")
        # What the server itself would have done in months.
        cursor.execute("VACUUM ANALYZE server_run")
    return count


@contextmanager
def _bare_table(cursor: Any) -> Iterator[None]:
    """Take the indexes and foreign keys of runs away meanwhile.

    To look each of a million rows up takes minutes; to make an index of them, seconds.
    """
    cursor.execute(_FOREIGN_KEYS)
    keys = cursor.fetchall()
    cursor.execute(_INDEXES)
    indexes = cursor.fetchall()
    for name, _ in keys:
        cursor.execute(f'ALTER TABLE server_run DROP CONSTRAINT "{name}"')
    for name, _ in indexes:
        cursor.execute(f'DROP INDEX "{name}"')
    yield
    cursor.execute("SET maintenance_work_mem TO '256MB'")
    for _, definition in indexes:
        cursor.execute(definition)
    for name, definition in keys:
        cursor.execute(
            f'ALTER TABLE server_run ADD CONSTRAINT "{name}" {definition} NOT VALID'
        )


_FOREIGN_KEYS = """
SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = 'server_run'::regclass AND contype = 'f'
"""
_INDEXES = """
SELECT indexname, indexdef FROM pg_indexes
WHERE tablename = 'server_run' AND indexname NOT IN (
    SELECT conname FROM pg_constraint WHERE conrelid = 'server_run'::regclass
)
"""
HISTORY_JOBS = 500
_HISTORY = """
INSERT INTO server_run (
    id, schedule_id, job_id, worker_id,
    schedule_dts, enqueue_dts, start_dts, return_dts, return_success,
    pid, is_manual, schedule_children, exit_status, reason, host, ended_by_server
)
SELECT
    total - number + 1, total - number + 1,
    %s + number %% %s, %s, due, due, due,
    CASE WHEN goes_on THEN NULL ELSE due + interval '30 seconds' END,
    CASE WHEN goes_on THEN NULL ELSE number %% 20 <> 0 END,
    4711, FALSE, TRUE,
    CASE WHEN goes_on THEN NULL WHEN number %% 20 = 0 THEN 1 ELSE 0 END,
    '', 'node', FALSE
FROM (
    SELECT
        number,
        total,
        now() - number * interval '1 minute' AS due,
        number <= started AS goes_on
    FROM (SELECT generate_series(total, 1, -1) AS number, total, started
        FROM (VALUES (%s::int, %s::int)) AS sizes (total, started)) AS numbers
) AS rows
"""

if __name__ == "__main__":
    main(sys.argv[1:])
