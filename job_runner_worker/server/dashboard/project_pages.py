"""The page of projects and their templates, which are enabled and disabled here."""

from __future__ import annotations

from django.db.models import Count, Prefetch
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from job_runner_worker.server.api_auth import administered, visible
from job_runner_worker.server.dashboard.access import page
from job_runner_worker.server.models import JobTemplate, Project


@page
@require_safe
def projects(request: HttpRequest) -> HttpResponse:
    """Show projects and templates, with as many queries however many there are."""
    templates = visible(JobTemplate, request.user).annotate(job_count=Count("jobs"))
    shown = visible(Project, request.user).prefetch_related(
        Prefetch("job_templates", templates.order_by("title", "id").defer("body"))
    )
    mine = administered(Project, request.user).values_list("pk", flat=True)
    context = {
        "tab": "jobs",
        "projects": shown.order_by("title", "id"),
        "mine": set(mine),
        "is_staff": request.user.is_staff or request.user.is_superuser,
    }
    return render(request, "dashboard/projects.html", context)
