"""Who asks, and what is theirs to see.

A worker signs each request (protocol.md, section 3, "Authorization"); a person has
a session, as the login page gives. ``request.user`` is a Worker or a User.
"""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.contrib.auth.models import Group
from django.db.models import F, Model, Q, QuerySet
from django.db.models.signals import m2m_changed, post_delete, post_save
from django.utils.encoding import escape_uri_path
from rest_framework import authentication, exceptions

from job_runner_worker import auth
from job_runner_worker.server.models import (
    Job,
    JobTemplate,
    KillRequest,
    Project,
    Run,
    RunLog,
    Worker,
    WorkerPool,
)
from job_runner_worker.server.stamps import Stamps

KNOWN_SECONDS = 1.0
"""How long a worker is known by what the database has said of it.

What is changed in this process counts at once.
"""
_QUERY_SAFE = "/#%[]=:;$&()+,!?*@'~"

_TO_PROJECT = {
    Project: "pk",
    WorkerPool: "projects",
    Worker: "worker_pools__projects",
    JobTemplate: "project",
    Job: "template__project",
    Run: "job__template__project",
    RunLog: "run__job__template__project",
    KillRequest: "run__job__template__project",
}
"""The way from a model to the projects whose people may see it."""

_TO_POOL = {
    Project: "worker_pools",
    WorkerPool: "pk",
    JobTemplate: "jobs__worker_pool",
    Job: "worker_pool",
    Run: "job__worker_pool",
    RunLog: "run__job__worker_pool",
    KillRequest: "run__job__worker_pool",
}
"""The way from a model to the pools whose workers may see it."""

_TO_HOLDER = {
    Job: "runs__worker",
    Run: "worker",
    RunLog: "run__worker",
    KillRequest: "run__worker",
}
"""The way to the worker that holds a run, which sees it wherever its job is moved."""

_OF_RUNS = (Run, RunLog, KillRequest)

_OF_ONE_POOL = (Job, *_OF_RUNS)
_MANY = (Project, WorkerPool, Worker, JobTemplate, Job)
"""Models from which a way leads to many: asked as they are, rows would repeat."""

_SHARED = (Worker, WorkerPool)

SHA1_SETTING = "JOB_RUNNER_ACCEPTS_SHA1"
_stamps = Stamps()
_log = logging.getLogger(__name__)
_known: dict[str, tuple[float, Worker]] = {}
"""Workers with their pools, by key, and until when (monotonic seconds)."""


class WorkerAuthentication(authentication.BaseAuthentication):
    """Knows a worker by the signature of its request."""

    def authenticate(self, request: Any) -> tuple[Worker, None] | None:
        """Return the worker, None where no signature is claimed.

        Raises AuthenticationFailed where the signature is not good.
        """
        header = _as_sent(request.META.get("HTTP_AUTHORIZATION", ""))
        if not header:
            return None
        stamp = auth.stamp_of(header)
        if stamp is not None:
            api_key, verify = stamp.api_key, auth.verify_stamped
        else:
            if not getattr(settings, SHA1_SETTING, True):
                raise exceptions.AuthenticationFailed
            api_key, verify = auth.api_key_of(header) or "", auth.verify
        worker = _worker(api_key) if api_key and "\0" not in api_key else None
        if worker is None or not any(
            verify(header, worker.secret, request.method, target, request.body)
            for target in _targets(request)
        ):
            raise exceptions.AuthenticationFailed
        if stamp is not None and not _stamps.take(stamp, time.time()):
            _log.warning("a replayed or late request of %r is refused", stamp.api_key)
            raise exceptions.AuthenticationFailed
        return worker, None

    def authenticate_header(self, request: Any) -> str:
        """Return what makes a refusal a 401 and not a 403."""
        return auth.SCHEME


class PersonAuthentication(authentication.SessionAuthentication):
    """Knows a person by a session; what changes something needs the CSRF token, too."""

    def enforce_csrf(self, request: Any) -> None:
        """Look for the token in Django's request: in ours, it would parse the body."""
        super().enforce_csrf(request._request)


