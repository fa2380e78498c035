"""The page of runs: what is due, what goes on, what has ended.

It has to be as fast with a million runs as with ten: nothing is counted without a
bound, and what has ended is paged by its key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import F, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from job_runner_worker.server.api_auth import visible
from job_runner_worker.server.api_runs import in_state
from job_runner_worker.server.dashboard import worker_pages
from job_runner_worker.server.dashboard.access import page
from job_runner_worker.server.dashboard.durations import usual_seconds
from job_runner_worker.server.dashboard.run_words import Look, duration_of, look_of
from job_runner_worker.server.models import Job, Project, Run, Worker, WorkerPool
from job_runner_worker.server.serializers import MAX_ID

PAGE_ROWS = 40
GOING_ROWS = 50
WAITING_ROWS = 20
MAX_COUNT = 1000
MAX_CHOICES = 500
MAX_JOBS = 1000
"""Runs of so many jobs are looked for by their jobs' keys."""
STATES = (
    ("", "any state"),
    ("scheduled", "scheduled or waiting"),
    ("in_queue", "queued"),
    ("started", "running"),
    ("completed", "finished"),
    ("completed_successful", "succeeded"),
    ("completed_with_error", "failed or killed"),
)
_SHOWN = (
    *("pk", "schedule_dts", "enqueue_dts", "start_dts", "return_dts"),
    *("return_success", "exit_status", "reason", "is_manual", "late_return_dts"),
    "job_id",
    "worker_id",
)
_NAMED = {
    "job_title": F("job__title"),
    "project_title": F("job__template__project__title"),
    "worker_title": F("worker__title"),
}
"""Of what a run belongs to, its names are all that is shown."""
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Row:
    """A run as it is shown in a list."""

    run: Any
    look: Look
    duration: timedelta | None
    usual_seconds: float | None = None

    @property
    def expected(self) -> float | None:
        """How long it usually takes, as the end of a progress bar."""
        return max(self.usual_seconds, 0.1) if self.usual_seconds is not None else None

    @property
    def is_overdue(self) -> bool:
        """Whether it takes much longer than usual."""
        if self.expected is None or self.duration is None:
            return False
        return self.duration.total_seconds() > max(2 * self.expected, 10.0)


def rows_of(
    runs: QuerySet[Any], now: datetime, *, with_usual: bool = False
) -> list[Row]:
    """Return runs as they are shown: one query, and two for what is usual."""
    named = runs.annotate(**_NAMED).values_list(*_SHOWN, *_NAMED, named=True)
    found = list(named)
    usual = usual_seconds({run.job_id for run in found}) if with_usual else {}
    return [
        Row(run, look_of(run, now), duration_of(run, now), usual.get(run.job_id))
        for run in found
    ]


@dataclass
class Filters:
    """What of all runs a URL asks for; what makes no sense in it is dropped."""

    person: Any
    state: str = ""
    text: str = ""
    project: int | None = None
    pool: int | None = None
    worker: int | None = None
    job: int | None = None
    choices: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, request: HttpRequest) -> Filters:
        """Return the filters in a request's query."""
        query = request.GET
        state = query.get("state", "")
        return cls(
            person=request.user,
            state=state if state in dict(STATES) else "",
            text=query.get("text", "").replace("\0", "").strip()[:200],
            project=_key(query.get("project", "")),
            pool=_key(query.get("pool", "")),
            worker=_key(query.get("worker", "")),
            job=_key(query.get("job", "")),
        )

    @property
    def is_set(self) -> bool:
        """Whether not all runs are asked for."""
        return bool(
            self.state or self.text or any(getattr(self, name) for name in _KEYS)
        )

    def runs(self) -> QuerySet[Any]:
        """Return the runs that are asked for, of those the person may see."""
        runs = Run.objects.all()
        if self.worker:
            runs = runs.filter(worker=self.worker)
        jobs = self._jobs()
        if jobs is not None:
            # Few jobs' runs are found by index; an empty list has none.
            keys = list(jobs.values_list("pk", flat=True)[: MAX_JOBS + 1])
            many = len(keys) > MAX_JOBS
            runs = runs.filter(job__in=jobs.values("pk") if many else keys)
        return runs

    def _jobs(self) -> QuerySet[Any] | None:
        """Return whose runs are asked for; None where they may be of any job."""
        chosen = Q()
        if self.job:
            chosen &= Q(pk=self.job)
        if self.project:
            chosen &= Q(template__project=self.project)
        if self.pool:
            chosen &= Q(worker_pool=self.pool)
        if self.text:
            chosen &= Q(title__icontains=self.text)
        if not chosen and (self.person.is_staff or self.person.is_superuser):
            return None
        return visible(Job, self.person).filter(chosen).order_by()

    def load_choices(self) -> None:
        """Look up what may be chosen."""
        for name, model in _MODELS.items():
            rows = visible(model, self.person).order_by("title", "pk")
            self.choices[name] = list(rows.only("title")[:MAX_CHOICES])
        if self.job:
            named = visible(Job, self.person).filter(pk=self.job).only("title")
            self.choices["job"] = list(named)


