"""The resources that workers report on: runs, their logs, and kill requests.

What is said of a run is done by lifecycle. A PATCH may say several things at once;
they are done in the order of a run's life, all or none. Fields that are not the
caller's to set are ignored, as unknown ones are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import F, OuterRef, Q, QuerySet, Subquery
from django.http import HttpResponse
from django.utils import timezone
from rest_framework import exceptions

from job_runner_worker.server import job_lock, lifecycle, offers, planning, serializers
from job_runner_worker.server.api_auth import administered, visible
from job_runner_worker.server.api_base import (
    ApiView,
    DetailView,
    ListView,
    json_answer,
    moment_in,
)
from job_runner_worker.server.job_lock import End, Known, Work
from job_runner_worker.server.lifecycle import Conflict
from job_runner_worker.server.models import Job, KillRequest, Run, RunLog, Worker
from job_runner_worker.server.serializers import uri_of

_FOR_PEOPLE = {"schedule_dts", "schedule_children"}
"""What people may change of a run that waits."""
_WITH_END = ("exit_status", "reason", "log", "usage")


class _Runs(ApiView):
    resource, model = "run", Run
    serializer_class = serializers.RunSerializer

    def shown(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        return rows.annotate(log_id=F("run_log__pk"))


class RunList(_Runs, ListView):
    """Runs, the latest first."""

    methods = ("GET", "POST")
    filters = {
        "job": "job_id",
        "worker": "worker_id",
        "worker__api_key": "worker__api_key",
        "worker_pool": "job__worker_pool_id",
        "project": "job__template__project_id",
        "schedule_id": "schedule_id",
        "host": "host",
    }
    orders = ("id", "schedule_dts", "enqueue_dts", "start_dts", "return_dts")

    def matching(self, rows: QuerySet[Any], query: Any) -> QuerySet[Any]:
        """See ListView; and ``state``, which if unknown is every state.

        ``due=yes``: what a worker in cron mode may start now.
        """
        rows = in_state(super().matching(rows, query), query.get("state", ""))
        if "schedule_dts__lte" in query:
            rows = rows.filter(schedule_dts__lte=moment_in(query, "schedule_dts__lte"))
        if query.get("due") == "yes":
            enabled = Q(job__worker_pool__enqueue_is_enabled=True)
            caller = self.request.user
            if isinstance(caller, Worker) and not caller.enqueue_is_enabled:
                enabled = Q(pk=None)
            waiting = offers.due(timezone.now()).order_by().values("pk")
            rows = rows.filter(enabled, pk__in=waiting)
        return rows

    def post(self, request: Any) -> HttpResponse:
        """Schedule a run of a job that the caller administers."""
        person = self.the_person()
        values = self.valid(self.serializer_class, self.body())
        job = values.pop("job")
        if not administered(Job, person).filter(pk=job.pk).exists():
            raise exceptions.PermissionDenied("this job is not yours to start")
        worker = values["worker"]
        if worker and not job.worker_pool.workers.filter(pk=worker.pk).exists():
            message = "the only worker to run it has to be in the job's pool"
            raise exceptions.ValidationError({"worker": [message]})
        # For this run; the job is not saved.
        job.host = values.pop("host") or job.host
        at = values.pop("schedule_dts", None)
        return self.created(lifecycle.schedule(job, at, **values))


class RunDetail(_Runs, DetailView):
    """A run, which its worker moves from state to state here."""

    methods = ("GET", "PATCH")
    change_class = serializers.RunChange

    def patch(self, request: Any, row_id: str) -> HttpResponse:
        """Claim a run, note its start, end it, or hand it back.

        A claim ``with_job`` is answered with what the worker has to know. People who
        administer its job may change when it is due, and whether children follow.
        """
        if not isinstance(request.user, Worker):
            return self._change(self.row(row_id))
        run = self._known(row_id)
        worker = self.the_worker()
        fields = self.changes(run)
        if fields.get("worker") not in (None, worker):
            raise exceptions.AuthenticationFailed
        steps = _steps(run, worker, fields)
        with transaction.atomic() if len(steps) > 1 else nullcontext():
            found = [step() for step in steps]
        if not _is_with_job(fields):
            return _done()
        return _shown(found[0] or job_lock.work_of(run.pk))

    def _known(self, row_id: str) -> Known:
        """Return the run, if the caller may see it; with one plain query if it may."""
        caller = self.request.user
        run_id = self.row_number(row_id)
        if isinstance(caller, Worker):
            run = self._looked_up(run_id)
            if run is not None and (
                run.worker_id == caller.pk
                or any(pool.pk == run.pool_id for pool in caller.worker_pools.all())
            ):
                return run
        self.row(row_id)
        if (run := self._looked_up(run_id)) is None:
            raise exceptions.NotFound
        return run

    def _looked_up(self, run_id: int) -> Known | None:
        """Return a run as a batch has read it ahead, once, or as it is now."""
        ahead = getattr(self.request, "ahead", {}).pop(run_id, None)
        return ahead or job_lock.known(run_id).get(run_id)

    def _change(self, run: Run) -> HttpResponse:
        if not administered(Job, self.the_person()).filter(pk=run.job_id).exists():
            raise exceptions.PermissionDenied("this run is not yours to change")
        fields = self.changes(run)
        planning.change_waiting(
            run.pk, **{name: fields[name] for name in _FOR_PEOPLE if name in fields}
        )
        return _done()

    def body(self) -> dict[str, Any]:
        """See ApiView. What is not a worker's to set is ignored, whatever it is.

        That a worker names itself needs no look into the database.
        """
        fields = super().body()
        if isinstance(self.request.user, Worker):
            fields = {name: fields[name] for name in fields.keys() - _FOR_PEOPLE}
        if fields.get("worker") == uri_of("worker", self.request.user.pk):
            del fields["worker"]
        return fields


class _RunLogs(ApiView):
    resource, model = "run_log", RunLog
    serializer_class = serializers.RunLogSerializer


class RunLogList(_RunLogs, ListView):
    """Logs of runs."""

    methods = ("GET", "POST")
    filters = {"run": "run_id"}

    def post(self, request: Any) -> HttpResponse:
        """Store the log of a run that the worker has claimed."""
        worker = self.the_worker()
        values = self.valid(self.serializer_class, _with_run(self.body()))
        run = values["run"]
        if run.worker_id != worker.pk:
            _check_visible(run, worker)
        _check_holder(run, worker)
        return self.created(lifecycle.add_log(run.pk, values["content"]))


class RunLogDetail(_RunLogs, DetailView):
    """The log of a run."""

    methods = ("GET", "PATCH")
    change_class = serializers.RunLogChange

    def patch(self, request: Any, row_id: str) -> HttpResponse:
        """Replace the log by what there is of it now."""
        log = self.row(row_id)
        worker = self.the_worker()
        fields = self.changes(log)
        if "content" in fields:
            _check_holder(log.run, worker)
            lifecycle.put_log(log.run_id, fields["content"])
        return _done()


class _KillRequests(ApiView):
    resource, model = "kill_request", KillRequest
    serializer_class = serializers.KillRequestSerializer


class KillRequestList(_KillRequests, ListView):
    """Kill requests."""

    methods = ("GET", "POST")
    filters = {"run": "run_id"}

    def matching(self, rows: QuerySet[Any], query: Any) -> QuerySet[Any]:
        """See ListView; and ``enqueue_dts__isnull=true``: what nobody has taken."""
        rows = super().matching(rows, query)
        if query.get("enqueue_dts__isnull") == "true":
            rows = rows.filter(enqueue_dts=None)
        return rows

    def post(self, request: Any) -> HttpResponse:
        """Ask for a run to be killed, as its worker or one who administers it."""
        caller = request.user
        run = self.valid(self.serializer_class, _with_run(self.body()))["run"]
        if isinstance(caller, Worker):
            _check_visible(run, caller)
        elif not administered(Run, caller).filter(pk=run.pk).exists():
            raise exceptions.PermissionDenied("this run is not yours to kill")
        is_worker = isinstance(caller, Worker)
        name = f"worker {caller.api_key}" if is_worker else caller.get_username()
        return self.created(lifecycle.request_kill(run.pk, name[:150]))


class KillRequestDetail(_KillRequests, DetailView):
    """A kill request."""

    methods = ("GET", "PATCH")
    change_class = serializers.KillRequestChange

    def patch(self, request: Any, row_id: str) -> HttpResponse:
        """Note how far a worker has got with it."""
        kill_request = self.row(row_id)
        self.the_worker()
        fields = self.changes(kill_request)
        if fields.get("enqueue_dts"):
            lifecycle.kill_enqueued(kill_request.pk, fields["enqueue_dts"])
        if fields.get("execute_dts"):
            lifecycle.kill_executed(kill_request.pk, fields["execute_dts"])
        return _done()


def in_state(runs: QuerySet[Any], state: str) -> QuerySet[Any]:
    """Return the runs in a state of protocol.md, section 1; '' is every state."""
    match state:
        case "scheduled":
            return runs.filter(enqueue_dts=None)
        case "in_queue":
            # What has not started has not ended either; see below.
            held = {"enqueue_dts__isnull": False, "return_dts": None}
            return runs.filter(start_dts=None, **held)
        case "started":
            # What has started is enqueued: said, it is found by the index of such runs.
            held = {"enqueue_dts__isnull": False, "return_dts": None}
            return runs.filter(start_dts__isnull=False, **held)
        case "completed":
            return runs.filter(return_dts__isnull=False)
        case "completed_successful":
            return runs.filter(return_success=True)
        case "completed_with_error":
            return runs.filter(return_success=False)
        case "last_completed":
            of_same_job = Run.objects.filter(
                job=OuterRef("job"), return_dts__isnull=False
            ).order_by("-return_dts", "-pk")
            return runs.filter(pk=Subquery(of_same_job.values("pk")[:1]))
    return runs


def _steps(
    run: Known, worker: Worker, fields: dict[str, Any]
) -> list[Callable[[], Work | None]]:
    """Return what a PATCH of a run asks to be done; a claim comes first."""
    steps: list[Callable[[], Any]] = []
    enqueued = fields.get("enqueue_dts")
    started, pid, host = (fields.get(name) for name in ("start_dts", "pid", "host"))
    returned, success = fields.get("return_dts"), fields.get("return_success")
    if enqueued is not None:
        is_first = {"is_first": True} if _is_with_job(fields) else {}
        steps.append(partial(lifecycle.claim, run.pk, worker, enqueued, **is_first))
    elif "enqueue_dts" in fields:
        steps.append(partial(lifecycle.reset, run.pk, worker))
    if started is None and enqueued is None and not run.is_claimed:
        # An original server takes a pid for a run that nobody holds; nothing uses it.
        pid, host = None, None
    if started is not None or pid is not None or host:
        steps.append(partial(lifecycle.start, run.pk, worker, started, pid, host or ""))
    if returned is not None and success is not None:
        if "log" in fields:
            _check_holder(run, worker)
        more = {name: fields[name] for name in _WITH_END if name in fields}
        end = End(returned, success, **more)
        steps.append(partial(lifecycle.end, run.pk, worker, end))
    elif returned is not None or success is not None:
        name = "return_dts" if returned is None else "return_success"
        raise exceptions.ValidationError({name: "the end of a run has both"})
    elif "return_dts" in fields and run.has_ended:
        raise Conflict(f"run {run.pk} has ended")
    return steps


def _is_with_job(fields: dict[str, Any]) -> bool:
    return bool(fields.get("with_job")) and fields.get("enqueue_dts") is not None


def _shown(work: Work) -> HttpResponse:
    """Return what a worker has to know of a run that it has claimed."""
    log_id = work.log_id
    job = {
        "resource_uri": uri_of("job", work.job_id),
        "title": work.job_title,
        "script_content": work.script,
    }
    log_uri = None if log_id is None else uri_of("run_log", log_id)
    return json_answer({"run_log": log_uri, "job": job}, status=202)


def _with_run(fields: dict[str, Any]) -> dict[str, Any]:
    """Without a run there is none to be found: an original server says so with 404."""
    if fields.get("run") is None:
        raise exceptions.NotFound("`run`: say which")
    return fields


def _check_visible(run: Run, worker: Worker) -> None:
    if not visible(Run, worker).filter(pk=run.pk).exists():
        raise exceptions.AuthenticationFailed


def _check_holder(run: Run | Known, worker: Worker) -> None:
    if run.worker_id != worker.pk:
        raise Conflict(f"run {run.pk} is not held by this worker")


def _done() -> HttpResponse:
    return HttpResponse(status=202)