def _worker(api_key: str) -> Worker | None:
    """Return a worker with its pools: each of its many requests needs them."""
    until, worker = _known.get(api_key, (0.0, None))
    if worker is None or time.monotonic() >= until:
        rows = Worker.objects.prefetch_related("worker_pools")
        worker = rows.filter(api_key=api_key).first()
        if worker is None:
            return None
        _known[api_key] = time.monotonic() + KNOWN_SECONDS, worker
    return worker


def _forget_workers(**about: Any) -> None:
    _known.clear()


for _signal, _sender in (
    (post_save, Worker),
    (post_delete, Worker),
    (m2m_changed, WorkerPool.workers.through),
):
    _signal.connect(_forget_workers, sender=_sender)


def _targets(request: Any) -> list[str]:
    """Return what may have been signed: the path as sent, or as an original sees it.

    Django, and with it an original server, puts the path together again.
    """
    path = escape_uri_path(request.path)
    query = quote(request.META.get("QUERY_STRING", ""), safe=_QUERY_SAFE)
    targets = [f"{path}?{query}" if query else path]
    for name in ("REQUEST_URI", "RAW_URI"):
        if name in request.META:
            targets.insert(0, _as_sent(request.META[name]))
    return targets


def _as_sent(text: str) -> str:
    """WSGI shows bytes as if they were Latin-1."""
    return text.encode("latin-1", "replace").decode("utf-8", "replace")


def visible(model: type[Model], caller: Any) -> QuerySet[Any]:
    """Return the objects of a model that a worker or a person may see."""
    if isinstance(caller, Worker):
        return _of_worker(model, caller)
    if caller.is_staff or caller.is_superuser:
        return model.objects.all()
    if model is Group:
        return caller.groups.all()
    return _below(model, _projects(caller, Q(viewers__in=caller.groups.all())))


def own(rows: QuerySet[Any], caller: Any) -> list[Any]:
    """Return those of a few rows that are a worker's, with one plain query.

    They are of a run that it has claimed, or of its pools: part of what is visible,
    found much faster, and asked for most.
    """
    model = rows.model
    if not isinstance(caller, Worker) or model not in _OF_ONE_POOL:
        return []
    ways = {"of_pool": F(_TO_POOL[model])}
    if model in _OF_RUNS:
        ways["of_worker"] = F(_TO_HOLDER[model])
    pools = {pool.pk for pool in caller.worker_pools.all()}
    return [
        row
        for row in rows.order_by().annotate(**ways)
        if row.of_pool in pools or getattr(row, "of_worker", None) == caller.pk
    ]


def administered(model: type[Model], user: Any) -> QuerySet[Any]:
    """Return the objects of a model in which a person may start and stop things."""
    if user.is_staff or user.is_superuser:
        return model.objects.all()
    return _below(model, _projects(user, Q(pk=None)))


def may_change(row: Model, user: Any) -> bool:
    """Return whether a person may change, enable, start or stop something.

    Pools and workers are shared by projects: they are the staff's.
    """
    if user.is_staff or user.is_superuser:
        return True
    if isinstance(row, _SHARED):
        return False
    return administered(type(row), user).filter(pk=row.pk).exists()


def _projects(user: Any, also: Q) -> QuerySet[Any]:
    mine = Q(admins__in=user.groups.all()) | also
    return Project.objects.filter(mine).order_by().values("pk")


def _below(model: type[Model], projects: QuerySet[Any]) -> QuerySet[Any]:
    return _matching(model, Q(**{f"{_TO_PROJECT[model]}__in": projects}))


def _of_worker(model: type[Model], worker: Worker) -> QuerySet[Any]:
    if model is Worker:
        return Worker.objects.filter(pk=worker.pk)
    if model not in _TO_POOL:
        return model.objects.none()
    pools = worker.worker_pools.order_by().values("pk")
    mine = Q(**{f"{_TO_POOL[model]}__in": pools})
    if model in _TO_HOLDER:
        mine |= Q(**{_TO_HOLDER[model]: worker})
    return _matching(model, mine)


def _matching(model: type[Model], condition: Q) -> QuerySet[Any]:
    if model not in _MANY:
        return model.objects.filter(condition)
    keys = model.objects.filter(condition).order_by().values("pk")
    return model.objects.filter(pk__in=keys)
