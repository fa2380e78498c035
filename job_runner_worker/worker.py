"""The worker: hears orders, accepts runs, kills them, recovers, and stops in order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import gevent
from gevent.event import Event
from gevent.queue import SimpleQueue

from job_runner_worker import acceptance
from job_runner_worker.errors import ApiError, JobRunnerError
from job_runner_worker.executors.base import Executor
from job_runner_worker.kills import Kills
from job_runner_worker.live_run import LiveRun
from job_runner_worker.models import Command, Enqueue, Kill, Ping, RunState
from job_runner_worker.perform import perform
from job_runner_worker.reporters.base import Reporter
from job_runner_worker.reports import Reports
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.sources.base import Offer, Source
from job_runner_worker.spool import Spool

MAX_WAITING_OFFERS = 10_000
"""More offers than this are dropped: an order is a hint that the server repeats."""
_BEGUN = (RunState.STARTING, RunState.RUNNING)
_UNAUTHORIZED = 401
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the operator decides about the core."""

    concurrent_jobs: int
    max_log_bytes: int
    log_flush_seconds: float
    offer_ttl_seconds: float
    drain_report_seconds: float
    reschedule_interrupted: bool


class Worker:
    """Runs what its sources order. One greenlet per source, run, kill and ping."""

    def __init__(
        self,
        options: WorkerOptions,
        spool: Spool,
        sources: Sequence[Source],
        executor: Executor,
        reporters: Sequence[Reporter],
    ) -> None:
        self._options = options
        self._spool = spool
        self._sources = sources
        self._executor = executor
        self._reporters = reporters
        self._runs: dict[int, LiveRun] = {}
        self._free_slots = options.concurrent_jobs
        self._waiting: dict[int, tuple[Source, float]] = {}
        self._kills = Kills(self._find_run, self._tell)
        self._recovering_sources = len(sources)
        self._taken_since_start: set[int] = set()
        self._is_answering_ping = False
        self._draining = False
        self._greenlets: set[gevent.Greenlet[..., Any]] = set()
        self._changed = Event()
        self._stops: SimpleQueue[JobRunnerError | bool] = SimpleQueue()

    def run(self) -> None:
        """Work until `stop` is called. Raises what makes going on impossible."""
        try:
            self._executor.open()
            for reporter in self._reporters:
                reporter.open()
            self._take_up_folders()
            for source in self._sources:
                self._spawn(self._listen, source)
                self._spawn(self._take_interrupted, source)
            drain = self._stops.get()
            if isinstance(drain, JobRunnerError):
                raise drain
            if drain:
                self._drain()
        finally:
            self._leave()

    def stop(self, *, drain: bool) -> None:
        """Stop in order: with ``drain`` the runs end first, else they are left alone.

        A second call, of either kind, leaves at once.
        """
        self._stops.put(drain)

    def fail(self, error: JobRunnerError) -> None:
        """Stop because going on is impossible; `run` raises the error."""
        self._stops.put(error)

    def handle(self, command: Command, source: Source) -> None:
        """Carry out one order; never blocks."""
        match command:
            case Enqueue():
                self._accept(command, source)
            case Kill():
                if self._kills.take(command):
                    self._spawn(self._kill, command, source)
            case Ping():
                if not self._is_answering_ping:
                    self._is_answering_ping = True
                    self._spawn(self._answer_ping, command, source)

    def _listen(self, source: Source) -> None:
        try:
            for command in source.commands():
                self.handle(command, source)
        except Exception as error:
            # Better no worker, which its supervisor sees, than a deaf one.
            _log.exception("the source %r broke", source.name)
            self.fail(JobRunnerError(f"the source {source.name!r} broke: {error}"))

    def _accept(self, order: Enqueue, source: Source) -> None:
        run_id = order.run_id
        if self._draining:
            _log.info("run %d: offer refused: this worker is stopping", run_id)
            source.refused(order, "stopping")
        elif run_id in self._runs:
            _log.debug("run %d: offered again, is in hand", run_id)
        elif self._free_slots > 0:
            self._take(run_id, source)
        elif run_id in self._waiting or len(self._waiting) < MAX_WAITING_OFFERS:
            deadline = time.monotonic() + self._options.offer_ttl_seconds
            self._waiting[run_id] = (source, deadline)
            _log.debug("run %d: offered while every slot is taken", run_id)
        else:
            source.refused(order, "too many offers")

    def _take(self, run_id: int, source: Source, deadline: float | None = None) -> None:
        if deadline is None:
            deadline = time.monotonic() + self._options.offer_ttl_seconds
        live = self._register(run_id, source)
        self._spawn(self._run_offer, live, deadline)

    def _register(self, run_id: int, source: Source) -> LiveRun:
        """Every run in hand has a slot until its script has ended."""
        live = LiveRun(run_id, source, self._executor, on_end=self._free_slot)
        self._free_slots -= 1
        self._runs[run_id] = live
        if self._recovering_sources:
            self._taken_since_start.add(run_id)
        return live

    def _free_slot(self) -> None:
        self._free_slots += 1
        self._changed.set()
        while self._waiting and self._free_slots > 0 and not self._draining:
            run_id = next(iter(self._waiting))
            source, deadline = self._waiting.pop(run_id)
            if time.monotonic() <= deadline and run_id not in self._runs:
                self._take(run_id, source, deadline)

    def _run_offer(self, live: LiveRun, deadline: float) -> None:
        with self._in_hand(live):
            limit = self._options.max_log_bytes
            if acceptance.accept(live, self._spool, limit, deadline):
                _log.info("run %d: claimed", live.id)
                self._perform(live)
                live.source.done(Enqueue(live.id))

    def _run_folder(self, live: LiveRun, folder: RunFolder) -> None:
        for kill_request_id in folder.note.kill_requests:
            self.handle(Kill(kill_request_id, live.id), live.source)
        with self._in_hand(live):
            reschedule = self._options.reschedule_interrupted
            if acceptance.resume(live, folder, self._spool, reschedule=reschedule):
                self._perform(live)

    def _run_interrupted(self, live: LiveRun, offer: Offer) -> None:
        with self._in_hand(live):
            if acceptance.take_interrupted(
                live,
                offer,
                self._spool,
                self._options.max_log_bytes,
                reschedule=self._options.reschedule_interrupted,
            ):
                self._perform(live)

    def _perform(self, live: LiveRun) -> None:
        reports = Reports(self._reporters, live.folder)
        perform(live, reports, self._options.log_flush_seconds)
        while live.kills_under_way:
            self._changed.wait()
            self._changed.clear()
        if reports.refused:
            reason = f"run {live.id}: not every report was taken by the server"
            self._spool.set_aside(live.folder.path, reason)
        else:
            live.folder.remove()
        live.reported()

    def _take_interrupted(self, source: Source) -> None:
        """Deal with what the server has as ours, but this worker does not have."""
        try:
            offers = source.unfinished()
        except ApiError as error:
            if error.status == _UNAUTHORIZED:
                self.fail(error)
                return
            _log.error("interrupted runs cannot be asked for: %s", error)
            offers = []
        for offer in offers:
            # Whatever has been in hand since the start is newer than the answer.
            if offer.run_id not in self._taken_since_start:
                live = self._register(offer.run_id, source)
                # No script needs the slot; and no run waits for another's refusal.
                live.release_slot()
                self._spawn(self._run_interrupted, live, offer)
        self._recovering_sources -= 1
        if not self._recovering_sources:
            self._taken_since_start.clear()

    def _take_up_folders(self) -> None:
        by_name = {source.name: source for source in self._sources}
        for folder in self._spool.folders():
            run_id = folder.note.run_id
            source = by_name.get(folder.note.source)
            if source is None:
                _log.error(
                    "run %d: its source %r is not configured any more: the folder %s "
                    "is left alone",
                    run_id,
                    folder.note.source,
                    folder.path,
                )
                continue
            self._spawn(self._run_folder, self._register(run_id, source), folder)

    def _kill(self, order: Kill, source: Source) -> None:
        self._kills.carry_out(order, source)
        self._changed.set()

    def _find_run(self, run_id: int) -> LiveRun | None:
        """Return a run to be killed; claim one that waits, so that nobody starts it."""
        source, deadline = self._waiting.pop(run_id, (None, 0.0))
        if source is not None and time.monotonic() <= deadline:
            self._take(run_id, source, deadline)
        return self._runs.get(run_id)

    def _answer_ping(self, order: Ping, source: Source) -> None:
        try:
            self._tell(lambda to: to.pinged(datetime.now(UTC)))
        finally:
            self._is_answering_ping = False
        source.done(order)

    def _tell(self, call: Callable[[Reporter], None]) -> None:
        for reporter in self._reporters:
            try:
                call(reporter)
            except ApiError as error:
                _log.error("refused by the server, going on without: %s", error)

    def _drain(self) -> None:
        """Sources stay open meanwhile: kills and pings are still heard."""
        self._draining = True
        _log.info("stopping when %d runs have ended and are reported", len(self._runs))
        self._waiting.clear()
        ended = self._spawn(self._wait_until_drained)
        second_stop = gevent.spawn(self._stops.get)
        gevent.wait([ended, second_stop], count=1)
        second_stop.kill()

    def _wait_until_drained(self) -> None:
        """Wait for scripts as long as they run, for reports only for a while."""
        deadline = None
        while self._runs or self._kills.under_way:
            timeout = None
            if any(live.state in _BEGUN for live in self._runs.values()):
                deadline = None
            else:
                now = time.monotonic()
                deadline = deadline or now + self._options.drain_report_seconds
                timeout = deadline - now
                if timeout <= 0:
                    return
            self._changed.clear()
            self._changed.wait(timeout)

    def _leave(self) -> None:
        """Let go of everything; sources last, so that a kill is heard to the end."""
        for live in self._runs.values():
            _log.info(
                "run %d: left %s, the next worker takes it up", live.id, live.state
            )
        gevent.killall(list(self._greenlets))
        self._executor.close()
        for reporter in self._reporters:
            reporter.close()
        for source in self._sources:
            source.close()

    @contextmanager
    def _in_hand(self, live: LiveRun) -> Iterator[None]:
        """Whatever happens to one run, the worker goes on."""
        try:
            yield
        except ApiError as error:
            _log.warning("run %d: let go: %s", live.id, error)
        except OSError as error:
            _log.error("run %d: let go, the spool is not usable: %s", live.id, error)
        except Exception:
            _log.exception("run %d: let go, its folder is kept", live.id)
        finally:
            live.forget()
            self._runs.pop(live.id, None)
            self._changed.set()

    def _spawn(
        self, function: Callable[..., Any], *arguments: Any
    ) -> gevent.Greenlet[..., Any]:
        greenlet = gevent.spawn(function, *arguments)
        self._greenlets.add(greenlet)
        greenlet.rawlink(self._greenlets.discard)
        return greenlet
