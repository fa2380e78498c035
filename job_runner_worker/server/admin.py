"""Django's admin for every model. Runs are looked at here, and moved by lifecycle."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from job_runner_worker.server import lifecycle, planning
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
from job_runner_worker.server.scheduling import ScheduleError, next_times

SHOWN_TIMES = 5


class _LookOnly(admin.ModelAdmin):
    """Rows that are made and changed elsewhere."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class _Planned(admin.ModelAdmin):
    """Rows whose change may move the next runs of jobs."""

    def save_related(
        self, request: HttpRequest, form: Any, formsets: Any, change: bool
    ) -> None:
        """Plan anew when all of it is stored."""
        super().save_related(request, form, formsets, change)
        planning.replan(form.instance)

    @admin.action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        """Enable each."""
        for row in rows:
            planning.set_enabled(row, True)

    @admin.action(description="Disable", permissions=["change"])
    def disable(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        """Disable each."""
        for row in rows:
            planning.set_enabled(row, False)

    actions: tuple[Any, ...] = (enable, disable)


class ExcludedTimes(admin.TabularInline):
    """Times of day at which a job is not due."""

    model = ExcludedTime
    extra = 0


@admin.register(Project)
class ProjectAdmin(_Planned):
    """Projects, with their people and pools."""

    list_display = ("title", "enqueue_is_enabled")
    list_filter = ("enqueue_is_enabled", "worker_pools")
    search_fields = ("title", "description")
    filter_horizontal = ("viewers", "admins", "worker_pools")


@admin.register(WorkerPool)
class WorkerPoolAdmin(_Planned):
    """Pools, with their workers."""

    list_display = ("title", "enqueue_is_enabled")
    list_filter = ("enqueue_is_enabled",)
    search_fields = ("title", "description")
    filter_horizontal = ("workers",)


@admin.register(Worker)
class WorkerAdmin(_Planned):
    """Workers, with the secrets that they are to be given."""

    list_display = (
        "title",
        "api_key",
        "enqueue_is_enabled",
        "ping_response_dts",
        "worker_version",
        "concurrent_jobs",
    )
    list_filter = ("enqueue_is_enabled", "worker_pools", "worker_version")
    search_fields = ("title", "api_key", "description")
    readonly_fields = ("ping_response_dts", "worker_version", "concurrent_jobs")


@admin.register(JobTemplate)
class JobTemplateAdmin(_Planned):
    """Templates of scripts."""

    list_display = ("title", "project", "enqueue_is_enabled")
    list_filter = ("enqueue_is_enabled", "project")
    search_fields = ("title", "description", "body")


@admin.register(Job)
class JobAdmin(_Planned):
    """Jobs, which can be run from here."""

    list_display = ("title", "template", "worker_pool", "parent", "enqueue_is_enabled")
    list_filter = ("enqueue_is_enabled", "template__project", "worker_pool")
    list_select_related = ("template", "worker_pool", "parent")
    search_fields = ("title", "description", "script_content_partial")
    raw_id_fields = ("parent",)
    readonly_fields = ("next_times", "schedule_error", "fail_times")
    inlines = (ExcludedTimes,)
    actions = (*_Planned.actions, "run_now", "run_now_without_children")

    @admin.display(description="next times")
    def next_times(self, job: Job) -> str:
        """Return the next five times, in the job's time zone."""
        try:
            schedule = planning.schedule_of(job) if job.pk else None
        except ScheduleError as error:
            return str(error)
        if schedule is None:
            return ""
        found = next_times(schedule, timezone.now(), SHOWN_TIMES)
        local = (each.astimezone(schedule.zone) for each in found)
        return ", ".join(f"{each:%a %Y-%m-%d %H:%M}" for each in local)

    @admin.action(description="Run now", permissions=["change"])
    def run_now(self, request: HttpRequest, jobs: QuerySet[Job]) -> None:
        """Schedule a manual run of each job."""
        self._run(request, jobs, with_children=True)

    @admin.action(description="Run now without children", permissions=["change"])
    def run_now_without_children(
        self, request: HttpRequest, jobs: QuerySet[Job]
    ) -> None:
        """Schedule a manual run of each job that is followed by none."""
        self._run(request, jobs, with_children=False)

    def _run(
        self, request: HttpRequest, jobs: QuerySet[Job], with_children: bool
    ) -> None:
        for job in jobs:
            try:
                run = planning.run_now(job, with_children=with_children)
            except lifecycle.NotAllowed as error:
                messages.warning(request, f"{job}: {error}")
            else:
                messages.success(request, f"{job}: {run} is scheduled")


@admin.register(Run)
class RunAdmin(_LookOnly):
    """Runs, which can be killed from here."""

    list_display = (
        "id",
        "job",
        "worker",
        "schedule_dts",
        "start_dts",
        "return_dts",
        "return_success",
        "exit_status",
    )
    list_filter = (
        "return_success",
        "is_manual",
        "job__template__project",
        "job__worker_pool",
        "worker",
    )
    list_select_related = ("job", "worker")
    search_fields = ("=id", "job__title", "reason", "host")
    date_hierarchy = "schedule_dts"
    actions = ("kill",)

    @admin.action(description="Kill", permissions=["kill"])
    def kill(self, request: HttpRequest, runs: QuerySet[Run]) -> None:
        """Ask for each run to be killed."""
        for run in runs:
            try:
                lifecycle.request_kill(run.pk, request.user.get_username())
            except lifecycle.Conflict as error:
                messages.warning(request, str(error))
            else:
                messages.success(request, f"{run} is asked to be killed")

    def has_kill_permission(self, request: HttpRequest) -> bool:
        """Return whether a person may ask for kills."""
        return request.user.has_perm("server.add_killrequest")


@admin.register(RunLog)
class RunLogAdmin(_LookOnly):
    """Logs of runs."""

    list_display = ("id", "run", "job")
    list_filter = ("run__job__template__project",)
    list_select_related = ("run__job",)
    search_fields = ("=run__id", "run__job__title", "content")

    @admin.display(ordering="run__job__title")
    def job(self, log: RunLog) -> str:
        """Return the job's title."""
        return str(log.run.job)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the logs; in a list without their contents, which may be long."""
        logs: QuerySet[Any] = super().get_queryset(request)
        match = request.resolver_match
        is_list = match is not None and match.url_name == "server_runlog_changelist"
        return logs.defer("content") if is_list else logs


@admin.register(KillRequest)
class KillRequestAdmin(_LookOnly):
    """Kill requests."""

    list_display = (
        *("id", "run", "requested_by"),
        *("schedule_dts", "enqueue_dts", "execute_dts"),
    )
    list_filter = ("run__job__template__project",)
    list_select_related = ("run",)
    search_fields = ("=run__id", "run__job__title")
    date_hierarchy = "schedule_dts"
