"""The resources that people keep: groups, projects, pools, workers, templates, jobs."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.db.models import Model, Prefetch, QuerySet
from django.http import HttpResponse
from rest_framework import exceptions
from rest_framework.serializers import Serializer

from job_runner_worker.server import job_changes, planning, serializers
from job_runner_worker.server.api_auth import may_change
from job_runner_worker.server.api_base import ApiView, DetailView, ListView
from job_runner_worker.server.job_serializers import PersonsJobSerializer, Switch
from job_runner_worker.server.models import (
    Job,
    JobTemplate,
    Project,
    Worker,
    WorkerPool,
)


class _SwitchedView(DetailView):
    """One row that can be enabled and disabled."""

    methods = ("GET", "PATCH")
    change_class = Switch

    def patch(self, request: Any, row_id: str) -> HttpResponse:
        """Enable or disable it."""
        row = self.row(row_id)
        person = self.the_person()
        self.check_may_switch(row, person)
        return self.switch(row, self.changes(row))

    def check_may_switch(self, row: Any, person: Any) -> None:
        """Refuse who does not administer it."""
        _check_administered(row, person)

    def switch(self, row: Any, values: dict[str, Any]) -> HttpResponse:
        """Do as is wanted."""
        if "enqueue_is_enabled" in values:
            planning.set_enabled(row, values["enqueue_is_enabled"])
        return HttpResponse(status=202)


class _Groups(ApiView):
    resource, model = "group", Group
    serializer_class = serializers.GroupSerializer

    def shown(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        return rows.order_by("name")


class GroupList(_Groups, ListView):
    """Groups of people."""

    orders = ("id", "name")


class GroupDetail(_Groups, DetailView):
    """A group of people."""


class _Projects(ApiView):
    resource, model = "project", Project
    serializer_class = serializers.ProjectSerializer

    def shown(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        return rows.prefetch_related("viewers", "admins", "worker_pools")


class ProjectList(_Projects, ListView):
    """Projects."""

    filters = {"title": "title"}
    orders = ("id", "title")


class ProjectDetail(_Projects, _SwitchedView):
    """A project."""


class _Pools(ApiView):
    resource, model = "worker_pool", WorkerPool
    serializer_class = serializers.WorkerPoolSerializer

    def shown(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        return rows.prefetch_related("workers")


class WorkerPoolList(_Pools, ListView):
    """Worker pools."""

    filters = {"title": "title"}
    orders = ("id", "title")


class WorkerPoolDetail(_Pools, _SwitchedView):
    """A worker pool. Projects share it: it is switched by staff."""

    def check_may_switch(self, row: Any, person: Any) -> None:
        """Refuse who is not of the staff."""
        _check_staff(person)


class _Templates(ApiView):
    resource, model = "job_template", JobTemplate
    serializer_class = serializers.JobTemplateSerializer


class JobTemplateList(_Templates, ListView):
    """Job templates."""

    filters = {"title": "title", "project": "project_id"}
    orders = ("id", "title")


class JobTemplateDetail(_Templates, _SwitchedView):
    """A job template."""


class _Workers(ApiView):
    resource, model = "worker", Worker
    serializer_class = serializers.WorkerSerializer


class WorkerList(_Workers, ListView):
    """Workers; one that asks finds itself alone."""

    filters = {"title": "title", "api_key": "api_key"}
    orders = ("id", "title", "ping_response_dts")


class WorkerDetail(_Workers, _SwitchedView):
    """A worker, which answers pings here, and is switched by staff."""

    change_class = serializers.WorkerChange

    def patch(self, request: Any, row_id: str) -> HttpResponse:
        """Note what a worker says of itself; enable or disable it."""
        worker = self.row(row_id)
        if not isinstance(request.user, Worker):
            _check_staff(request.user)
            return self.switch(worker, self.valid(Switch, self.body()))
        values = self.changes(worker)
        if values:
            Worker.objects.filter(pk=worker.pk).update(**values)
        return HttpResponse(status=202)


class _Jobs(ApiView):
    resource, model = "job", Job
    serializer_class = PersonsJobSerializer

    def show_class(self) -> type[Serializer]:
        is_worker = isinstance(self.request.user, Worker)
        return serializers.JobSerializer if is_worker else self.serializer_class

    def shown(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        children = Prefetch("children", Job.objects.only("parent_id"))
        rows = rows.select_related("template").prefetch_related(children)
        if isinstance(self.request.user, Worker):
            return rows
        return rows.prefetch_related("excluded")

    def store(self, job: Job, values: dict[str, Any]) -> Job:
        """Store a job with other values, which the caller may give it."""
        try:
            return job_changes.store(job, values, self.the_person())
        except ValidationError as error:
            raise exceptions.ValidationError(error.message_dict) from error


class JobList(_Jobs, ListView):
    """Jobs."""

    methods = ("GET", "POST")
    filters = {
        "title": "title",
        "parent": "parent_id",
        "job_template": "template_id",
        "worker_pool": "worker_pool_id",
        "project": "template__project_id",
    }
    orders = ("id", "title")

    def post(self, request: Any) -> HttpResponse:
        """Make a job in a project that the caller administers."""
        self.the_person()
        values = self.valid(self.serializer_class, self.body())
        return self.created(self.store(Job(), values))


class JobDetail(_Jobs, DetailView):
    """A job."""

    methods = ("GET", "PATCH")
    change_class = PersonsJobSerializer

    def patch(self, request: Any, row_id: str) -> HttpResponse:
        """Change a job that the caller administers; what is not named stays."""
        job = self.row(row_id)
        _check_administered(job, self.the_person())
        self.store(job, self.changes(job))
        return HttpResponse(status=202)


def _check_administered(row: Model, person: Any) -> None:
    if not may_change(row, person):
        kind = row._meta.verbose_name
        raise exceptions.PermissionDenied(f"this {kind} is not yours to change")


def _check_staff(person: Any) -> None:
    if not (person.is_staff or person.is_superuser):
        raise exceptions.PermissionDenied("only staff may do this")
