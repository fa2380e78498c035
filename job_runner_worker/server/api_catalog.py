"""The resources that people keep: groups, projects, pools, workers, templates, jobs."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Group
from django.db.models import Prefetch, QuerySet
from django.http import HttpResponse
from rest_framework import exceptions

from job_runner_worker.server import serializers
from job_runner_worker.server.api_auth import administered, visible
from job_runner_worker.server.api_base import ApiView, DetailView, ListView
from job_runner_worker.server.models import (
    Job,
    JobTemplate,
    Project,
    Worker,
    WorkerPool,
)


class _Groups(ApiView):
    resource, model = "group", Group
    serializer_class = serializers.GroupSerializer

    def shown(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        return rows.order_by("name")


class GroupList(_Groups, ListView):
    """Groups of people."""


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


class ProjectDetail(_Projects, DetailView):
    """A project."""


class _Pools(ApiView):
    resource, model = "worker_pool", WorkerPool
    serializer_class = serializers.WorkerPoolSerializer

    def shown(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        return rows.prefetch_related("workers")


class WorkerPoolList(_Pools, ListView):
    """Worker pools."""

    filters = {"title": "title"}


class WorkerPoolDetail(_Pools, DetailView):
    """A worker pool."""


class _Templates(ApiView):
    resource, model = "job_template", JobTemplate
    serializer_class = serializers.JobTemplateSerializer


class JobTemplateList(_Templates, ListView):
    """Job templates."""

    filters = {"title": "title", "project": "project_id"}


class JobTemplateDetail(_Templates, DetailView):
    """A job template."""


class _Workers(ApiView):
    resource, model = "worker", Worker
    serializer_class = serializers.WorkerSerializer


class WorkerList(_Workers, ListView):
    """Workers; one that asks finds itself alone."""

    filters = {"title": "title", "api_key": "api_key"}


class WorkerDetail(_Workers, DetailView):
    """A worker, which answers pings here."""

    methods = ("GET", "PATCH")
    change_class = serializers.WorkerChange

    def patch(self, request: Any, row_id: str) -> HttpResponse:
        """Note what a worker says of itself."""
        worker = self.row(row_id)
        self.the_worker()
        values = self.changes(worker)
        if values:
            Worker.objects.filter(pk=worker.pk).update(**values)
        return HttpResponse(status=202)


class _Jobs(ApiView):
    resource, model = "job", Job
    serializer_class = serializers.JobSerializer

    def shown(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        children = Prefetch("children", Job.objects.only("parent_id"))
        return rows.select_related("template").prefetch_related(children)


class JobList(_Jobs, ListView):
    """Jobs."""

    methods = ("GET", "POST")
    filters = {
        "title": "title",
        "parent": "parent_id",
        "job_template": "template_id",
        "worker_pool": "worker_pool_id",
    }

    def post(self, request: Any) -> HttpResponse:
        """Make a job in a project that the caller administers."""
        person = self.the_person()
        values = self.valid(self.serializer_class, self.body())
        template, parent = values["template"], values["parent"]
        if not administered(JobTemplate, person).filter(pk=template.pk).exists():
            raise exceptions.PermissionDenied("this template is not yours to use")
        if parent and not administered(Job, person).filter(pk=parent.pk).exists():
            raise exceptions.PermissionDenied("this parent is not yours to use")
        pools = visible(WorkerPool, person)
        if not pools.filter(pk=values["worker_pool"].pk).exists():
            raise exceptions.PermissionDenied("this worker pool is not yours to use")
        return self.created(Job.objects.create(**values))


class JobDetail(_Jobs, DetailView):
    """A job."""
