"""What each claim, start and end of a run asks, in SQL of its own.

Django takes longer to write these statements than a database to execute them, and
every run needs them. Each is to be found by an index, however many runs a job has.

The lock comes first, as a statement of its own: what PostgreSQL reads in the next one
is as whoever had the lock before has left it. Both go in one trip (statements).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from django.db import connection

from job_runner_worker.server import script_template
from job_runner_worker.server.statements import Call, Result, execute, statement

_LOCK = statement(
    "lock",
    "bigint",
    """
SELECT 1 FROM server_job
WHERE id = (SELECT job_id FROM server_run WHERE id = %s)
FOR NO KEY UPDATE
""",
)
_OFFER = statement(
    "offer",
    "bigint timestamptz bigint",
    """
UPDATE server_run SET offered_to_id = %s, offered_dts = %s
WHERE id = %s AND enqueue_dts IS NULL AND return_dts IS NULL
""",
)
_CLAIM = statement(
    "claim",
    "bigint timestamptz bigint bigint",
    """
UPDATE server_run SET worker_id = %s, enqueue_dts = %s
WHERE id = %s AND enqueue_dts IS NULL AND return_dts IS NULL
AND (worker_id IS NULL OR worker_id = %s) AND NOT EXISTS (
    SELECT 1 FROM server_run AS other
    WHERE other.job_id = server_run.job_id
    AND other.enqueue_dts IS NOT NULL AND other.return_dts IS NULL
    AND COALESCE(other.schedule_id, 0) <> COALESCE(server_run.schedule_id, 0)
)
""",
)
_HELD = """
WHERE id = %s AND worker_id = %s AND enqueue_dts IS NOT NULL AND return_dts IS NULL
"""
_START = statement(
    "start",
    "timestamptz bigint text bigint bigint",
    f"""
UPDATE server_run SET start_dts = COALESCE(start_dts, %s), pid = COALESCE(%s, pid),
    host = COALESCE(%s, host) {_HELD}
""",
)
_FINISH = statement(
    "finish",
    "timestamptz timestamptz boolean integer text jsonb bigint bigint",
    f"""
UPDATE server_run SET start_dts = COALESCE(start_dts, %s), return_dts = %s,
    return_success = %s, exit_status = %s, reason = %s, usage = %s {_HELD}
""",
)
_KNOWN = statement(
    "known",
    "bigint",
    """
SELECT run.worker_id, run.enqueue_dts, run.return_dts, job.worker_pool_id
FROM server_run AS run JOIN server_job AS job ON job.id = run.job_id WHERE run.id = %s
""",
)
_SEQUEL = statement(
    "sequel",
    "timestamptz bigint",
    """
SELECT
    run.schedule_id IS NULL
    OR job.fail_times > 0
    OR COALESCE(job.planned_schedule_id = run.schedule_id, FALSE)
    OR EXISTS (
        SELECT 1 FROM server_run AS other
        WHERE other.schedule_id = run.schedule_id AND other.id <> run.id
    )
    OR (run.schedule_children AND EXISTS (
        SELECT 1 FROM server_job AS child WHERE child.parent_id = job.id
    )),
    (
        SELECT waiting.id FROM server_run AS waiting
        WHERE waiting.job_id = run.job_id AND waiting.enqueue_dts IS NULL
        AND waiting.schedule_dts <= %s
        ORDER BY waiting.schedule_dts LIMIT 1
    )
FROM server_run AS run JOIN server_job AS job ON job.id = run.job_id
WHERE run.id = %s
""",
)
_WORK = statement(
    "work",
    "bigint",
    """
SELECT
    job.id, job.title, job.script_content_partial, template.id, template.body, log.id
FROM server_run AS run
JOIN server_job AS job ON job.id = run.job_id
JOIN server_jobtemplate AS template ON template.id = job.template_id
LEFT JOIN server_runlog AS log ON log.run_id = run.id
WHERE run.id = %s
""",
)
_PUT_LOG = statement(
    "put_log",
    "text bigint",
    """
INSERT INTO server_runlog (run_id, content)
SELECT id, %s FROM server_run WHERE id = %s AND (return_dts IS NULL OR ended_by_server)
ON CONFLICT (run_id) DO UPDATE SET content = excluded.content
""",
)


@dataclass(frozen=True, slots=True)
class Sequel:
    """What comes after the end of a run."""

    has_more: bool
    """Whether a success changes anything but the run: it is none of a job alone."""
    next_run_id: int | None
    """A run of the same job that is due and waits."""


@dataclass(frozen=True, slots=True)
class End:
    """How a run has ended; ``log`` is what is to be stored with it, if anything."""

    at: datetime
    success: bool
    exit_status: int | None = None
    reason: str = ""
    log: str | None = None
    usage: dict[str, float | None] | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What has become of an end: whether it and its log are stored, what follows."""

    has_ended: bool
    has_log: bool
    sequel: Sequel | None
    """None where there is no such run."""


