"""Tells the central API: the one reporter that counts. Source: protocol.md, section 3.

A request without an answer may have been carried out. What can be repeated is; before
the last PATCH of a run is repeated, and before a log is created again, the run is
looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import gevent

from job_runner_worker import __version__, backoff
from job_runner_worker.central_api import Batches, CentralApi
from job_runner_worker.errors import ApiError
from job_runner_worker.models import Outcome, Run, Usage
from job_runner_worker.reporters.base import Reporter

_CONFLICT = 409
_USED = tuple(each.name for each in fields(Usage))
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RestOptions:
    """Where logs and kill requests are, and what a ping says of this worker."""

    run_log_path: str
    kill_request_path: str
    concurrent_jobs: int


class RestReporter(Reporter):
    """Reports to the central API, and returns when the API has it."""

    name = "rest"
    acknowledges = True
    sender = "central"

    def __init__(
        self,
        api: CentralApi,
        options: RestOptions,
        worker_uri: Callable[[], str],
        sleep: Callable[[float], None] = gevent.sleep,
        batches: Batches | None = None,
        is_of_our_server: Callable[[], bool] = lambda: False,
    ) -> None:
        self._api = api
        self._is_of_our_server = is_of_our_server
        self._batches = batches
        self._options = options
        self._worker_uri = worker_uri
        self._sleep = sleep
        self._log_uris: dict[int, str] = {}
        self._unsure_of_log: set[int] = set()
        self._unsure_of_end: set[int] = set()
        """Runs whose end may have been stored: first the run has to be seen."""

    def started(self, run: Run, native_id: int | None, at: datetime) -> None:
        """PATCH start time and pid at once."""
        self._api.patch(run.uri, {"start_dts": str(at), "pid": native_id})

    def logged(self, run: Run, content: str, *, final: bool) -> None:
        """POST the log, or PATCH the one that is there.

        A log that is not the last is tried once: by the next time it has grown.
        """
        waits = backoff.waits()
        while True:
            try:
                return self._store_log(run, content)
            except ApiError as error:
                if not error.transient or not final:
                    raise
                self._sleep(next(waits) + (error.retry_after_seconds or 0.0))

    def ended(self, run: Run, content: str, outcome: Outcome) -> bool:
        """PATCH the end with the log, where the server takes that: both or neither.

        What is refused, and what is too long, goes one after the other.
        """
        if self._batches is None:
            return False
        fields = {**self._end(outcome), "log": content}
        waits = backoff.waits()
        while True:
            try:
                if self._batches.change(run.uri, fields) is None:
                    return False
            except ApiError as error:
                if not error.transient:
                    return False
                if error.answered or not self._has_ended_surely(run):
                    self._sleep(next(waits) + (error.retry_after_seconds or 0.0))
                    continue
            self._forget(run)
            return True

    def finished(self, run: Run, outcome: Outcome) -> None:
        """PATCH the end: the last request about a run."""
        fields = self._end(outcome)
        waits = backoff.waits()
        while (refusal := self._finish(run, fields)) is not None:
            self._sleep(next(waits) + (refusal.retry_after_seconds or 0.0))
        self._forget(run)

    def kill_requested(self, kill_request_id: int, at: datetime) -> None:
        """PATCH the time at which the kill was taken."""
        self._patch_kill_request(kill_request_id, {"enqueue_dts": str(at)})

    def kill_executed(self, kill_request_id: int, at: datetime) -> None:
        """PATCH the time at which nothing was alive any more."""
        self._patch_kill_request(kill_request_id, {"execute_dts": str(at)})

    def pinged(self, at: datetime) -> None:
        """PATCH a sign of life."""
        fields = {
            "ping_response_dts": str(at),
            "worker_version": __version__,
            "concurrent_jobs": self._options.concurrent_jobs,
        }
        self._api.patch(self._worker_uri(), fields)

    def resized(self, concurrent_jobs: int) -> None:
        """Say so in the next answer to a ping."""
        self._options = replace(self._options, concurrent_jobs=concurrent_jobs)

    def _has_ended_surely(self, run: Run) -> bool:
        """Return whether a run is known to have ended; no refusal is worth more."""
        try:
            return self._has_ended(run)
        except ApiError:
            return False

    def _forget(self, run: Run) -> None:
        self._log_uris.pop(run.id, None)
        self._unsure_of_log.discard(run.id)
        self._unsure_of_end.discard(run.id)

    def _finish(self, run: Run, fields: Mapping[str, Any]) -> ApiError | None:
        """Send the end once; return why it is to be sent again, None if it is there.

        Raises ApiError where it will never be taken.
        """
        if run.id in self._unsure_of_end and self._has_ended(run):
            return None
        try:
            self._api.patch(run.uri, fields, patient=False)
        except ApiError as error:
            if error.status == _CONFLICT:
                return self._resolve_conflict(run, error)
            if not error.transient:
                raise
            self._unsure_of_end.add(run.id)
            return None if self._has_ended(run) else error
        return None

    def _resolve_conflict(self, run: Run, conflict: ApiError) -> ApiError | None:
        """Return None where a run has ended; claim one again that nobody holds.

        Somebody with our key has handed that one back, or an order of ours to do so
        has come late. It would be offered again and run a second time.
        """
        found = self._api.get(run.uri)
        if found.get("return_dts") is not None:
            _log.warning("run %d: had ended on the server before", run.id)
            return None
        if found.get("enqueue_dts") is not None:
            raise conflict
        _log.warning(
            "run %d: had been handed back though it ran here; claiming it again: is "
            "the key used on two hosts?",
            run.id,
        )
        claim = {"enqueue_dts": str(datetime.now(UTC)), "worker": self._worker_uri()}
        self._api.patch(run.uri, claim)
        return ApiError(str(conflict), conflict.status, transient=True)

    def _has_ended(self, run: Run) -> bool:
        found = self._api.get(run.uri)
        self._unsure_of_end.discard(run.id)
        return found.get("return_dts") is not None

    def _store_log(self, run: Run, content: str) -> None:
        uri = self._log_uri(run)
        if uri is not None:
            self._api.patch(uri, {"content": content}, patient=False)
            return
        fields = {"run": run.uri, "content": content}
        # Unsure until there is an answer: also a lost one may have been stored, and
        # an original server answers 500 to a second log of a run.
        self._unsure_of_log.add(run.id)
        try:
            path = self._api.post(self._options.run_log_path, fields, patient=False)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise
            if self._log_uri(run) is None:
                raise
            raise ApiError(str(error), error.status, transient=True) from error
        if path is not None:
            self._log_uris[run.id] = path
            self._unsure_of_log.discard(run.id)

    def _log_uri(self, run: Run) -> str | None:
        if run.id in self._unsure_of_log:
            uri = self._api.get(run.uri, patient=False).get("run_log")
            self._unsure_of_log.discard(run.id)
            if isinstance(uri, str):
                self._log_uris[run.id] = uri
        return self._log_uris.get(run.id, run.log_uri)

    def _patch_kill_request(self, kill_request_id: int, fields: dict[str, str]) -> None:
        self._api.patch(f"{self._options.kill_request_path}{kill_request_id}/", fields)

    def _end(self, outcome: Outcome) -> dict[str, Any]:
        said: dict[str, Any] = {
            "return_dts": str(outcome.returned_at),
            "return_success": outcome.success,
            "exit_status": outcome.exit_status,
            "reason": outcome.reason,
        }
        if outcome.usage is not None and self._is_of_our_server():
            said["usage"] = {each: getattr(outcome.usage, each) for each in _USED}
        return said