_KEYS = ("project", "pool", "worker", "job")
_MODELS = {"project": Project, "pool": WorkerPool, "worker": Worker}


@page
@require_safe
def runs(request: HttpRequest) -> HttpResponse:
    """Show runs."""
    filters, now = Filters.of(request), timezone.now()
    filters.load_choices()
    chosen = filters.runs()
    context: dict[str, Any] = {"filters": filters, "states": STATES, "tab": "runs"}
    is_first = not ({"before", "after"} & request.GET.keys())
    if is_first and filters.state in ("", "in_queue", "started"):
        going = _going(chosen, filters.state, now)
        context["going"] = going[:GOING_ROWS]
        context["more_going"] = len(going) > GOING_ROWS
    if is_first and filters.state in ("", "scheduled"):
        waiting = chosen.filter(enqueue_dts=None, return_dts=None)
        waiting = waiting.order_by("schedule_dts", "id")
        # What is due is never hidden behind what is not.
        found = rows_of(waiting[: WAITING_ROWS + 1], now)
        context["waiting"] = found[:WAITING_ROWS]
        context["more_waiting"] = len(found) > WAITING_ROWS
    if filters.state == "" or filters.state.startswith("completed"):
        context |= _ended(request, in_state(chosen, filters.state or "completed"), now)
    context |= _summary(request.user, now)
    if not filters.is_set:
        context["has_jobs"] = visible(Job, request.user).exists()
    return render(request, "dashboard/runs.html", context)


def _going(chosen: QuerySet[Any], state: str, now: datetime) -> list[Row]:
    going = chosen.filter(enqueue_dts__isnull=False, return_dts=None)
    if state:
        going = in_state(going, state)
    going = going.order_by(F("start_dts").desc(nulls_last=True), "-id")
    return rows_of(going[: GOING_ROWS + 1], now, with_usual=True)


def _ended(request: HttpRequest, ended: QuerySet[Any], now: datetime) -> dict[str, Any]:
    """Return a page of what has ended, the latest first, and the ways to others."""
    before = _mark(request.GET.get("before", ""))
    after = _mark(request.GET.get("after", ""))
    if after and not before:
        at, run_id = after
        later = Q(return_dts__gt=at) | Q(return_dts=at, id__gt=run_id)
        # Both: the first says to the database where in the index to begin.
        ended = ended.filter(Q(return_dts__gte=at) & later)
        found = rows_of(ended.order_by("return_dts", "id")[: PAGE_ROWS + 1], now)
        has_newer, has_older = len(found) > PAGE_ROWS, True
        found = found[:PAGE_ROWS][::-1]
    else:
        if before:
            at, run_id = before
            earlier = Q(return_dts__lt=at) | Q(return_dts=at, id__lt=run_id)
            ended = ended.filter(Q(return_dts__lte=at) & earlier)
        found = rows_of(ended.order_by("-return_dts", "-id")[: PAGE_ROWS + 1], now)
        has_newer, has_older = before is not None, len(found) > PAGE_ROWS
        found = found[:PAGE_ROWS]
    context: dict[str, Any] = {"ended": found}
    if found and has_newer:
        context["newer"] = _way(request, "after", found[0].run)
    if found and has_older:
        context["older"] = _way(request, "before", found[-1].run)
    context["is_first_page"] = not (before or after)
    return context


def _summary(person: Any, now: datetime) -> dict[str, Any]:
    """Return a few numbers about everything that the person may see."""
    failed = visible(Run, person).filter(
        return_success=False, return_dts__gt=now - _DAY
    )
    numbers: dict[str, Any] = {
        "failed_lately": failed.order_by()[:MAX_COUNT].count(),
        "max_count": MAX_COUNT,
    }
    workers = visible(Worker, person).filter(enqueue_is_enabled=True)
    rows = workers.order_by().only(*worker_pages.LOOKED_AT)
    looks = list(map(worker_pages.look_of, rows))
    numbers["workers"] = len(looks)
    numbers["answering"] = looks.count(worker_pages.ANSWERS)
    return numbers


def _way(request: HttpRequest, name: str, run: Any) -> str:
    query = request.GET.copy()
    for each in ("before", "after"):
        query.pop(each, None)
    mark = f"{run.return_dts.timestamp():.6f},{run.pk}"
    text: str = query.urlencode()
    return f"?{text}{'&' if text else ''}{urlencode({name: mark})}"


def _mark(text: str) -> tuple[datetime, int] | None:
    """Return the date and the key that a page begins after."""
    at, _, run_id = text.partition(",")
    key = _key(run_id)
    try:
        return (datetime.fromtimestamp(float(at), UTC), key) if key else None
    except (ValueError, OverflowError, OSError):
        return None


def _key(text: str) -> int | None:
    if text.isascii() and text.isdigit() and 0 < int(text[:20]) <= MAX_ID:
        return int(text)
    return None
