"""What a central server in memory knows, and how to wait for it to change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import tzinfo
from typing import TypeVar

import gevent
from gevent._hub_local import get_hub_if_exists

from job_runner_worker.testing import rest, tables
from job_runner_worker.testing.tables import Row, Tables

PAUSE_SECONDS = 0.001
_T = TypeVar("_T")


class ServerState:
    """Workers, jobs, runs, logs and kill requests, behind one lock.

    Every method may be called from any thread; from greenlets, too. Dates may be
    given as text or as datetimes, and are returned as the API shows them.
    """

    def __init__(
        self,
        *,
        api_key: str,
        secret: str,
        original: bool,
        batches: bool,
        server_timezone: tzinfo,
    ) -> None:
        self.api_key = api_key
        self.secret = secret
        self._tables = Tables(original=original, server_timezone=server_timezone)
        self._tables.takes_batches = batches
        self._changed = threading.Condition(threading.RLock())
        self.add_worker(api_key, secret)

    @property
    def takes_batches(self) -> bool:
        """Whether batches are taken; workers are told so when they start."""
        return self._tables.takes_batches

    @takes_batches.setter
    def takes_batches(self, takes_batches: bool) -> None:
        with self.changing():
            self._tables.takes_batches = takes_batches

    def add_worker(self, api_key: str, secret: str, title: str = "") -> int:
        """Add a worker and return its id."""
        with self.changing():
            self._tables.secrets[api_key] = secret
            row_id = max(self._tables.rows["worker"], default=0) + 1
            fields = tables.new_worker(api_key, title or f"Worker {row_id}")
            if self._tables.takes_batches:
                fields["batch_uri"] = tables.BATCH_PATH
            return self._tables.add("worker", fields)

    def add_job(
        self,
        script: str,
        title: str = "",
        job_id: int | None = None,
        *,
        of_another_pool: bool = False,
    ) -> int:
        """Add a job and return its id.

        A job of another pool may not be read, and its runs can be claimed but not
        ended (protocol.md, section 5, fault 4).
        """
        with self.changing():
            job_id = job_id or max(self._tables.rows["job"], default=0) + 1
            fields = tables.new_job(script, title or f"job {job_id}")
            if of_another_pool:
                self._tables.jobs_of_another_pool.add(job_id)
            return self._tables.add("job", fields, job_id)

    def add_run(self, job_id: int, run_id: int | None = None, **fields: object) -> int:
        """Add a run of a job, with what is known of it already; returns its id."""
        with self.changing():
            values = self._tables.read_fields("run", fields)
            row = {**tables.new_run(job_id), **values}
            return self._tables.add("run", row, run_id)

    def change_run(self, run_id: int, **fields: object) -> None:
        """Change a run behind the worker's back, as another worker or a person."""
        with self.changing():
            values = self._tables.read_fields("run", fields)
            self._tables.rows["run"][run_id].update(values)

    def add_log(self, run_id: int, content: str, log_id: int | None = None) -> str:
        """Add the log of a run, as an earlier worker; returns its URI."""
        with self.changing():
            run = self._tables.rows["run"][run_id]
            fields = {"content": content, "run": run["resource_uri"]}
            uri = tables.uri_of("run_log", self._tables.add("run_log", fields, log_id))
            run["run_log"] = uri
            return uri

    def add_kill_request(self, run_id: int) -> int:
        """Add a kill request for a run (that may not exist) and return its id."""
        with self.changing():
            return self._tables.add("kill_request", tables.new_kill_request(run_id))

    def run(self, run_id: int) -> Row:
        """Return a run, with the fields that the API does not know but was sent."""
        with self._changed:
            row = self._tables.show(self._tables.rows["run"][run_id])
            return {**self._tables.ignored.get(run_id, {}), **row}

    def runs(self, state: str = "") -> list[int]:
        """Return the ids of the runs in a state, as in the API's ``state=`` filter."""
        with self._changed:
            rows = self._tables.rows["run"].items()
            return [row_id for row_id, row in rows if rest.is_in_state(row, state)]

    def log(self, run_id: int) -> str | None:
        """Return the content of a run's log, None while it has none."""
        with self._changed:
            uri = self._tables.rows["run"][run_id]["run_log"]
            if uri is None:
                return None
            content: str = self._tables.rows["run_log"][tables.id_in(uri)]["content"]
            return content

    def worker(self, api_key: str | None = None) -> Row:
        """Return a worker; the one that this server was made for by default."""
        with self._changed:
            return self._tables.show(self._tables.worker_of(api_key or self.api_key))

    def worker_uri(self, api_key: str | None = None) -> str:
        """Return what stands in the ``worker`` of a run that a worker has claimed."""
        uri: str = self.worker(api_key)["resource_uri"]
        return uri

    def kill_request(self, kill_request_id: int) -> Row:
        """Return a kill request."""
        with self._changed:
            return self._tables.show(self._tables.rows["kill_request"][kill_request_id])

    def kill_requests(self, *, taken: bool) -> list[Row]:
        """Return the kill requests that a worker has taken, or not yet."""
        with self._changed:
            rows = self._tables.rows["kill_request"].values()
            found = [row for row in rows if (row["enqueue_dts"] is not None) is taken]
            return [self._tables.show(row) for row in found]

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock, and wake everybody who waits afterwards."""
        with self._changed:
            yield
            self._changed.notify_all()

    def wait_for(
        self,
        predicate: Callable[[], _T | None],
        what: str,
        timeout_seconds: float = 10.0,
    ) -> _T:
        """Return what ``predicate`` returns, once that is true.

        It is asked again after every change of this server. Raises AssertionError
        that names ``what`` and shows the last requests when the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            with self._changed:
                found = predicate()
                if found:
                    return found
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise AssertionError(self._waited_for(what, timeout_seconds))
                if get_hub_if_exists() is None:
                    self._changed.wait(remaining)
                    continue
            # What is waited for may be done by a greenlet of this very thread.
            gevent.sleep(PAUSE_SECONDS)

    def wait_for_end(self, run_id: int, timeout_seconds: float = 10.0) -> Row:
        """Return a run once it has ended."""
        return self.wait_for(
            lambda: self.run(run_id)["return_dts"] and self.run(run_id),
            f"the end of run {run_id}",
            timeout_seconds,
        )

    def _last_events(self) -> list[str]:
        """Return what helps to understand why something did not happen."""
        return []

    def _waited_for(self, what: str, timeout_seconds: float) -> str:
        lines = [f"waited {timeout_seconds:g} s for {what}; the last requests:"]
        return "\n  ".join(lines + self._last_events())
