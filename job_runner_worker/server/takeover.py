"""``server import-job-runner``: what an original 3.5 server knows, for this one.

All in one transaction, into a database that has nothing yet. Ids are kept: workers
go on with the runs that they hold, and paths in bookmarks stay right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, time, timedelta
from itertools import islice
from typing import Any

from django.contrib.auth.models import Group, User
from django.core.management.color import no_style
from django.db import connection, transaction
from django.db.models import Model
from django.utils import timezone
from django.utils.dateparse import parse_datetime, parse_time

from job_runner_worker.errors import ConfigError
from job_runner_worker.server.models import (
    ExcludedTime,
    Job,
    JobTemplate,
    KillRequest,
    Project,
    Run,
    RunLog,
    Worker,
    WorkerPool,
)
from job_runner_worker.server.original_tables import Original, Row

BATCH_ROWS = 500
BATCH_LOGS = 50
"""A log may have a megabyte."""
_GROUP = ("id", "name")
_USER = (
    *("id", "username", "first_name", "last_name", "email", "password"),
    *("is_staff", "is_active", "is_superuser", "last_login", "date_joined"),
)
_TITLED = ("id", "title", "description", "enqueue_is_enabled")
_NOTIFIED = (*_TITLED, "notification_addresses")
_WORKER = (
    *(*_TITLED, "api_key", "secret"),
    *("ping_response_dts", "worker_version", "concurrent_jobs"),
)
_TEMPLATE = (*_NOTIFIED, "body", "project_id")
_JOB = (
    *(*_NOTIFIED, "script_content_partial"),
    *("job_template_id", "parent_id", "worker_pool_id"),
    *("reschedule_interval", "reschedule_interval_type"),
    *("run_on_all_workers", "schedule_children_on_error"),
    *("disable_enqueue_after_fails", "fail_times"),
)
_EXCLUDED = ("id", "job_id", "start_time", "end_time", "note")
_RUN = (
    *("id", "job_id", "worker_id", "schedule_id", "schedule_dts", "enqueue_dts"),
    *("start_dts", "return_dts", "return_success", "pid"),
    *("is_manual", "schedule_children"),
)
_LOG = ("id", "run_id", "content")
_KILL = ("id", "run_id", "schedule_dts", "enqueue_dts", "execute_dts")
_NOBODY = "taken over from Job-Runner while no worker held it"


def take_over(original: Original) -> dict[str, int]:
    """Return how many there were of what. Raises ConfigError and changes nothing.

    ``original`` is read as a whole, in the order in which things need each other.
    """
    with transaction.atomic():
        _require_nothing()
        copy = _Copy(original)
        copy.people()
        copy.places()
        copy.jobs()
        copy.history()
        for statement in connection.ops.sequence_reset_sql(no_style(), copy.models):
            with connection.cursor() as cursor:
                cursor.execute(statement)
        return copy.counts


def _require_nothing() -> None:
    for model in (Project, WorkerPool, Worker, Job, Run, User, Group):
        if model._default_manager.exists():
            name = model._meta.verbose_name_plural
            raise ConfigError(
                f"import-job-runner: this server has {name} already: import into a new"
                " database, before the first start (another --data, another --database)"
            )


class _Copy:
    """One after the other; ``counts`` says how many of what."""

    def __init__(self, original: Original) -> None:
        self.counts: dict[str, int] = {}
        self.models: list[type[Model]] = []
        self._original = original

    def people(self) -> None:
        """Copy groups, and who is in them; passwords stay good."""
        self._copy("groups", Group, "auth_group", _GROUP)
        self._copy("users", User, "auth_user", _USER)
        self._link(User.groups, "auth_user_groups")

    def places(self) -> None:
        """Copy projects, pools, workers and templates."""
        self._copy("workers", Worker, "job_runner_worker", _WORKER)
        self._copy("worker pools", WorkerPool, "job_runner_workerpool", _NOTIFIED)
        self._copy("projects", Project, "job_runner_project", _NOTIFIED)
        self._copy("job templates", JobTemplate, "job_runner_jobtemplate", _TEMPLATE)
        self._link(WorkerPool.workers, "job_runner_workerpool_workers")
        self._link(Project.worker_pools, "job_runner_project_worker_pools")
        self._link(Project.viewers, "job_runner_project_groups")
        self._link(Project.admins, "job_runner_project_auth_groups")

    def jobs(self) -> None:
        """Copy jobs, with what is planned of them."""
        plans = _plans(self._original)

        def job(row: Row) -> Row:
            row["template_id"] = row.pop("job_template_id")
            plan = plans.get(row["id"], {})
            if not (row["reschedule_interval"] and row["reschedule_interval_type"]):
                row |= {"reschedule_interval": None, "reschedule_interval_type": ""}
                # What waits of it was made by its parent's end.
                plan = {}
            return row | plan

        self._copy("jobs", Job, "job_runner_job", _JOB, job)
        table = "job_runner_rescheduleexclude"
        self._copy("excluded times", ExcludedTime, table, _EXCLUDED)

    def history(self) -> None:
        """Copy runs, logs and kill requests."""
        groups, now = _groups(self._original), timezone.now()

        def run(row: Row) -> Row:
            key = (row["job_id"], row["schedule_id"])
            row["schedule_id"] = groups.get(key, row["id"])
            return _in_a_state(row, now)

        def kill(row: Row) -> Row:
            row["enqueue_dts"] = row["enqueue_dts"] or row["execute_dts"]
            return row

        self._copy("runs", Run, "job_runner_run", _RUN, run)
        self._copy("logs", RunLog, "job_runner_runlog", _LOG, size=BATCH_LOGS)
        self._copy("kill requests", KillRequest, "job_runner_killrequest", _KILL, kill)

    def _copy(
        self,
        what: str,
        model: type[Model],
        table: str,
        columns: Sequence[str],
        change: Callable[[Row], Row] = lambda row: row,
        *,
        size: int = BATCH_ROWS,
    ) -> None:
        kinds = {each.attname: each for each in model._meta.concrete_fields}
        rows = self._original.rows(table, columns)
        objects = (
            model(**{name: _value(kinds[name], value) for name, value in row.items()})
            for row in map(change, rows)
        )
        self.models.append(model)
        self.counts[what] = _create(model, objects, size)

    def _link(self, relation: Any, table: str) -> None:
        through = relation.through
        columns = [each.attname for each in through._meta.concrete_fields[1:]]
        rows = self._original.rows(table, columns, ", ".join(columns))
        _create(through, (through(**row) for row in rows), BATCH_ROWS)


def _create(model: type[Model], objects: Iterator[Model], size: int) -> int:
    count = 0
    while batch := list(islice(objects, size)):
        model._default_manager.bulk_create(batch)
        count += len(batch)
    return count


def _plans(original: Original) -> dict[int, Row]:
    """Return of each job what its schedule is counted from, and what is planned.

    An original server adds the interval to the time of the last run that was not
    manual; ours counts from the first time.
    """
    query = (
        "SELECT job_id, id, schedule_id, schedule_dts, enqueue_dts FROM job_runner_run"
        " WHERE id IN (SELECT MAX(id) FROM job_runner_run WHERE NOT is_manual"
        " GROUP BY job_id)"
    )
    names = ("job_id", "id", "schedule_id", "schedule_dts", "enqueue_dts")
    groups = _groups(original)
    plans: dict[int, Row] = {}
    for row in original.ask(query, names):
        plan: Row = {"schedule_start_dts": row["schedule_dts"]}
        if row["enqueue_dts"] is None:
            key = (row["job_id"], row["schedule_id"])
            plan["planned_schedule_id"] = groups.get(key, row["id"])
        plans[row["job_id"]] = plan
    return plans


def _groups(original: Original) -> dict[tuple[int, int], int]:
    """Return the first run of each of several that were scheduled together."""
    query = (
        "SELECT job_id, schedule_id, MIN(id) FROM job_runner_run"
        " WHERE schedule_id IS NOT NULL GROUP BY job_id, schedule_id"
        " HAVING COUNT(*) > 1"
    )
    rows = original.ask(query, ("job_id", "schedule_id", "first"))
    return {(row["job_id"], row["schedule_id"]): row["first"] for row in rows}


def _in_a_state(run: Row, now: datetime) -> Row:
    """Give a run every date that comes before one it has, as our tables want them."""
    if run["enqueue_dts"] and not run["worker_id"] and not run["return_dts"]:
        run |= {"return_dts": now, "return_success": False, "reason": _NOBODY}
    if run["return_dts"]:
        run["return_success"] = bool(run["return_success"])
    else:
        run["return_success"] = None
    for name, later in (("start_dts", "return_dts"), ("enqueue_dts", "start_dts")):
        run[name] = run[name] or run[later]
    return run


def _value(field: Any, value: Any) -> Any:
    """Return what a field of ours takes; databases show dates and truth differently."""
    kind = field.get_internal_type()
    if value is None:
        return None if field.null else field.get_default()
    if kind == "DateTimeField":
        return _date(value)
    if kind == "TimeField":
        return _time(value)
    if kind == "BooleanField":
        return bool(value)
    # PostgreSQL has no NUL in texts.
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _date(value: Any) -> datetime | None:
    """Return a date: Django stores UTC where a database knows no time zones."""
    found = parse_datetime(value) if isinstance(value, str) else value
    return found.replace(tzinfo=UTC) if found and found.tzinfo is None else found


def _time(value: Any) -> time | None:
    if isinstance(value, timedelta):
        return (datetime.min + value).time()
    return parse_time(value) if isinstance(value, str) else value
