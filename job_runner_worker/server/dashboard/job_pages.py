"""The pages of jobs: all of them, one of them, and its buttons."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST, require_safe

from job_runner_worker.errors import JobRunnerError
from job_runner_worker.server import planning
from job_runner_worker.server.api_auth import administered, may_change, visible
from job_runner_worker.server.dashboard import chain_graph, history_plot
from job_runner_worker.server.dashboard.access import changeable, page, seen
from job_runner_worker.server.dashboard.run_list import Filters, rows_of
from job_runner_worker.server.dashboard.run_page import start
from job_runner_worker.server.models import (
    Job,
    JobTemplate,
    Project,
    Run,
    Worker,
    WorkerPool,
)

PAGE_ROWS = 100
SHOWN_TIMES = 5
SHOWN_RUNS = 50
LISTED_RUNS = 10
ABOVE = ("template__project", "worker_pool")
_SWITCHED = {
    "job": Job,
    "template": JobTemplate,
    "project": Project,
    "pool": WorkerPool,
    "worker": Worker,
}


@page
@require_safe
def jobs(request: HttpRequest) -> HttpResponse:
    """Show all jobs, a page at a time."""
    filters = Filters.of(request)
    filters.load_choices()
    chosen = Q()
    if filters.project:
        chosen &= Q(template__project=filters.project)
    if filters.pool:
        chosen &= Q(worker_pool=filters.pool)
    if filters.text:
        chosen &= Q(title__icontains=filters.text)
    rows = visible(Job, request.user).filter(chosen).order_by("title", "id")
    paginator = Paginator(rows.only("pk"), PAGE_ROWS)
    found = paginator.get_page(request.GET.get("page"))
    keys = [job.pk for job in found]
    context = {
        "tab": "jobs",
        "filters": filters,
        "page": found,
        "jobs": _listed(keys),
        "may_create": may_create(request.user),
    }
    return render(request, "dashboard/jobs.html", context)


def may_create(person: Any) -> bool:
    """Return whether there is a project in which a person may make jobs."""
    return bool(administered(JobTemplate, person).exists())


def _listed(keys: list[int]) -> list[Any]:
    """Return some jobs with their next and their last run, in one query."""
    runs = Run.objects.filter(job=OuterRef("pk"))
    waiting = runs.filter(enqueue_dts=None).order_by("schedule_dts")
    last = runs.filter(return_dts__isnull=False).order_by("-return_dts")
    listed = (
        Job.objects.filter(pk__in=keys)
        .select_related(*ABOVE)
        .defer("script_content_partial", "description", "template__body")
        .prefetch_related("excluded")
        .annotate(
            next_dts=Subquery(waiting.values("schedule_dts")[:1]),
            last_id=Subquery(last.values("pk")[:1]),
        )
        .order_by("title", "id")
    )
    found = list(listed)
    ended = Run.objects.filter(pk__in=[job.last_id for job in found if job.last_id])
    rows = {row.run.job_id: row for row in rows_of(ended.order_by(), timezone.now())}
    for job in found:
        job.last_row = rows.get(job.pk)
        job.schedule_words = schedule_words(job)
    return found


@page
@require_safe
def show(request: HttpRequest, job_id: int) -> HttpResponse:
    """Show a job."""
    rows = Job.objects.select_related(*ABOVE, "parent").prefetch_related("excluded")
    job = seen(rows, request.user, job_id)
    now = timezone.now()
    runs = Run.objects.filter(job=job)
    ended = runs.filter(return_dts__isnull=False).order_by("-return_dts", "-id")
    history = rows_of(ended[:SHOWN_RUNS], now)
    going = runs.filter(return_dts=None).order_by("schedule_dts", "id")
    context = {
        "tab": "jobs",
        "job": job,
        "schedule_words": schedule_words(job),
        "plot": history_plot.plot_of(history),
        "history": history[:LISTED_RUNS],
        "going": rows_of(going[:LISTED_RUNS], now, with_usual=True),
        "graph": chain_graph.graph_of(job, visible(Job, request.user)),
        "disabled": _disabled_above(job, request.user),
        "may_change": may_change(job, request.user),
        **_times(job),
    }
    return render(request, "dashboard/job.html", context)


def _disabled_above(job: Any, person: Any) -> list[dict[str, Any]]:
    """Return what keeps a job from being enqueued, beside itself."""
    above = (
        ("template", job.template),
        ("project", job.template.project),
        ("pool", job.worker_pool),
    )
    return [
        {"kind": kind, "row": row, "may_change": may_change(row, person)}
        for kind, row in above
        if not row.enqueue_is_enabled
    ]


def _times(job: Any) -> dict[str, Any]:
    try:
        schedule = planning.schedule_of(job)
        times = planning.next_times(job, SHOWN_TIMES)
    except JobRunnerError as error:
        return {"schedule_problem": str(error)}
    zone = schedule.zone if schedule else ZoneInfo("UTC")
    local = (each.astimezone(zone) for each in times)
    # As text: templates would show them in the server's time zone.
    shown = [f"{each:%a %Y-%m-%d %H:%M}" for each in local]
    return {"times": shown, "zone": zone.key}


def schedule_words(job: Any) -> str:
    """Return when a job is due, in words."""
    if job.cron_expression:
        return f"cron {job.cron_expression}"
    if job.reschedule_interval and job.reschedule_interval_type:
        unit = job.get_reschedule_interval_type_display()
        number = job.reschedule_interval
        return (
            f"every {unit.removesuffix('s')}"
            if number == 1
            else (f"every {number} {unit}")
        )
    return ""


@page
@require_POST
def run(request: HttpRequest, job_id: int) -> HttpResponse:
    """Run a job by hand."""
    rows = Job.objects.select_related(*ABOVE)
    return start(request, changeable(rows, request.user, job_id))


@page
@require_POST
def switch(request: HttpRequest, kind: str, row_id: int) -> HttpResponse:
    """Enable or disable a job, or something above it."""
    if kind not in _SWITCHED:
        raise Http404(f"there is no {kind}")
    rows: QuerySet[Any] = _SWITCHED[kind].objects.all()
    row = changeable(rows, request.user, row_id)
    is_enabled = request.POST.get("enabled") == "1"
    planning.set_enabled(row, is_enabled)
    word = "enabled" if is_enabled else "disabled"
    messages.success(request, f"{row} is {word}.")
    back = request.POST.get("back", "")
    if not url_has_allowed_host_and_scheme(back, allowed_hosts=None):
        back = "/"
    return redirect(back)
