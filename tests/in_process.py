"""The worker's core in this process, between stand-ins for everything outside it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from waiting import eventually

from job_runner_worker.errors import JobRunnerError
from job_runner_worker.executors.base import Executor
from job_runner_worker.models import Command, Run
from job_runner_worker.reporters.base import Reporter
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.sources.base import Source
from job_runner_worker.spool import Spool
from job_runner_worker.testing import (
    FakeExecution,
    FakeExecutor,
    RecordingReporter,
    ScriptedSource,
)
from job_runner_worker.worker import Worker
from job_runner_worker.worker_options import WorkerOptions

LIMIT_SECONDS = 10.0


class Core:
    """A worker with one source, one executor and one reporter, in a greenlet."""

    def __init__(
        self,
        spool: Spool,
        source: ScriptedSource,
        executor: FakeExecutor,
        reporter: RecordingReporter,
    ) -> None:
        self.spool = spool
        self.source = source
        self.executor = executor
        self.reporter = reporter
        self.worker: Worker
        self.running: gevent.Greenlet[..., None]
        self.error: JobRunnerError | None = None
        """What `Worker.run` raised."""

    def say(self, *commands: Command) -> None:
        """Let the source yield some orders, and the worker hear them."""
        for command in commands:
            self.source.push(command)
        gevent.idle()

    def folders(self) -> list[str]:
        names = {path.name for path in self.spool.path.iterdir()}
        return sorted(names - {"lock", "spool.json"})

    def wait_until_idle(self) -> None:
        """Wait until no run is in hand."""
        eventually(lambda: not self.worker._runs, "no run in hand")

    def stop(self, *, drain: bool = True) -> None:
        """Stop the worker in order and wait until it has."""
        self.worker.stop(drain=drain)
        self.wait_for_stop()

    def wait_for_stop(self) -> None:
        self.running.join(LIMIT_SECONDS)
        assert self.running.dead, "the worker does not stop"

    def run(self) -> None:
        try:
            self.worker.run()
        except JobRunnerError as error:
            self.error = error


def open_spool(path: Path) -> Spool:
    spool = Spool(path, "http://server", "key")
    spool.open()
    return spool


def make_worker(
    spool: Spool,
    sources: Sequence[Source],
    executor: Executor,
    reporters: Sequence[Reporter],
    **options: Any,
) -> Worker:
    defaults: dict[str, Any] = {
        "concurrent_jobs": 2,
        "max_log_bytes": 10_000,
        "log_flush_seconds": 0.01,
        "offer_ttl_seconds": LIMIT_SECONDS,
        "drain_report_seconds": LIMIT_SECONDS,
        "reschedule_interrupted": True,
    }
    settings = WorkerOptions(**{**defaults, **options})
    return Worker(settings, spool, sources, executor, reporters)


@contextmanager
def core(
    path: Path,
    *,
    source: ScriptedSource | None = None,
    executor: FakeExecutor | None = None,
    reporter: RecordingReporter | None = None,
    **options: Any,
) -> Iterator[Core]:
    """Yield a worker that runs; it is stopped, its runs are left, in the end."""
    made = Core(
        open_spool(path),
        source or ScriptedSource(),
        executor or FakeExecutor(),
        reporter or RecordingReporter(),
    )
    made.worker = make_worker(
        made.spool, [made.source], made.executor, [made.reporter], **options
    )
    made.running = gevent.spawn(made.run)
    try:
        made.source.wait_for(
            lambda: ("unfinished", 0) in made.source.calls, "the start", LIMIT_SECONDS
        )
        yield made
    finally:
        if not made.running.dead:
            made.worker.stop(drain=False)
            made.worker.stop(drain=False)
        made.running.join(LIMIT_SECONDS)
        made.spool.close()
    made.wait_for_stop()


def let_pass(seconds: float) -> None:
    """Let a time that the worker was given run out."""
    late = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > late, f"{seconds:g} s to pass")


class HeldReporter(RecordingReporter):
    """A reporter that holds some kinds of calls until the test lets them go on."""

    def __init__(self, *held: str) -> None:
        super().__init__()
        self.held = held
        self.reached, self.release = Event(), Event()

    def _record(self, call: tuple[Any, ...], *more: Any) -> None:
        if call[0] in self.held:
            self.reached.set()
            self.release.wait()
        super()._record(call, *more)


class HeldExecutor(FakeExecutor):
    """An executor whose starts, or looks for what has begun, are held by the test."""

    def __init__(self, held: str = "start") -> None:
        super().__init__()
        self.held = held
        self.reached, self.release = Event(), Event()

    def attach(self, run: Run, folder: RunFolder) -> FakeExecution | None:
        self._hold("attach")
        return super().attach(run, folder)

    def start(self, run: Run, folder: RunFolder) -> FakeExecution:
        self._hold("start")
        return super().start(run, folder)

    def _hold(self, step: str) -> None:
        if step == self.held:
            self.reached.set()
            self.release.wait()
