"""The page of a run: what became of it, its log as it grows, and the buttons."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from job_runner_worker.server import lifecycle, planning
from job_runner_worker.server.api_auth import may_change
from job_runner_worker.server.dashboard import log_part, run_words
from job_runner_worker.server.dashboard.access import changeable, page, seen
from job_runner_worker.server.dashboard.durations import usual_seconds
from job_runner_worker.server.dashboard.run_list import Row
from job_runner_worker.server.dashboard.run_words import duration_of, look_of
from job_runner_worker.server.models import Run, RunLog

SHOWN_KILLS = 5


@dataclass(frozen=True, slots=True)
class Step:
    """A point in the life of a run, and how long after the one before."""

    name: str
    at: datetime | None
    after: timedelta | None = None


def _runs() -> QuerySet[Any]:
    return Run.objects.select_related(
        "job__template__project", "job__worker_pool", "worker", "offered_to"
    )


@page
@require_safe
def show(request: HttpRequest, run_id: int) -> HttpResponse:
    """Show a run."""
    run = seen(_runs(), request.user, run_id)
    now = timezone.now()
    usual = usual_seconds([run.job_id]).get(run.job_id)
    is_theirs = may_change(run, request.user)
    kills = list(run.kill_requests.all()[:SHOWN_KILLS])
    context = {
        "tab": "runs",
        "run": run,
        "row": Row(run, look_of(run, now), duration_of(run, now), usual),
        "steps": steps_of(run),
        "used": run_words.used(run.usage or {}),
        "kills": kills,
        "may_kill": is_theirs and run.return_dts is None,
        "may_run": is_theirs,
        "script": run.job.script_content,
    }
    return render(request, "dashboard/run.html", context)


@page
@require_safe
def log(request: HttpRequest, run_id: int) -> HttpResponse:
    """Return the part of a log that is new to the browser."""
    run = seen(Run.objects.only("return_dts"), request.user, run_id)
    query = request.GET
    start = query.get("start", "")
    known = int(start) if start.isascii() and start.isdigit() and len(start) < 10 else 0
    found = log_part.part(run.pk, known, query.get("check", ""), whole="all" in query)
    found["has_ended"] = run.return_dts is not None
    return JsonResponse(found, json_dumps_params={"ensure_ascii": False})


@page
@require_safe
def download(request: HttpRequest, run_id: int) -> HttpResponse:
    """Return a log as a file."""
    run = seen(Run.objects.only("pk"), request.user, run_id)
    found = RunLog.objects.filter(run=run).values_list("content", flat=True).first()
    return HttpResponse(
        found or "",
        content_type="text/plain; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="run-{run.pk}.log"'},
    )


@page
@require_POST
def kill(request: HttpRequest, run_id: int) -> HttpResponse:
    """Ask for a run to be killed."""
    run = changeable(_runs(), request.user, run_id)
    try:
        lifecycle.request_kill(run.pk, request.user.get_username())
    except lifecycle.Conflict as error:
        messages.warning(request, f"Nothing to kill: {error}.")
    return redirect("run", run.pk)


@page
@require_POST
def again(request: HttpRequest, run_id: int) -> HttpResponse:
    """Run the job of a run once more, by hand."""
    run = changeable(_runs(), request.user, run_id)
    return start(request, run.job)


def start(request: HttpRequest, job: Any) -> HttpResponse:
    """Start a run of a job by hand; go to its page, or say why there is none."""
    try:
        new = planning.run_now(job, with_children="alone" not in request.POST)
    except lifecycle.NotAllowed as error:
        messages.warning(request, f"Not started: {error}.")
        return redirect("job", job.pk)
    return redirect("run", new.pk)


def steps_of(run: Any) -> list[Step]:
    """Return the timeline of a run; what has not happened has no date."""
    points = [
        ("scheduled for", run.schedule_dts),
        ("claimed", run.enqueue_dts),
        ("started", run.start_dts),
        ("ended", run.return_dts),
    ]
    steps: list[Step] = []
    before: datetime | None = None
    for name, at in points:
        after = at - before if at and before else None
        steps.append(Step(name, at, after if after and after > timedelta() else None))
        before = at or before
    return steps
