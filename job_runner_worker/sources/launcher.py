"""Orders by HTTP: jobs that callers on this machine, or with a key, hand over."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import gevent
from gevent.queue import SimpleQueue

from job_runner_worker import job_files, job_request
from job_runner_worker.errors import ApiError, JobRunnerError, RequestError
from job_runner_worker.job_request import JobRequest
from job_runner_worker.job_store import JobState, JobStore, LaunchedJob
from job_runner_worker.models import Command, Enqueue, Kill, Run
from job_runner_worker.sources.base import STOPPING, Holder, Offer, Source

SENDER = "launcher"
OFFER_AGAIN_SECONDS = 2.0
"""A job that was not taken, or was handed back, is offered again after this."""
_BAD_REQUEST, _NOT_FOUND, _GONE = 400, 404, 410
_log = logging.getLogger(__name__)


class QueueFullError(JobRunnerError):
    """No more jobs may wait for a slot; some time later there is room."""


class Door(Protocol):
    """The HTTP server through which jobs come."""

    def start(self, launcher: LauncherSource) -> None:
        """Answer requests from now on."""

    def stop(self) -> None:
        """Answer no more."""


@dataclass(frozen=True, slots=True)
class LauncherOptions:
    """What the operator decides about jobs.

    ``search_path`` is the PATH of scripts, in which executables are found.
    """

    roots: Sequence[Path]
    max_queued: int
    keep_seconds: float
    search_path: str | None


class LauncherSource(Source):
    """Takes jobs over HTTP; they are this worker's from the first moment.

    So a claim is a note in the job's own record: until then a job can be cancelled
    without anybody else knowing of it, and from then on its run folder is there.
    """

    name = "launcher"
    sender = SENDER
    offer_ttl_seconds = float("inf")

    def __init__(self, store: JobStore, door: Door, options: LauncherOptions) -> None:
        self._store = store
        self._door = door
        self._options = options
        self._orders: SimpleQueue[Command | None] = SimpleQueue()
        self._timers: dict[int, gevent.Greenlet[..., Any]] = {}

    def commands(self) -> Iterator[Command]:
        """Yield what an earlier worker has left, then what comes in."""
        self._store.prune(self._options.keep_seconds)
        self._store.on_change.append(self._watch_time)
        for job in self._store:
            if job.is_final:
                continue
            self._watch_time(job)
            if not job.is_claimed:
                self._orders.put(Enqueue(job.id))
            elif job.is_cancelled or job.is_overdue:
                self._orders.put(Kill(job.id, job.id))
        self._door.start(self)
        while (order := self._orders.get()) is not None:
            yield order

    def submit(self, body: bytes) -> LaunchedJob:
        """Take a job; it is durable when this returns.

        Raises RequestError, QueueFullError, and OSError where it cannot be kept.
        """
        request = job_request.decode(body)
        in_thread(job_files.check, request, self._options.roots)
        queued = sum(not (job.is_claimed or job.is_final) for job in self._store)
        if queued >= self._options.max_queued:
            raise QueueFullError(f"{queued} jobs wait already")
        self._store.prune(self._options.keep_seconds)
        job = self._store.add(request)
        self._orders.put(Enqueue(job.id))
        return job

    def jobs(self) -> list[LaunchedJob]:
        """Return all jobs that are remembered, oldest first."""
        return list(self._store)

    def job(self, job_id: int) -> LaunchedJob | None:
        """Return a job, None where it is not known (any more)."""
        return self._store.get(job_id)

    def cancel(self, job: LaunchedJob) -> None:
        """End a job in whatever state it is; a finished one stays as it is."""
        if job.is_final or job.is_cancelled:
            return
        job.is_cancelled = True
        if not job.is_claimed:
            job.exception = "cancelled before it was started"
            self._store.move(job, JobState.STOPPED)
            return
        self._store.save(job)
        self._orders.put(Kill(job.id, job.id))

    def look(self, run_id: int, *, patient: bool = False) -> Offer:
        """See sources.base.Source. A run that has a folder is always this worker's."""
        job = self._known(run_id)
        if patient and not (job.is_claimed or job.is_final):
            job.is_claimed = True
            self._store.save(job)
        return _offer(job)

    def claim(self, offer: Offer, at: datetime) -> bool:
        """See sources.base.Source."""
        job = self._known(offer.run_id)
        if job.is_final:
            return False
        job.is_claimed = True
        self._store.save(job)
        return True

    def fetch(self, offer: Offer) -> Run:
        """Copy the prestaged files in; return the run. See sources.base.Source."""
        job = self._known(offer.run_id)
        if job.is_cancelled:
            raise ApiError("cancelled", _GONE)
        folders = self._store.folders(job)
        try:
            in_thread(job_files.stage_in, job.request, folders, self._options.roots)
            self._find_executable(job.request, folders.sandbox)
        except (RequestError, OSError) as error:
            raise ApiError(str(error), _BAD_REQUEST) from error
        paths = map(str, (folders.sandbox, folders.stdout, folders.stderr))
        script = job_request.script_of(job.request, *paths)
        title = os.path.basename(job.request.executable)
        return Run(job.id, offer.uri, str(job.id), title, script)

    def unfinished(self) -> list[Offer]:
        """See sources.base.Source."""
        return [
            _offer(job) for job in self._store if job.is_claimed and not job.is_final
        ]

    def hand_back(self, offer: Offer) -> None:
        """Begin an interrupted job anew. See sources.base.Source."""
        job = self._known(offer.run_id)
        job.is_claimed = False
        job.pid, job.started_at = None, ""
        self._store.move(job, JobState.PENDING)
        gevent.spawn_later(OFFER_AGAIN_SECONDS, self._offer_again, job)

    def refused(self, command: Command, reason: str) -> None:
        """Offer a job again that the worker could not take."""
        if isinstance(command, Enqueue) and reason != STOPPING:
            job = self._store.get(command.run_id)
            if job is not None:
                gevent.spawn_later(OFFER_AGAIN_SECONDS, self._offer_again, job)

    def close(self) -> None:
        """See sources.base.Source."""
        self._door.stop()
        for timer in self._timers.values():
            timer.kill(block=False)
        self._orders.put(None)

    def _known(self, run_id: int) -> LaunchedJob:
        job = self._store.get(run_id)
        if job is None:
            raise ApiError(f"no job {run_id}", _NOT_FOUND)
        return job

    def _offer_again(self, job: LaunchedJob) -> None:
        if not (job.is_claimed or job.is_final):
            self._orders.put(Enqueue(job.id))

    def _find_executable(self, request: JobRequest, sandbox: Path) -> None:
        """Raise RequestError where a shell would find nothing to execute."""
        environment = request.environment or {}
        path = environment.get("PATH", self._options.search_path)
        name = request.executable
        if "/" in name:
            name = str(sandbox / name)
        if shutil.which(name, path=path) is None:
            raise RequestError(
                "executable",
                f"{request.executable!r} does not exist or cannot be executed",
            )

    def _watch_time(self, job: LaunchedJob) -> None:
        """Have a job that runs killed when its time is over."""
        limit = job.request.max_time_seconds
        if job.state is not JobState.RUNNING:
            timer = self._timers.pop(job.id, None)
            if timer is not None:
                timer.kill(block=False)
        elif limit is not None and job.id not in self._timers:
            so_far = datetime.now(UTC) - datetime.fromisoformat(job.started_at)
            left = max(0.0, limit - so_far.total_seconds())
            self._timers[job.id] = gevent.spawn_later(left, self._end_in_time, job)

    def _end_in_time(self, job: LaunchedJob) -> None:
        if job.state is JobState.RUNNING:
            job.is_overdue = True
            self._store.save(job)
            self._orders.put(Kill(job.id, job.id))


def in_thread(function: Any, *arguments: Any) -> Any:
    """Call what waits for a disk, and let others go on meanwhile."""
    return gevent.get_hub().threadpool.apply(function, arguments)


def _offer(job: LaunchedJob) -> Offer:
    uri = f"/job/{job.id}"
    holder = Holder.THIS_WORKER if job.is_claimed else Holder.NOBODY
    return Offer(job.id, uri, uri, None, holder, ended=job.is_final)
