"""Which page is where."""

from __future__ import annotations

from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.views.generic import RedirectView

from job_runner_worker.server.dashboard import (
    job_forms,
    job_pages,
    project_pages,
    run_list,
    run_page,
    worker_pages,
)
from job_runner_worker.server.dashboard.access import secured


class Login(LoginView):
    """Where everybody logs in, staff and others."""

    template_name = "dashboard/login.html"
    redirect_authenticated_user = False

    def dispatch(self, request: HttpRequest, *args: str, **more: str) -> HttpResponse:
        """See View."""
        return secured(super().dispatch(request, *args, **more))


urlpatterns: list[URLPattern] = [
    path("", run_list.runs, name="runs"),
    path("login/", Login.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("runs/", RedirectView.as_view(pattern_name="runs", query_string=True)),
    path("runs/<int:run_id>/", run_page.show, name="run"),
    path("runs/<int:run_id>/log/", run_page.log, name="log"),
    path("runs/<int:run_id>/log.txt", run_page.download, name="download"),
    path("runs/<int:run_id>/kill/", run_page.kill, name="kill"),
    path("runs/<int:run_id>/again/", run_page.again, name="again"),
    path("jobs/", job_pages.jobs, name="jobs"),
    path("jobs/new/", job_forms.create, name="create"),
    path("jobs/<int:job_id>/", job_pages.show, name="job"),
    path("jobs/<int:job_id>/edit/", job_forms.edit, name="edit"),
    path("jobs/<int:job_id>/run/", job_pages.run, name="start"),
    path("projects/", project_pages.projects, name="projects"),
    path("switch/<str:kind>/<int:row_id>/", job_pages.switch, name="switch"),
    path("workers/", worker_pages.workers, name="workers"),
    path("workers/<int:worker_id>/ping/", worker_pages.ping, name="ping"),
]