@dataclass(frozen=True, slots=True)
class Known:
    """What has to be known of a run before it is changed."""

    pk: int
    worker_id: int | None
    is_claimed: bool
    has_ended: bool
    pool_id: int


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker needs to know of a run that it has claimed."""

    job_id: int
    job_title: str
    script: str
    log_id: int | None


def take(run_id: int) -> None:
    """Let nobody else change the job of a run until the transaction ends.

    Runs of a job are claimed and ended under this lock, one after the other. It
    comes before the lock of any run: who took them the other way would wait for ever.
    """
    if lock := _lock(run_id):
        execute(*lock)


def offer(workers: Mapping[int, int], at: datetime) -> set[int]:
    """Note which worker each run is offered to; return the runs that wait."""
    when = _date(at)
    results = execute(
        *((_OFFER, [worker_id, when, run_id]) for run_id, worker_id in workers.items())
    )
    made = zip(workers, results, strict=True)
    return {run_id for run_id, result in made if result.count}


def claim(
    run_id: int, worker_id: int, at: datetime, *, with_work: bool = False
) -> tuple[bool, Work | None]:
    """Give a run to a worker; return False where it does not wait, or its job is run.

    Beside that, what there is to do, where it is asked for and there is such a run.

    Nor is one given that waits for another worker: it is for that one alone, or was
    handed back by it. Runs that were scheduled together are run at the same time. The
    job is locked meanwhile, or until the end of the transaction where there is one.
    """
    given = [worker_id, _date(at), run_id, worker_id]
    lock = _lock(run_id)
    work = [(_WORK, [run_id])] if with_work else []
    results = execute(*lock, (_CLAIM, given), *work)
    is_claimed = bool(results[len(lock)].count)
    return is_claimed, _work_in(results[-1]) if with_work else None


def start(
    run_id: int, worker_id: int, at: datetime | None, pid: int | None, host: str
) -> bool:
    """Note what is given of a start; return False where the worker has not the run."""
    when = None if at is None else _date(at)
    given = [when, pid, host or None, run_id, worker_id]
    (started,) = execute((_START, given))
    return bool(started.count)


def finish(run_id: int, worker_id: int, end: End, now: datetime) -> Finished:
    """End a run and store its log, as far as each may be; lock the job.

    To be called in a transaction.
    """
    when = _date(end.at)
    usage = None if end.usage is None else json.dumps(end.usage)
    given = [when, when, end.success, end.exit_status, end.reason, usage]
    given += [run_id, worker_id]
    log = [] if end.log is None else [(_PUT_LOG, [end.log, run_id])]
    *before, ended, follows = execute(
        *_lock(run_id), *log, (_FINISH, given), _sequel(run_id, now)
    )
    return Finished(
        has_ended=bool(ended.count),
        has_log=bool(log and before[-1].count),
        sequel=_sequel_in(follows),
    )


def known(*run_ids: int) -> dict[int, Known]:
    """Return whose runs are and how far they have got, of those that there are."""
    found = {}
    for run_id, result in zip(
        run_ids, execute(*((_KNOWN, [each]) for each in run_ids)), strict=True
    ):
        for worker_id, enqueued, returned, pool_id in result.rows:
            found[run_id] = Known(
                run_id, worker_id, enqueued is not None, returned is not None, pool_id
            )
    return found


def sequel(run_id: int, now: datetime) -> Sequel:
    """Return what comes after the end of a run, whose job is locked."""
    (found,) = execute(_sequel(run_id, now))
    made = _sequel_in(found)
    assert made is not None
    return made


def work_of(run_id: int) -> Work:
    """Return the script of a run that there is, and the log that it may have."""
    (found,) = execute((_WORK, [run_id]))
    work = _work_in(found)
    assert work is not None
    return work


def put_log(run_id: int, content: str) -> bool:
    """Store the log of a run; return False where it has ended, or there is none."""
    (stored,) = execute((_PUT_LOG, [content, run_id]))
    return bool(stored.count)


def _lock(run_id: int) -> list[Call]:
    # On SQLite whoever has a transaction is alone, and a claim is one statement.
    return [(_LOCK, [run_id])] if connection.vendor == "postgresql" else []


def _sequel(run_id: int, now: datetime) -> Call:
    return _SEQUEL, [_date(now), run_id]


def _sequel_in(found: Result) -> Sequel | None:
    for has_more, next_run_id in found.rows:
        return Sequel(bool(has_more), next_run_id)
    return None


def _work_in(found: Result) -> Work | None:
    for job_id, title, content, template_id, body, log_id in found.rows:
        script = script_template.script_of(body, content, template_id)
        return Work(job_id, title, script, log_id)
    return None


def _date(at: datetime) -> object:
    return connection.ops.adapt_datetimefield_value(at)
