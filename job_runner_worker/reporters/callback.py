"""Tells callers' URLs what becomes of their jobs: signed, in order, until accepted."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urljoin

import gevent
import requests
from requests.adapters import HTTPAdapter

from job_runner_worker import __version__, backoff, job_files, mac
from job_runner_worker.errors import ApiError
from job_runner_worker.job_store import JobState, JobStore, LaunchedJob
from job_runner_worker.launcher_settings import MacCredential
from job_runner_worker.models import Outcome, Run
from job_runner_worker.reporters.base import Reporter

REFUSALS = 3
"""A state that is not the end is skipped when it was refused with a 4xx so often."""
SLOW_BOUND_SECONDS = 600.0
"""An end that is refused with a 4xx is tried this seldom."""
MAX_CONNECTIONS = 16
MAX_REDIRECTS = 3
_REDIRECTS = (301, 307, 308)
_TRANSIENT = (408, 425, 429)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallbackOptions:
    """Who signs which callback; ``verify`` is True, False or a bundle's path."""

    credentials: Sequence[MacCredential]
    timeout_seconds: float
    verify: bool | str = True


class CallbackClient:
    """PUTs a status; raises ApiError where it was not accepted."""

    def __init__(self, options: CallbackOptions) -> None:
        self._options = options
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            adapter = HTTPAdapter(pool_maxsize=MAX_CONNECTIONS, pool_block=True)
            self._session.mount(scheme, adapter)

    def put(self, url: str, status: dict[str, Any]) -> None:
        """Send once; a redirect is followed, and signed for where it leads."""
        body = json.dumps(status).encode()
        for _ in range(MAX_REDIRECTS + 1):
            code, location = self._send(url, body)
            if 200 <= code < 300:
                return
            if code not in _REDIRECTS or not location:
                transient = code >= 500 or code in _TRANSIENT
                raise ApiError(f"PUT {url}: {code}", code, transient=transient)
            url = urljoin(url, location)
        raise ApiError(f"PUT {url}: redirected too often", 310)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _send(self, url: str, body: bytes) -> tuple[int, str]:
        seconds = self._options.timeout_seconds
        try:
            request = self._prepare(url, body)
            settings = self._session.merge_environment_settings(
                url, {}, True, self._options.verify, None
            )
            with gevent.Timeout(seconds, TimeoutError("timed out")):
                response = self._session.send(
                    request, timeout=seconds, allow_redirects=False, **settings
                )
                response.close()
        except (requests.RequestException, OSError, ValueError) as error:
            raise ApiError(f"PUT {url}: no answer: {error}", transient=True) from error
        return response.status_code, response.headers.get("Location", "")

    def _prepare(self, url: str, body: bytes) -> requests.PreparedRequest:
        """Return a request as it is sent; by hand, so that .netrc signs nothing."""
        request = requests.PreparedRequest()
        request.prepare_method("PUT")
        request.prepare_url(url, None)
        request.prepare_headers(
            {
                "Content-Type": "application/json",
                "User-Agent": f"job_runner_worker/{__version__}",
            }
        )
        request.prepare_cookies({})
        request.prepare_body(body, None)
        final = request.url or url
        credential = mac.credential_for(self._options.credentials, final)
        if credential is not None:
            stamp = mac.Stamp(str(int(time.time())), secrets.token_hex(8))
            request.headers["Authorization"] = mac.authorization(
                credential, mac.request_to("PUT", final), stamp
            )
        return request


class CallbackReporter(Reporter):
    """Keeps the records of launched jobs up to date, and tells their callers."""

    name = "callback"
    acknowledges = True
    sender = "launcher"

    def __init__(
        self,
        store: JobStore,
        client: CallbackClient,
        sleep: Callable[[float], None] = gevent.sleep,
    ) -> None:
        self._store = store
        self._client = client
        self._sleep = sleep
        self._senders: dict[int, gevent.Greenlet[..., Any]] = {}

    def open(self) -> None:
        """Go on with what an earlier worker could not tell."""
        self._store.on_change.append(self._tell)
        for job in self._store:
            self._tell(job)

    def started(self, run: Run, native_id: int | None, at: datetime) -> None:
        """Note that the script has begun."""
        job = self._store.get(run.id)
        if job is not None and native_id is not None and not job.is_final:
            job.pid, job.started_at = native_id, at.isoformat()
            self._store.move(job, JobState.RUNNING)

    def finished(self, run: Run, outcome: Outcome) -> None:
        """Copy the results, then tell the end; return when it is accepted."""
        job = self._store.get(run.id)
        if job is None:
            return
        if not job.is_final:
            self._finish(job, outcome)
        sender = self._senders.get(job.id)
        if sender is not None:
            sender.join()

    def close(self) -> None:
        """Let go; what is not accepted is told by the next worker."""
        gevent.killall(list(self._senders.values()))
        self._client.close()

    def _finish(self, job: LaunchedJob, outcome: Outcome) -> None:
        problems: list[str] = []
        if job.started_at:
            self._store.move(job, JobState.POST_STAGING)
            problems = gevent.get_hub().threadpool.apply(
                lambda: job_files.stage_out(
                    job.request,
                    self._store.folders(job),
                    has_succeeded=outcome.success,
                )
            )
        job.exit_code = outcome.exit_status
        job.ended_at = outcome.returned_at.isoformat()
        state = JobState.STOPPED
        if outcome.reason and job.is_cancelled:
            job.exception = "cancelled"
        elif outcome.reason and job.is_overdue:
            limit = job.request.max_time_seconds
            job.exception = f"ran longer than max_time_seconds ({limit:g})"
            state = JobState.ERROR
        elif outcome.reason:
            job.exception, state = outcome.reason, JobState.ERROR
        if problems:
            where = self._store.folders(job).sandbox
            text = f"results are missing, see {where}: {'; '.join(problems)}"
            job.exception = f"{job.exception}; {text}" if job.exception else text
            state = JobState.ERROR
        self._store.move(job, state)
        if not problems:
            self._store.clear(job)

    def _tell(self, job: LaunchedJob) -> None:
        """See to it that what is due is told, one after the other."""
        if job.untold and job.id not in self._senders:
            self._senders[job.id] = gevent.spawn(self._send_all, job)

    def _send_all(self, job: LaunchedJob) -> None:
        while job.untold:
            self._send(job, job.untold[0])
            del job.untold[0]
            self._store.save(job)
        del self._senders[job.id]

    def _send(self, job: LaunchedJob, status: dict[str, Any]) -> None:
        """Return when a status was accepted, or will never be and is not the end."""
        url = job.request.status_callback_url
        assert url is not None
        quick = backoff.waits()
        slow = backoff.waits(backoff.MAX_BOUND_SECONDS, SLOW_BOUND_SECONDS)
        refusals = 0
        while True:
            try:
                self._client.put(url, status)
                return
            except ApiError as error:
                _log.warning("run %d: callback not accepted: %s", job.id, error)
                refusals += not error.transient
            is_refused = refusals >= REFUSALS
            if is_refused and not status["done"]:
                _log.warning("run %d: %s is not told", job.id, status["state"])
                return
            self._sleep(next(slow if is_refused else quick))
