"""The page of pools and their workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from job_runner_worker.server import notices
from job_runner_worker.server.api_auth import visible
from job_runner_worker.server.dashboard.access import changeable, page
from job_runner_worker.server.dashboard.run_words import Look
from job_runner_worker.server.models import Run, Worker, WorkerPool

ANSWERS = Look("succeeded", "responsive")
SILENT = Look("failed", "not responsive")
NEVER = Look("waiting", "never heard")
DISABLED = Look("disabled", "disabled")
LOOKED_AT = ("enqueue_is_enabled", "ping_response_dts", "unresponsive_dts")
"""The fields that the look of a worker depends on."""


@dataclass(frozen=True, slots=True)
class Row:
    """A worker as it is shown."""

    worker: Any
    look: Look
    busy: int

    @property
    def slots(self) -> int:
        """How many runs it takes at once; 0 where it has never said so."""
        return self.worker.concurrent_jobs or 0


@page
@require_safe
def workers(request: HttpRequest) -> HttpResponse:
    """Show pools and workers, with as many queries however many there are."""
    now = timezone.now()
    pools = visible(WorkerPool, request.user).order_by("title", "id")
    seen = visible(Worker, request.user).order_by("title", "id")
    held = Run.objects.filter(enqueue_dts__isnull=False, return_dts=None).order_by()
    busy = dict(held.values_list("worker").annotate(Count("pk")))
    rows = {
        worker.pk: Row(worker, look_of(worker), busy.get(worker.pk, 0))
        for worker in seen.defer("secret")
    }
    members = WorkerPool.workers.through.objects.filter(worker__in=list(rows))
    in_pools = set(members.values_list("workerpool_id", "worker_id"))
    due = Run.objects.filter(enqueue_dts=None, schedule_dts__lte=now).order_by()
    waiting = dict(due.values_list("job__worker_pool").annotate(Count("pk")))
    shown = [
        {
            "pool": pool,
            "rows": [row for key, row in rows.items() if (pool.pk, key) in in_pools],
            "waiting": waiting.get(pool.pk, 0),
        }
        for pool in pools
    ]
    placed = {key for _, key in in_pools}
    context = {
        "tab": "workers",
        "pools": shown,
        "others": [row for key, row in rows.items() if key not in placed],
        "is_staff": request.user.is_staff or request.user.is_superuser,
    }
    return render(request, "dashboard/workers.html", context)


@page
@require_POST
def ping(request: HttpRequest, worker_id: int) -> HttpResponse:
    """Ask a worker whether it is there; its answer is seen on the page."""
    worker = changeable(Worker.objects.all(), request.user, worker_id)
    notices.tell(notices.PingRequested(worker.api_key))
    messages.success(request, f"{worker} is asked; its answer appears as last ping.")
    return redirect("workers")


def look_of(worker: Any) -> Look:
    """Return how a worker is; who is silent has been judged by the health check."""
    if not worker.enqueue_is_enabled:
        return DISABLED
    if worker.ping_response_dts is None:
        return NEVER
    return ANSWERS if worker.unresponsive_dts is None else SILENT
